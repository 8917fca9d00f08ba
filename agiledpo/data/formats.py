"""Recognise the form of a dataset and check its rows."""

import difflib
from collections.abc import Sequence
from enum import StrEnum
from itertools import combinations
from typing import Any

import pyarrow as pa
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

from agiledpo.data.columns import RowColumns
from agiledpo.data.errors import DatasetError
from agiledpo.data.messages import check_completion_messages, check_prompt_messages, split_dialogue


class Form(StrEnum):
    """How the rows of a dataset are written."""

    TEXT = "text"
    CHAT = "chat"


def check_dataset(dataset: Any, *, name: str) -> Dataset:
    """Return `dataset` without its output format if it is a `datasets.Dataset` with rows.

    Args:
        dataset: What the user handed over.
        name: The dataset's name in messages, "train" or "test".

    Raises:
        DatasetError: It is something else, is empty or computes its columns on access.
    """
    if not isinstance(dataset, Dataset):
        raise DatasetError(
            f"expected a datasets.Dataset, got {type(dataset).__name__}", remedy=_type_remedy(dataset), dataset=name
        )
    if dataset.format["type"] == "custom":
        raise DatasetError(
            "its columns are computed on access by set_transform or with_transform",
            remedy="Compute them once with dataset.map and pass the result.",
            dataset=name,
        )
    if len(dataset) == 0:
        raise DatasetError("it has no rows", remedy="Check the filter or the split that produced it.", dataset=name)
    # A torch or numpy output format would hand out tensors in place of lists.
    return dataset.with_format(None)


def recognise_form(dataset: Dataset, columns: RowColumns, *, name: str) -> Form:
    """Tell from the column types whether the rows are text or chat messages.

    A column whose type says nothing (all values None, all lists empty) goes with the other columns, and its rows are
    then refused one by one by `check_row`.

    Args:
        dataset: From `check_dataset`.
        columns: The columns to look at.
        name: The dataset's name, for messages.

    Raises:
        DatasetError: A column is missing or is neither text nor messages, or text and messages are mixed.
    """
    for column in columns.columns:
        if column not in dataset.column_names:
            raise DatasetError(
                f"required column {column!r} is missing; the columns are {dataset.column_names}",
                remedy=_column_remedy(column, columns, dataset.column_names),
                dataset=name,
            )
    schema = dataset.features.arrow_schema
    forms: dict[str, Form] = {}
    for column in columns.columns:
        column_type = schema.field(column).type
        if str(column_type) in ("string", "large_string", "string_view"):
            forms[column] = Form.TEXT
        elif pa.types.is_list(column_type) or pa.types.is_large_list(column_type):
            item = column_type.value_type
            if pa.types.is_struct(item) or isinstance(item, pa.BaseExtensionType):
                forms[column] = Form.CHAT
            elif not pa.types.is_null(item):
                raise _wrong_type(f"holds lists of {item}", column, name)
        elif not (pa.types.is_null(column_type) or isinstance(column_type, pa.BaseExtensionType)):
            raise _wrong_type(f"holds values of type {column_type}", column, name)
    found = set(forms.values())
    if len(found) == 2:
        raise _mixed_forms(forms, columns, name)
    if columns.holds_dialogues and Form.TEXT in found:
        raise _wrong_type("holds text, not chat messages", columns.prompt, name)
    return found.pop() if found else Form.TEXT


def read_row(form: Form, columns: RowColumns, row: int, values: Sequence[Any], *, name: str) -> tuple[Any, ...]:
    """Take a row apart, and refuse one that cannot be learned from.

    Args:
        form: The form of the dataset.
        columns: What the values are.
        row: Row number, for the message.
        values: The row's values in the order of `columns.columns`: texts; or messages, of which a prompt's end with the
            turn to be answered, a completion's answer it, and a dialogue's do both.
        name: The dataset's name, for the message.

    Returns:
        The prompt, then its completions.

    Raises:
        DatasetError: A value is None or of the wrong type, a completion is empty, a message is malformed, or
            completions are equal.
    """
    for column, value in zip(columns.columns, values, strict=True):
        if value is None:
            raise DatasetError(
                "the value is None",
                remedy=f"Fill it in, or drop such rows: dataset.filter(lambda row: row[{column!r}] is not None).",
                dataset=name,
                row=row,
                column=column,
            )
    prompt, *completions = (
        split_dialogue(values[0], row=row, column=columns.prompt, name=name) if columns.holds_dialogues else values
    )
    if form is Form.TEXT:
        _check_text(prompt, row=row, column=columns.prompt, name=name, may_be_empty=True)
    else:
        check_prompt_messages(prompt, row=row, column=columns.prompt, name=name)
    for column, completion in zip(columns.sources, completions, strict=True):
        if form is Form.TEXT:
            _check_text(completion, row=row, column=column, name=name)
        else:
            check_completion_messages(completion, row=row, column=column, name=name)
    for (one, first), (other, second) in combinations(zip(columns.sources, completions, strict=True), 2):
        if first == second:
            raise DatasetError(
                f"{one} and {other} are equal, so there is nothing to prefer",
                remedy=f'Drop such rows: dataset.filter(lambda row: row["{one}"] != row["{other}"]).',
                dataset=name,
                row=row,
            )
    return prompt, *completions


def _check_text(value: Any, *, row: int, column: str, name: str, may_be_empty: bool = False) -> None:
    if not isinstance(value, str):
        raise DatasetError(
            f"expected text, got {type(value).__name__}",
            remedy="Convert the column to text with dataset.map.",
            dataset=name,
            row=row,
            column=column,
        )
    if not may_be_empty and not value.strip():
        raise DatasetError(
            "the completion is empty or only whitespace",
            remedy=f"Drop such rows: dataset.filter(lambda row: row[{column!r}].strip()).",
            dataset=name,
            row=row,
            column=column,
        )


def _type_remedy(dataset: Any) -> str:
    if isinstance(dataset, DatasetDict | IterableDatasetDict):
        splits = list(dataset)
        return f'Pass one split of it, such as dataset["{splits[0] if splits else "train"}"]; it has {splits}.'
    if isinstance(dataset, IterableDataset):
        return "Load it without streaming=True, or collect it with datasets.Dataset.from_list(list(dataset))."
    if isinstance(dataset, Sequence) and not isinstance(dataset, str):
        return "Convert it with datasets.Dataset.from_list(rows)."
    if isinstance(dataset, str):
        return "Load it first with datasets.load_dataset."
    return "Convert it, for example with datasets.Dataset.from_list, from_dict or from_pandas."


def _column_remedy(column: str, columns: RowColumns, present: list[str]) -> str:
    spare = [other for other in present if other not in columns.columns]
    by_lower_case = {other.lower(): other for other in spare}
    nearest = difflib.get_close_matches(column, list(by_lower_case), n=1, cutoff=0.5)
    if nearest:
        likely = by_lower_case[nearest[0]]
        return f'If {likely!r} is it, use dataset.rename_column("{likely}", "{column}").'
    return f'Name the column that holds it with dataset.rename_column("<its name>", "{column}").'


def _wrong_type(problem: str, column: str, name: str) -> DatasetError:
    return DatasetError(
        f"the column {problem}",
        remedy="Convert it with dataset.map to text, or to a list of {'role': ..., 'content': ...} messages.",
        dataset=name,
        column=column,
    )


def _mixed_forms(forms: dict[str, Form], columns: RowColumns, name: str) -> DatasetError:
    described = ", ".join(f"{column!r} is {form}" for column, form in forms.items())
    changes = ", ".join(
        f'"{column}": [{{"role": "{"user" if column == columns.prompt else "assistant"}", "content": row["{column}"]}}]'
        for column, form in forms.items()
        if form is Form.TEXT
    )
    return DatasetError(
        f"text and chat messages are mixed: {described}",
        remedy=f"Make all of them the same, for example dataset.map(lambda row: {{{changes}}}).",
        dataset=name,
    )
