"""A context with completions that are ranked, NeMo RL's format."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from numbers import Integral, Real
from typing import Any, Literal, get_args

import pyarrow as pa
from datasets import Dataset
from typing_extensions import override

from agiledpo.data.checking import checked_example, require_values
from agiledpo.data.errors import DatasetError
from agiledpo.data.examples import Example, Form, Message
from agiledpo.data.layout import Layout, column_forms
from agiledpo.data.messages import check_completion_messages

Pairing = Literal["best_worst", "adjacent", "all"]
PAIRINGS: tuple[str, ...] = get_args(Pairing)

_REMEDY = "Write the completions as [{'rank': 0, 'completion': [messages]}, ...]; the lower rank is preferred."


@dataclass(frozen=True)
class Ranked(Layout):
    """A context of chat messages and its completions, each with a rank: ``{"rank": 0, "completion": [messages]}``.

    Completions of equal rank are never compared. A row in which all ranks are equal has no preference.

    Args:
        context: Column of the messages that the completions answer.
        ranking: Column of the completions.
        pairing: Which completions are compared. "best_worst": the first of the lowest rank with the first of the
            highest. "adjacent": every two whose ranks follow one another in the row. "all": every two of different
            rank. Pairs come in the order of the ranks, those of equal rank in that of the row.

    Raises:
        ValueError: There is no such pairing.
    """

    context: str = "context"
    ranking: str = "completions"
    pairing: Pairing = "best_worst"

    def __post_init__(self) -> None:
        if self.pairing not in PAIRINGS:
            raise ValueError(f"pairing must be one of {', '.join(map(repr, PAIRINGS))}, got {self.pairing!r}.")

    @property
    @override
    def columns(self) -> tuple[str, ...]:
        return self.context, self.ranking

    @property
    @override
    def sources(self) -> tuple[str, ...]:
        return self.ranking, self.ranking

    @override
    def form(self, dataset: Dataset, *, name: str) -> Form:
        forms = column_forms(dataset, self.columns, name=name)
        if forms.get(self.context, Form.CHAT) is not Form.CHAT:
            raise DatasetError(
                "the column does not hold lists of chat messages",
                remedy="Write a context as a list of {'role': ..., 'content': ...} messages.",
                dataset=name,
                column=self.context,
            )
        if forms.get(self.ranking, Form.CHAT) is not Form.CHAT:
            raise self._error("the column does not hold lists of completions with their ranks", name)
        column_type = dataset.features.arrow_schema.field(self.ranking).type
        if self.ranking in forms and pa.types.is_struct(column_type.value_type):
            keys = [field.name for field in column_type.value_type]
            for key in ("rank", "completion"):
                if key not in keys:
                    raise self._error(f"its completions have no {key!r}, only {keys}", name)
        return Form.CHAT

    @override
    def read(self, form: Form, row: int, values: Mapping[str, Any], *, name: str) -> list[Example]:
        context, completions = require_values(values, self.columns, row=row, name=name)
        if not isinstance(completions, list):
            raise self._error(f"expected a list of completions, got {type(completions).__name__}", name, row)
        if len(completions) < 2:
            found = "is 1 completion" if completions else "are 0 completions"
            raise self._error(f"there {found}, and a preference is between two", name, row)
        ranked = [
            self._checked_completion(completion, number, row=row, name=name)
            for number, completion in enumerate(completions)
        ]
        sources = (self.context, *self.sources)
        return [
            checked_example(form, context, pair, values, sources=sources, row=row, name=name)
            for pair in self._pairs(ranked)
        ]

    def _pairs(self, ranked: list[tuple[int, list[Message]]]) -> Iterator[tuple[list[Message], list[Message]]]:
        ranked = sorted(ranked, key=lambda completion: completion[0])
        ranks = sorted({rank for rank, _ in ranked})
        firsts = {rank: completion for rank, completion in reversed(ranked)}
        if self.pairing == "best_worst":
            if len(ranks) > 1:
                yield firsts[ranks[0]], firsts[ranks[-1]]
            return
        places = {rank: place for place, rank in enumerate(ranks)}
        furthest = 1 if self.pairing == "adjacent" else len(ranks)
        for (better, chosen), (worse, rejected) in combinations(ranked, 2):
            if 1 <= places[worse] - places[better] <= furthest:
                yield chosen, rejected

    def _checked_completion(self, value: Any, number: int, *, row: int, name: str) -> tuple[int, list[Message]]:
        where = f"completion {number}"
        if not isinstance(value, Mapping):
            raise self._error(f"{where} is {type(value).__name__}, not a mapping", name, row)
        rank, completion = value.get("rank"), value.get("completion")
        if rank is None:
            raise self._error(f"{where} has no rank", name, row)
        # A column in which some ranks were missing once comes from pandas and Parquet as floats.
        whole = isinstance(rank, Integral) or (isinstance(rank, Real) and float(rank).is_integer())
        if isinstance(rank, bool) or not whole:
            raise self._error(f"the rank of {where} is {rank!r}, not a whole number", name, row)
        if completion is None:
            raise self._error(f"{where} has no 'completion'", name, row)
        try:
            check_completion_messages(completion, row=row, column=self.ranking, name=name)
        except DatasetError as error:
            raise self._error(f"in {where}, {error.problem}", name, row) from error
        return int(rank), completion

    def _error(self, problem: str, name: str, row: int | None = None) -> DatasetError:
        return DatasetError(problem, remedy=_REMEDY, dataset=name, row=row, column=self.ranking)
