"""Preference pairs that are token ids already."""

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from datasets import Dataset
from typing_extensions import override

from agiledpo.data.checking import check_different, require_values
from agiledpo.data.errors import DatasetError
from agiledpo.data.examples import Example, Form
from agiledpo.data.layout import Layout, require_columns

_REMEDY = "Write lists of the tokenizer's ids, as in tokenizer(text)['input_ids'], or give the rows as text."


@dataclass(frozen=True)
class TokenPairs(Layout):
    """The token ids of a prompt and of its two completions.

    Nothing is put before, between or after them: ids are what the model is given.

    Args:
        prompt_ids: Column of the prompt's ids.
        chosen_ids: Column of the preferred completion's ids, which follow the prompt's.
        rejected_ids: Column of the other one's.
    """

    extras: ClassVar[tuple[str, ...]] = ()
    prompt_ids: str = "prompt_ids"
    chosen_ids: str = "chosen_ids"
    rejected_ids: str = "rejected_ids"

    @property
    @override
    def columns(self) -> tuple[str, ...]:
        return self.prompt_ids, self.chosen_ids, self.rejected_ids

    @property
    @override
    def sources(self) -> tuple[str, ...]:
        return self.chosen_ids, self.rejected_ids

    @override
    def form(self, dataset: Dataset, *, name: str) -> Form:
        require_columns(dataset, self.columns, name=name)
        schema = dataset.features.arrow_schema
        for column in self.columns:
            found = schema.field(column).type
            if isinstance(found, pa.ListType | pa.LargeListType | pa.FixedSizeListType):
                found = found.value_type
                if pa.types.is_integer(found) or pa.types.is_null(found):
                    continue
                raise self._error(f"the column holds lists of {found}, not of token ids", name, column)
            if not pa.types.is_null(found):
                raise self._error(f"the column holds values of type {found}, not lists of token ids", name, column)
        return Form.TOKENS

    @override
    def read(self, form: Form, row: int, values: Mapping[str, Any], *, name: str) -> list[Example]:
        found = require_values(values, self.columns, row=row, name=name)
        ids = [
            self._checked_ids(value, column, row=row, name=name)
            for column, value in zip(self.columns, found, strict=True)
        ]
        prompt, *completions = ids
        check_different(completions, self.sources, row=row, name=name)
        return [Example(prompt, tuple(completions))]

    def _checked_ids(self, value: Any, column: str, *, row: int, name: str) -> list[int]:
        if isinstance(value, np.ndarray):
            value = value.tolist()
        if not isinstance(value, list):
            raise self._error(f"expected a list of token ids, got {type(value).__name__}", name, column, row)
        if not value:
            raise self._error("there are no token ids", name, column, row)
        for place, token in enumerate(value):
            if isinstance(token, bool) or not isinstance(token, Integral) or token < 0:
                raise self._error(f"token {place} is {token!r}, not a token id", name, column, row)
        return [int(token) for token in value]

    def _error(self, problem: str, name: str, column: str, row: int | None = None) -> DatasetError:
        return DatasetError(problem, remedy=_REMEDY, dataset=name, row=row, column=column)
