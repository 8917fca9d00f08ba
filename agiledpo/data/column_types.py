"""Of what type the values of a column are, as JSON and Python have them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from datasets import Features, Json, List, Value

_INT64 = range(-(2**63), 2**63)
_EXACT = 2**53  # integers up to here are floats too


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
        wide: Whether there are integers that a float does not hold.
    """

    first: dict[Kind, tuple[int, int | None]] = field(default_factory=dict)
    items: set[Kind | None] = field(default_factory=set)
    integers: bool = True
    wide: bool = False

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

    def _add_number(self, number: float) -> None:
        self.integers = self.integers and isinstance(number, int) and number in _INT64
        self.wide = self.wide or (isinstance(number, int) and abs(number) > _EXACT)

    @property
    def mixed(self) -> bool:
        """Whether there are values of several kinds."""
        return len(self.first) > 1

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
            ours = self.setdefault(column, ColumnType())
            for kind, place in theirs.first.items():
                ours.first.setdefault(kind, place)
            ours.items |= theirs.items
            ours.integers = ours.integers and theirs.integers
            ours.wide = ours.wide or theirs.wide

    def features(self) -> Features:
        """How datasets keeps the columns without changing any value."""
        return Features({column: column_type.feature() for column, column_type in self.items()})
