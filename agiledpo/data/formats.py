"""Recognise the form of a preference dataset and check its rows."""

import difflib
from collections.abc import Sequence
from enum import StrEnum
from typing import Any

import pyarrow as pa
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

from agiledpo.data.errors import PreferenceDataError
from agiledpo.data.messages import check_completion_messages, check_prompt_messages

COLUMNS = ("prompt", "chosen", "rejected")


class Form(StrEnum):
    """How the rows of a dataset are written."""

    TEXT = "text"
    CHAT = "chat"


def check_dataset(dataset: Any, *, name: str) -> Dataset:
    """Return `dataset` without its output format if it is a `datasets.Dataset` with rows and the three columns.

    Args:
        dataset: What the user handed over.
        name: The dataset's name in messages, "train" or "test".

    Raises:
        PreferenceDataError: It is something else, is empty, lacks a column or computes its columns on access.
    """
    if not isinstance(dataset, Dataset):
        raise PreferenceDataError(
            f"expected a datasets.Dataset, got {type(dataset).__name__}", remedy=_type_remedy(dataset), dataset=name
        )
    if dataset.format["type"] == "custom":
        raise PreferenceDataError(
            "its columns are computed on access by set_transform or with_transform",
            remedy="Compute them once with dataset.map and pass the result.",
            dataset=name,
        )
    if len(dataset) == 0:
        raise PreferenceDataError(
            "it has no rows", remedy="Check the filter or the split that produced it.", dataset=name
        )
    # A torch or numpy output format would hand out tensors in place of lists.
    dataset = dataset.with_format(None)
    for column in COLUMNS:
        if column not in dataset.column_names:
            raise PreferenceDataError(
                f"required column {column!r} is missing; the columns are {dataset.column_names}",
                remedy=_column_remedy(column, dataset.column_names),
                dataset=name,
            )
    return dataset


def recognise_form(dataset: Dataset, *, name: str) -> Form:
    """Tell from the column types whether the rows are text or chat messages.

    A column whose type says nothing (all values None, all lists empty) goes with the other columns, and its rows are
    then refused one by one by `check_row`.

    Raises:
        PreferenceDataError: A column is neither text nor messages, or text and messages are mixed.
    """
    schema = dataset.features.arrow_schema
    forms: dict[str, Form] = {}
    for column in COLUMNS:
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
        raise _mixed_forms(forms, name)
    return found.pop() if found else Form.TEXT


def check_row(form: Form, row: int, prompt: Any, chosen: Any, rejected: Any, *, name: str) -> None:
    """Refuse a row that cannot be learned from.

    Args:
        form: The form of the dataset.
        row: Row number, for the message.
        prompt: Text, or messages ending with the turn to be answered.
        chosen: Text, or the messages that answer the prompt.
        rejected: As `chosen`.
        name: The dataset's name, for the message.

    Raises:
        PreferenceDataError: A value is None or of the wrong type, a completion is empty, a message is malformed, or
            chosen and rejected are equal.
    """
    for column, value in zip(COLUMNS, (prompt, chosen, rejected), strict=True):
        if value is None:
            raise PreferenceDataError(
                "the value is None",
                remedy=f"Fill it in, or drop such rows: dataset.filter(lambda row: row[{column!r}] is not None).",
                dataset=name,
                row=row,
                column=column,
            )
        if form is Form.TEXT:
            _check_text(value, row=row, column=column, name=name)
        elif column == "prompt":
            check_prompt_messages(value, row=row, name=name)
        else:
            check_completion_messages(value, row=row, column=column, name=name)
    if chosen == rejected:
        raise PreferenceDataError(
            "chosen and rejected are equal, so there is nothing to prefer",
            remedy='Drop such rows: dataset.filter(lambda row: row["chosen"] != row["rejected"]).',
            dataset=name,
            row=row,
        )


def _check_text(value: Any, *, row: int, column: str, name: str) -> None:
    if not isinstance(value, str):
        raise PreferenceDataError(
            f"expected text, got {type(value).__name__}",
            remedy="Convert the column to text with dataset.map.",
            dataset=name,
            row=row,
            column=column,
        )
    if column != "prompt" and not value.strip():
        raise PreferenceDataError(
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


def _column_remedy(column: str, columns: list[str]) -> str:
    spare = [other for other in columns if other not in COLUMNS]
    by_lower_case = {other.lower(): other for other in spare}
    nearest = difflib.get_close_matches(column, list(by_lower_case), n=1, cutoff=0.5)
    if nearest:
        likely = by_lower_case[nearest[0]]
        return f'If {likely!r} is it, use dataset.rename_column("{likely}", "{column}").'
    return f'Name the column that holds it with dataset.rename_column("<its name>", "{column}").'


def _wrong_type(problem: str, column: str, name: str) -> PreferenceDataError:
    return PreferenceDataError(
        f"the column {problem}",
        remedy="Convert it with dataset.map to text, or to a list of {'role': ..., 'content': ...} messages.",
        dataset=name,
        column=column,
    )


def _mixed_forms(forms: dict[str, Form], name: str) -> PreferenceDataError:
    described = ", ".join(f"{column!r} is {form}" for column, form in forms.items())
    changes = ", ".join(
        f'"{column}": [{{"role": "{"user" if column == "prompt" else "assistant"}", "content": row["{column}"]}}]'
        for column, form in forms.items()
        if form is Form.TEXT
    )
    return PreferenceDataError(
        f"text and chat messages are mixed: {described}",
        remedy=f"Make all three the same, for example dataset.map(lambda row: {{{changes}}}).",
        dataset=name,
    )
