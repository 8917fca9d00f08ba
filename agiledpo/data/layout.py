"""How the rows of a dataset say what is to be learned: the contract of all formats, and what they share."""

import difflib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pyarrow as pa
from datasets import Dataset

from agiledpo.data.definitions import definition_digest
from agiledpo.data.errors import DatasetError
from agiledpo.data.examples import Example, Form, Turns

# Read where they are present, of chat messages only.
TOOLS, TEMPLATE_KWARGS = "tools", "chat_template_kwargs"


class Layout(ABC):
    """Where in a row the prompt and its completions are.

    Layouts are frozen dataclasses: equal ones read the same, and their `identity` is part of the name under which
    tokens are cached. They are read where rows are tokenised, so a dataset in another format is not copied first.

    Attributes:
        completions: What the completions are called, in order.
        extras: Columns that are read if they are there.
    """

    completions: ClassVar[tuple[str, ...]] = ("chosen", "rejected")
    extras: ClassVar[tuple[str, ...]] = (TOOLS, TEMPLATE_KWARGS)

    @property
    @abstractmethod
    def columns(self) -> tuple[str, ...]:
        """The columns that there have to be."""

    @property
    @abstractmethod
    def sources(self) -> tuple[str, ...]:
        """The column that each completion is in."""

    @abstractmethod
    def form(self, dataset: Dataset, *, name: str) -> Form:
        """Tell from the types of the columns how the rows are written.

        Args:
            dataset: From `check_dataset`.
            name: The dataset's name, for messages.

        Raises:
            DatasetError: A column is missing or of a type that this layout cannot read.
        """

    @abstractmethod
    def read(self, form: Form, row: int, values: Mapping[str, Any], *, name: str) -> list[Example]:
        """Take a row apart, and refuse one that cannot be learned from.

        Args:
            form: From `form`.
            row: Row number, for messages.
            values: The row's `present` columns.
            name: The dataset's name, for messages.

        Returns:
            What the row holds; nothing if it prefers neither of its completions.

        Raises:
            DatasetError: A value is missing or malformed, or completions are equal.
        """

    def origin(self, example: Example, values: Mapping[str, Any]) -> Turns:
        """What rows must not have in common to be held out from each other: their prompt, or what it is made of.

        Args:
            example: What `read` made of the row.
            values: The row's `present` columns.
        """
        return example.prompt

    @property
    def identity(self) -> str:
        """Equal for two layouts only if they read the same, in this process or another.

        Of a layout written elsewhere its code is part: who edits it shall not be given the tokens of before.
        """
        cls = type(self)
        if cls.__module__.partition(".")[0] == __name__.partition(".")[0]:
            return repr(self)
        return f"{cls.__module__}.{cls.__qualname__} {definition_digest(cls)} {self!r}"

    def present(self, dataset: Dataset) -> tuple[str, ...]:
        """The columns that are read of a dataset."""
        extras = (column for column in self.extras if column in dataset.column_names and column not in self.columns)
        return (*self.columns, *extras)


def column_forms(dataset: Dataset, columns: Sequence[str], *, name: str) -> dict[str, Form]:
    """Tell from their types whether columns hold text, chat messages or token ids.

    A column whose type says nothing (all values None, all lists empty, values of several types) is left out: it goes
    with the others, and rows that do not are refused one by one.

    Args:
        dataset: From `check_dataset`.
        columns: The columns to look at.
        name: The dataset's name, for messages.

    Raises:
        DatasetError: A column is missing or holds something else.
    """
    require_columns(dataset, columns, name=name)
    schema = dataset.features.arrow_schema
    forms: dict[str, Form] = {}
    for column in columns:
        column_type = schema.field(column).type
        if str(column_type) in ("string", "large_string", "string_view"):
            forms[column] = Form.TEXT
        elif pa.types.is_list(column_type) or pa.types.is_large_list(column_type):
            item = column_type.value_type
            if pa.types.is_struct(item) or isinstance(item, pa.BaseExtensionType):
                forms[column] = Form.CHAT
            elif pa.types.is_integer(item):
                forms[column] = Form.TOKENS
            elif not pa.types.is_null(item):
                raise wrong_type(f"holds lists of {item}", column, name)
        elif not (pa.types.is_null(column_type) or isinstance(column_type, pa.BaseExtensionType)):
            raise wrong_type(f"holds values of type {column_type}", column, name)
    return forms


def text_or_chat(dataset: Dataset, columns: Sequence[str], *, prompt: str, name: str) -> Form:
    """Whether all of these columns are text, or all chat messages.

    Args:
        dataset: From `check_dataset`.
        columns: The columns to look at.
        prompt: The one that is the prompt, for the remedy.
        name: The dataset's name, for messages.

    Raises:
        DatasetError: They are neither, or a column is missing.
    """
    forms = column_forms(dataset, columns, name=name)
    for column, form in forms.items():
        if form is Form.TOKENS:
            raise wrong_type("holds lists of numbers", column, name)
    found = set(forms.values())
    if len(found) == 2:
        raise mixed_forms(forms, prompt, name)
    return found.pop() if found else Form.TEXT


def require_columns(dataset: Dataset, columns: Sequence[str], *, name: str) -> None:
    """Refuse a dataset that lacks a column.

    Raises:
        DatasetError: It does; names the column, and one that may be meant.
    """
    for column in columns:
        if column not in dataset.column_names:
            raise DatasetError(
                f"required column {column!r} is missing; the columns are {dataset.column_names}",
                remedy=_column_remedy(column, columns, dataset.column_names),
                dataset=name,
            )


def wrong_type(problem: str, column: str, name: str) -> DatasetError:
    """The error for a column of a type that cannot be read."""
    return DatasetError(
        f"the column {problem}",
        remedy="Convert it with dataset.map to text, or to a list of {'role': ..., 'content': ...} messages.",
        dataset=name,
        column=column,
    )


def mixed_forms(forms: Mapping[str, Form], prompt: str, name: str, row: int | None = None) -> DatasetError:
    """The error for rows of which one part is text and another chat messages."""
    described = ", ".join(f"{column!r} is {form}" for column, form in forms.items())
    changes = ", ".join(
        f'"{column}": [{{"role": "{"user" if column == prompt else "assistant"}", "content": row["{column}"]}}]'
        for column, form in forms.items()
        if form is Form.TEXT
    )
    return DatasetError(
        f"text and chat messages are mixed: {described}",
        remedy=f"Write all of them as lists of chat messages: dataset.map(lambda row: {{{changes}}}).",
        dataset=name,
        row=row,
    )


def _column_remedy(column: str, columns: Sequence[str], present: list[str]) -> str:
    spare = [other for other in present if other not in columns]
    by_lower_case = {other.lower(): other for other in spare}
    nearest = difflib.get_close_matches(column, list(by_lower_case), n=1, cutoff=0.5)
    if nearest:
        likely = by_lower_case[nearest[0]]
        return f'If {likely!r} is it, rename it to {column!r}: dataset.rename_column("{likely}", "{column}").'
    return f'Rename the column that holds it to {column!r}: dataset.rename_column("<its name>", "{column}").'
