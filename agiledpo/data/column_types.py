"""Of what type the values of a column are, as JSON and Python have them."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from datasets import Features, Json, List, Value

from agiledpo.data.layout import TEMPLATE_KWARGS, TOOLS

_INT64 = range(-(2**63), 2**63)
EXACT = 2**53  # integers up to here are floats too
# Of messages with more keys than these, the keys are data.
_MOST_KEYS = 64
_TOOL_CALLS, _COMPLETION = "tool_calls", "completion"
_KEYS_OF_MESSAGES = ("role", _COMPLETION)
_JSON_COLUMNS = (TOOLS, TEMPLATE_KWARGS)


class Kind(StrEnum):
    """What a value is, as messages call it."""

    TEXT = "text"
    NUMBER = "a number"
    TRUTH = "true or false"
    LIST = "a list"
    OBJECT = "an object"


def kind_of(value: Any) -> Kind | None:
    """The kind of a value that is not None; None if it is none of JSON's."""
    match value:
        case str():
            return Kind.TEXT
        case bool():
            return Kind.TRUTH
        case int() | float():
            return Kind.NUMBER
        case list() | tuple():
            return Kind.LIST
        case dict():
            return Kind.OBJECT
    return None


@dataclass(slots=True)
class ColumnType:
    """What the values of one column are.

    Attributes:
        first: Where each kind occurs first: row and, in a file of text, line.
        items: Kinds of the items of lists.
        integers: Whether all numbers are integers of 64 bits.
        floats: Whether no number is an integer.
        wide: Whether there are integers that a float does not hold.
        keys: Types below the keys of the objects of lists.
        nested: How many lists of objects the values are in.
    """

    first: dict[Kind, tuple[int, int | None]] = field(default_factory=dict)
    items: set[Kind | None] = field(default_factory=set)
    integers: bool = True
    floats: bool = True
    wide: bool = False
    keys: dict[str, "ColumnType"] = field(default_factory=dict)
    nested: int = 0

    def add(self, value: Any, row: int, line: int | None = None) -> None:
        """Take note of a value.

        Args:
            value: A value of the kinds of JSON, not None.
            row: Its row.
            line: Its line, from 1.
        """
        kind = kind_of(value)
        assert kind is not None
        self.first.setdefault(kind, (row, line))
        if kind is Kind.NUMBER:
            self._add_number(value)
        elif kind is Kind.LIST:
            for item in value:
                item_kind = kind_of(item)
                self.items.add(item_kind)
                if item_kind is Kind.NUMBER:
                    self._add_number(item)
                elif item_kind is Kind.OBJECT and self.nested < 2 and len(self.keys) <= _MOST_KEYS:
                    self._add_object(item, row, line)

    def _add_object(self, item: Mapping[str, Any], row: int, line: int | None) -> None:
        for key, value in item.items():
            below = self.keys.setdefault(key, ColumnType(nested=self.nested + 1))
            if value is not None:
                below.add(value, row, line)

    def _add_number(self, number: float) -> None:
        self.integers = self.integers and isinstance(number, int) and number in _INT64
        self.floats = self.floats and isinstance(number, float)
        self.wide = self.wide or (isinstance(number, int) and abs(number) > EXACT)

    @property
    def mixed(self) -> bool:
        """Whether there are values of several kinds."""
        return len(self.first) > 1

    @property
    def alike(self) -> bool:
        """Whether the numbers are all integers of 64 bits or all floats."""
        return self.integers or self.floats

    @property
    def told(self) -> bool:
        """Whether the values tell a type: not if all are None or empty lists."""
        return self.mixed or bool(self.items) or any(kind is not Kind.LIST for kind in self.first)

    def feature(self) -> Any:
        """How datasets keeps the values without changing any.

        Objects are kept as JSON: Arrow would give all of them the keys of each.
        """
        number = Value("int64") if self.integers else Json() if self.wide else Value("float64")
        scalars = {Kind.TEXT: Value("string"), Kind.TRUTH: Value("bool"), Kind.NUMBER: number, Kind.OBJECT: Json()}
        match list(self.first):
            case []:
                return Value("null")
            case [Kind.LIST]:
                item = next(iter(self.items)) if len(self.items) == 1 else None
                if not self.items:
                    return List(Value("null"))
                return Json() if item is None or item is Kind.LIST else List(scalars[item])
            case [kind]:
                return scalars[kind]
        return Json()

    def messages(self) -> dict[str, Any] | None:
        """How datasets keeps the items of lists of messages, or of messages with their rank; None if they are neither.

        Their keys may come in any order, and be None where there are none. Calls of tools are kept as JSON text.
        """
        if self.items != {Kind.OBJECT} or len(self.keys) > _MOST_KEYS or self.keys.keys().isdisjoint(_KEYS_OF_MESSAGES):
            return None
        fields: dict[str, Any] = {}
        for key, below in self.keys.items():
            kinds = set(below.first)
            if key == _TOOL_CALLS and kinds and kinds <= {Kind.LIST, Kind.TEXT}:
                fields[key] = Value("string")
            elif key == _COMPLETION and kinds == {Kind.LIST} and (inner := below.messages()) is not None:
                fields[key] = List(inner)
            elif kinds <= {Kind.TEXT} or kinds == {Kind.TRUTH} or (kinds == {Kind.NUMBER} and below.alike):
                fields[key] = below.feature()
            else:
                return None
        return fields

    def merge(self, other: "ColumnType") -> None:
        """Take note of the values of another file's column."""
        for kind, place in other.first.items():
            self.first.setdefault(kind, place)
        self.items |= other.items
        self.integers = self.integers and other.integers
        self.floats = self.floats and other.floats
        self.wide = self.wide or other.wide
        for key, below in other.keys.items():
            self.keys.setdefault(key, ColumnType(nested=self.nested + 1)).merge(below)


class ColumnTypes(dict[str, ColumnType]):
    """The types of all columns, by name in order of appearance."""

    def add(self, row: Mapping[str, Any], number: int, line: int | None = None) -> None:
        """Take note of a row."""
        for column, value in row.items():
            column_type = self.setdefault(column, ColumnType())
            if value is not None:
                column_type.add(value, number, line)

    def merge(self, other: "ColumnTypes") -> None:
        """Take note of another file's rows; where a kind occurs first is then the first file's."""
        for column, theirs in other.items():
            self.setdefault(column, ColumnType()).merge(theirs)

    def features(self) -> Features:
        """How datasets keeps the columns of what `writer` makes of the rows."""
        return Features({column: self._feature(column) for column in self})

    def writer(self) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
        """Makes JSON text of the parts of a row that Arrow or datasets would change: numbers, keys and their order."""
        of_messages = {column for column in self if self._messages(column) is not None}

        def written(row: Mapping[str, Any]) -> dict[str, Any]:
            return {column: value_of(column, value) for column, value in row.items()}

        def value_of(column: str, value: Any) -> Any:
            if column in _JSON_COLUMNS:
                return json_text(value)
            return _with_calls_as_text(value) if value is not None and column in of_messages else value

        return written

    def _feature(self, column: str) -> Any:
        column_type = self[column]
        if column in _JSON_COLUMNS and column_type.first:
            return Value("string")
        messages = self._messages(column)
        return column_type.feature() if messages is None else List(messages)

    def _messages(self, column: str) -> dict[str, Any] | None:
        column_type = self[column]
        return None if column_type.mixed or column in _JSON_COLUMNS else column_type.messages()


def json_text(value: Any) -> str | None:
    """JSON text of a value; None and what is text already stay."""
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False, allow_nan=False)


def _with_calls_as_text(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    written = []
    for message in messages:
        if _TOOL_CALLS in message:
            message = {**message, _TOOL_CALLS: json_text(message[_TOOL_CALLS])}
        if _COMPLETION in message and isinstance(message[_COMPLETION], list):
            message = {**message, _COMPLETION: _with_calls_as_text(message[_COMPLETION])}
        written.append(message)
    return written
