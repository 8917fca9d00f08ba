"""What can happen to an agent: one record for each kind of event, and its line of JSON.

Records hold plain Python values only. Nothing in them depends on the machine or the time, so two runs of one seed write
the same lines.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeAlias

import numpy as np

Value: TypeAlias = "str | int | float | bool | tuple[Value, ...] | None"

# JSON has no such numbers; these are the names that JavaScript, pandas and Python's float() know.
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


@dataclass(frozen=True, eq=False, kw_only=True)
class Record:
    """Something that happened. Records are equal if their lines are; NaN equals NaN here.

    NumPy scalars become Python's, lists become tuples, and the strings ``NaN``, ``Infinity`` and ``-Infinity`` become
    numbers, except where a field is text.

    Args:
        pairs: Preference pairs that each agent had learned from by then.

    Raises:
        ValueError: A field has a value that cannot be recorded; event, field and value are named.
    """

    pairs: int

    def __post_init__(self) -> None:
        for each in fields(self):
            value = vars(self)[each.name]
            try:
                object.__setattr__(self, each.name, _PLAIN[each.name](value))
            except (TypeError, OverflowError) as error:
                raise ValueError(f"{type(self).__name__}: {each.name}={value!r} {error}.") from None

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and isinstance(other, Record) and other.as_json() == self.as_json()

    def as_json(self) -> dict[str, Any]:
        """Return a dictionary that JSON can hold, with the kind of the record under ``event``."""
        return {
            "event": type(self).__name__.lower(),
            **{each.name: _json(vars(self)[each.name]) for each in fields(self)},
        }

    def line(self) -> bytes:
        """Return the record as one line of JSON, with its line break."""
        return json.dumps(self.as_json(), allow_nan=False).encode() + b"\n"


@dataclass(frozen=True, eq=False, kw_only=True)
class Born(Record):
    """An agent came into being: a founder at the start, or a copy of its parent after a selection.

    Args:
        agent: Its index, new in this population.
        parent: Index of the agent it was copied from; None for a founder.
        generation: Number of selections before.
        pairs: Pairs seen by then.
        hyperparameters: Its values by name, before any mutation of its own.
    """

    agent: int
    parent: int | None
    generation: int
    hyperparameters: Mapping[str, Value]


@dataclass(frozen=True, eq=False, kw_only=True)
class Evaluated(Record):
    """An agent's fitness was measured.

    Args:
        agent: Its index.
        generation: Number of selections before.
        pairs: Pairs seen by then.
        fitness: Higher is better; may be NaN.
        error: Standard error of the fitness; NaN if unknown.
        tie_break: Decides between equal fitness; higher is better.
        metrics: A few more figures of the evaluation, by name.
    """

    agent: int
    generation: int
    fitness: float
    error: float
    tie_break: float
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False, kw_only=True)
class Validated(Record):
    """An agent, the fittest of an evaluation, was measured on validation sets, by which nothing is selected.

    Args:
        agent: Its index.
        generation: Number of selections before.
        pairs: Pairs seen by then.
        metrics: The figures, ``validation-<set>_<metric>``.
    """

    agent: int
    generation: int
    metrics: Mapping[str, float]


@dataclass(frozen=True, eq=False, kw_only=True)
class Mutated(Record):
    """A hyperparameter of an agent changed.

    Args:
        agent: Its index.
        generation: Number of selections before.
        pairs: Pairs seen by then.
        parameter: Name of the hyperparameter.
        old: Its value before.
        new: Its value from now on.
    """

    agent: int
    generation: int
    parameter: str
    old: Value
    new: Value


@dataclass(frozen=True, eq=False, kw_only=True)
class Diverged(Record):
    """An agent stopped learning.

    Args:
        agent: Its index.
        generation: Number of selections before.
        pairs: Pairs seen by then.
        reason: Why, in a sentence.
    """

    agent: int
    generation: int
    reason: str


@dataclass(frozen=True, eq=False, kw_only=True)
class Selected(Record):
    """A selection decided who goes on. The children that take the places of the replaced follow as ``Born``.

    Args:
        generation: Number of selections, this one included.
        pairs: Pairs seen by then.
        elite: Index of the best agent.
        survivors: Indices of those that go on, the elite among them if it does.
        replaced: Indices of those whose place a child takes.
    """

    generation: int
    elite: int
    survivors: Sequence[int]
    replaced: Sequence[int]


@dataclass(frozen=True, eq=False, kw_only=True)
class Final(Record):
    """The figure that is reported of an agent, measured on a split that no selection ever saw.

    Args:
        agent: Its index.
        pairs: Pairs seen by then.
        split: Name of the split.
        fitness: The figure.
        error: Its standard error; NaN if unknown.
    """

    agent: int
    split: str
    fitness: float
    error: float


_KINDS: dict[str, type[Record]] = {
    kind.__name__.lower(): kind for kind in (Born, Evaluated, Validated, Mutated, Diverged, Selected, Final)
}


def record_from_json(entry: object) -> Record:
    """Make a record from what :meth:`Record.as_json` returned.

    Args:
        entry: A dictionary with ``event`` and the fields of that event.

    Raises:
        ValueError: It is no such dictionary, or a field is missing, unknown or of the wrong type.
    """
    event = entry.get("event") if isinstance(entry, dict) else None
    if not isinstance(entry, dict) or not isinstance(event, str) or event not in _KINDS:
        raise ValueError(f"it is no record; a record has an event, one of {', '.join(_KINDS)}.")
    kind = _KINDS[event]
    try:
        return kind(**{name: value for name, value in entry.items() if name != "event"})
    except TypeError as error:  # a field too many or too few; wrong values are ValueErrors already
        raise ValueError(f"it is no record: {error}.") from None


def record_from_line(line: bytes) -> Record:
    """Make a record from a line of JSON.

    Args:
        line: The line, with or without its line break.

    Raises:
        ValueError: It is not JSON, not UTF-8 or no record.
    """
    try:
        entry = json.loads(line.decode(), parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON: {error.msg} at column {error.colno}.") from None
    return record_from_json(entry)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"it is not JSON: a bare {name}.")


def _json(value: Any) -> Any:
    match value:
        case float() if not math.isfinite(value):
            return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
        case tuple():
            return [_json(part) for part in value]
        case dict():
            return {name: _json(part) for name, part in value.items()}
    return value


# What each field may be, and its plain form. TypeErrors complete the sentence "<field>=<value> ...".


def _count(value: Any) -> int:
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool) and value >= 0:
        return int(value)
    raise TypeError("is not a whole number from 0 on")


def _count_or_none(value: Any) -> int | None:
    return None if value is None else _count(value)


def _counts(value: Any) -> tuple[int, ...]:
    if isinstance(value, (list, tuple)):
        return tuple(_count(part) for part in value)
    raise TypeError("is not a list of whole numbers")


def _number(value: Any) -> float:
    if isinstance(value, str) and value in _NON_FINITE:
        return _NON_FINITE[value]
    if isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool):
        return float(value)
    raise TypeError("is not a number")


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    raise TypeError("is not text")


def _value(value: Any) -> Value:
    match value:
        case str():
            return _NON_FINITE.get(value, value)
        case bool() | np.bool_():
            return bool(value)
        case int() | np.integer():
            return int(value)
        case float() | np.floating():
            return float(value)
        case list() | tuple():
            return tuple(_value(part) for part in value)
        case None:
            return None
    raise TypeError(f"holds a {type(value).__name__}; numbers, text, booleans, None and lists of them can be recorded")


def _by_name(convert: Callable[[Any], Any]) -> Callable[[Any], dict[str, Any]]:
    def each(value: Any) -> dict[str, Any]:
        if isinstance(value, Mapping):
            return {_text(name): convert(part) for name, part in value.items()}
        raise TypeError("is not a dictionary")

    return each


_PLAIN: dict[str, Callable[[Any], Any]] = {
    "agent": _count,
    "elite": _count,
    "error": _number,
    "fitness": _number,
    "generation": _count,
    "hyperparameters": _by_name(_value),
    "metrics": _by_name(_number),
    "new": _value,
    "old": _value,
    "pairs": _count,
    "parameter": _text,
    "parent": _count_or_none,
    "reason": _text,
    "replaced": _counts,
    "split": _text,
    "survivors": _counts,
    "tie_break": _number,
}
