"""Read a dataset once, and remember of it what the checks need."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from agiledpo.data.checks.openings import Openings
from agiledpo.data.checks.pair_table import PairTable
from agiledpo.data.checks.texts import beginning, length, plain_text
from agiledpo.data.checks.traps import TRAPS
from agiledpo.data.checks.unusable import UnusableRows
from agiledpo.data.errors import DatasetError
from agiledpo.data.examples import Example, Form
from agiledpo.data.layout import Layout
from agiledpo.data.tokenization import TokenizedRow, tokenize_rows

_BATCH = 1000
_Measured = tuple[int, Example | None, Sequence[int]]


@dataclass(slots=True)
class Sightings:
    """How often something was seen, and where first."""

    count: int = 0
    first: list[tuple[int, str]] = field(default_factory=list)  # row and excerpt

    def add(self, row: int, excerpt: str, most: int) -> None:
        """Count it; keep it if fewer than `most` are kept."""
        self.count += 1
        if len(self.first) < most:
            self.first.append((row, excerpt))


@dataclass(slots=True)
class Scan:
    """What one pass over a dataset leaves behind.

    Attributes:
        rows: How many rows there are.
        unusable: Those that training refuses.
        without_preference: Those that prefer neither completion.
        nearly_identical: Pairs whose completions differ in nothing but case and whitespace.
        traps: By name, pairs whose texts are probably not what is meant.
        openings: How completions begin.
        pairs: All pairs, in numbers.
    """

    rows: int
    unusable: UnusableRows
    without_preference: Sightings = field(default_factory=Sightings)
    nearly_identical: Sightings = field(default_factory=Sightings)
    traps: dict[str, Sightings] = field(default_factory=lambda: {trap.check: Sightings() for trap in TRAPS})
    openings: Openings = field(default_factory=Openings)
    pairs: PairTable = field(default_factory=PairTable)


def scan(
    dataset: Dataset,
    layout: Layout,
    form: Form,
    tokenizer: PreTrainedTokenizerBase | None,
    template_kwargs: Mapping[str, Any],
    *,
    name: str,
    examples: int,
    show_progress: bool,
) -> Scan:
    """Read all rows, and go on where training would stop.

    Args:
        dataset: From `check_dataset`.
        layout: Where the prompt and its completions are.
        form: From the layout.
        tokenizer: From `isolated_copy`, for lengths in tokens and for what only tokenising finds; None for characters.
        template_kwargs: What its chat template is told for all rows.
        name: The dataset's name, for messages.
        examples: How many rows to keep of everything that is found.
        show_progress: Whether to draw a progress bar.
    """
    found = Scan(len(dataset), UnusableRows(examples))
    columns = dataset.select_columns(list(layout.present(dataset)))
    reader = _Reader(layout, form, tokenizer, template_kwargs, found.unusable, name)
    with tqdm(total=len(dataset), desc=f"Checking {name} dataset", unit=" rows", disable=not show_progress) as bar:
        for start in range(0, len(dataset), _BATCH):
            batch = columns[start : start + _BATCH]
            rows = range(start, min(start + _BATCH, len(dataset)))
            for row, example, lengths in reader.read(batch, rows):
                if example is None:
                    found.without_preference.add(row, "", examples)
                else:
                    _look(found, form, row, example, lengths, examples)
            bar.update(len(rows))
    return found


def _look(found: Scan, form: Form, row: int, example: Example, lengths: Sequence[int], most: int) -> None:
    chosen, rejected = map(plain_text, example.completions)
    if found.pairs.add(row, example, lengths):
        found.nearly_identical.add(row, beginning(chosen), most)
    if form is not Form.TOKENS:
        found.openings.add((chosen, rejected))
    for trap in TRAPS:
        excerpt = trap.find(form, example)
        if excerpt is not None:
            found.traps[trap.check].add(row, excerpt, most)


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads rows as training would, but goes on after an error."""

    layout: Layout
    form: Form
    tokenizer: PreTrainedTokenizerBase | None
    template_kwargs: Mapping[str, Any]
    unusable: UnusableRows
    name: str

    def read(self, batch: Mapping[str, Sequence[Any]], rows: Sequence[int]) -> Iterator[_Measured]:
        """What rows hold, with lengths of prompt and completions; None for a row without a preference."""
        usable: dict[int, list[Example]] = {}
        for place, row in enumerate(rows):
            values = {column: of_rows[place] for column, of_rows in batch.items()}
            try:
                usable[row] = self.layout.read(self.form, row, values, name=self.name)
            except DatasetError as error:
                self.unusable.add(error)
        if self.tokenizer is None:
            for row, examples in usable.items():
                for example in examples:
                    yield row, example, [length(turns) for turns in (example.prompt, *example.completions)]
                if not examples:
                    yield row, None, ()
            return
        tokens: dict[int, list[TokenizedRow]] = {row: [] for row in usable}
        for tokenized in self._tokenize(batch, rows[0], list(usable)):
            tokens[tokenized.row].append(tokenized)
        for row, examples in usable.items():
            if not examples:
                yield row, None, ()
            # A row that tokenising refused has none.
            for example, ids in zip(examples, tokens[row], strict=False):
                yield row, example, [len(part) for part in (ids.prompt_ids, *ids.completion_ids)]

    def _tokenize(self, batch: Mapping[str, Sequence[Any]], first: int, rows: Sequence[int]) -> Iterator[TokenizedRow]:
        assert self.tokenizer is not None
        part = {column: [of_rows[row - first] for row in rows] for column, of_rows in batch.items()}
        try:
            yield from tokenize_rows(
                part, rows, self.tokenizer, self.form, self.layout, self.template_kwargs, name=self.name
            )
        except DatasetError as error:
            if len(rows) == 1:
                self.unusable.add(error)
                return
            # The error is of one row: it is found by halving.
            middle = len(rows) // 2
            yield from self._tokenize(batch, first, rows[:middle])
            yield from self._tokenize(batch, first, rows[middle:])
