"""Refuse datasets, and rows, that cannot be learned from."""

import ast
import json
import re
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

from agiledpo.data.errors import DatasetError
from agiledpo.data.examples import Example, Form, Turns
from agiledpo.data.extras import read_template_kwargs, read_tools
from agiledpo.data.layout import TEMPLATE_KWARGS, TOOLS
from agiledpo.data.messages import ROLES, check_completion_messages, check_prompt_messages

_BEGINS_AS_MESSAGES = re.compile(r"\s*\[\s*\{")


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


def require_values(values: Mapping[str, Any], columns: Sequence[str], *, row: int, name: str) -> list[Any]:
    """The values of columns, none of which may be None.

    Raises:
        DatasetError: One is.
    """
    for column in columns:
        if values[column] is None:
            raise DatasetError(
                "the value is None",
                remedy=f"Fill it in, or drop such rows: dataset.filter(lambda row: row[{column!r}] is not None).",
                dataset=name,
                row=row,
                column=column,
            )
    return [values[column] for column in columns]


def checked_example(
    form: Form,
    prompt: Turns,
    completions: Sequence[Turns],
    values: Mapping[str, Any],
    *,
    sources: Sequence[str],
    row: int,
    name: str,
) -> Example:
    """A prompt with its completions, if they can be learned from.

    Args:
        form: Text or chat.
        prompt: The prompt.
        completions: Its completions.
        values: The row, for what the chat template is told beside the messages.
        sources: Column of the prompt, then of each completion.
        row: Row number, for messages.
        name: The dataset's name, for messages.

    Raises:
        DatasetError: A value is of the wrong type, a completion is empty, a message is malformed, or completions are
            equal.
    """
    prompt_source, *completion_sources = sources
    if form is Form.TEXT:
        check_text(prompt, row=row, column=prompt_source, name=name, may_be_empty=True)
    else:
        check_prompt_messages(prompt, row=row, column=prompt_source, name=name, may_begin_answer=not completions)
    for column, completion in zip(completion_sources, completions, strict=True):
        if form is Form.TEXT:
            check_text(completion, row=row, column=column, name=name)
        else:
            check_completion_messages(completion, row=row, column=column, name=name)
    check_different(completions, completion_sources, row=row, name=name)
    tools = read_tools(values.get(TOOLS), row=row, name=name)
    template_kwargs = read_template_kwargs(values.get(TEMPLATE_KWARGS), row=row, name=name)
    if form is Form.TEXT and (tools or template_kwargs):
        told = TOOLS if tools else TEMPLATE_KWARGS
        raise DatasetError(
            f"the chat template is to be told {told}, but the row is text, which no template renders",
            remedy=f"Write the row as chat messages, or drop the column: dataset.remove_columns({told!r}).",
            dataset=name,
            row=row,
            column=told,
        )
    return Example(prompt, tuple(completions), tools=tools, chat_template_kwargs=template_kwargs)


def check_different(completions: Sequence[Turns], sources: Sequence[str], *, row: int, name: str) -> None:
    """Refuse completions that are equal.

    Raises:
        DatasetError: Two of them are.
    """
    for (one, first), (other, second) in combinations(zip(sources, completions, strict=True), 2):
        if first == second:
            remedy = f'Drop such rows: dataset.filter(lambda row: row["{one}"] != row["{other}"]).'
            raise DatasetError(
                f"{one} and {other} are equal, so there is nothing to prefer"
                if one != other
                else f"two of {one} are equal, so there is nothing to prefer",
                remedy=remedy if one != other else "Drop the row.",
                dataset=name,
                row=row,
            )


def check_text(value: Any, *, row: int, column: str, name: str, may_be_empty: bool = False) -> None:
    """Refuse what is not text, says nothing, or is a list of chat messages that was written as text.

    Args:
        value: The value.
        row: Row number, for messages.
        column: Its column, for messages.
        name: The dataset's name, for messages.
        may_be_empty: Whether it may say nothing.

    Raises:
        DatasetError: See above.
    """
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
    if _BEGINS_AS_MESSAGES.match(value) and _are_messages(value):
        raise DatasetError(
            "the text is a list of chat messages that was written as text, and would be trained on as it stands here",
            remedy="Write the messages as lists, in JSONL or Parquet, not CSV: "
            f"dataset.map(lambda row: {{{column!r}: json.loads(row[{column!r}])}}).",
            dataset=name,
            row=row,
            column=column,
        )


def _are_messages(text: str) -> bool:
    """Whether a text is what `json.dumps` or `str` makes of chat messages."""
    for parse in (json.loads, ast.literal_eval):
        try:
            found = parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return isinstance(found, list) and all(isinstance(item, dict) and item.get("role") in ROLES for item in found)
    return False


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
