"""Whether what a state says of an agent is of the types that an agent has; a state may come from anybody's file."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

_FORMS = {float: "a number", int: "a whole number", bool: "True or False", str: "text", tuple: "names or numbers"}


def check_types(algorithm: type, kinds: Mapping[str, type], values: Mapping[str, Any]) -> None:
    """Check that hyperparameters are of their types; whether they make sense is for ``check_settings`` to say.

    Args:
        algorithm: Class of the agent. None is a value of a hyperparameter only where it is the constructor's default.
        kinds: Type of each hyperparameter by name.
        values: Values by name.

    Raises:
        ValueError: One is of another type; name and value are given.
    """
    arguments = inspect.signature(algorithm).parameters
    for name, value in values.items():
        if value is None:
            right = name not in arguments or arguments[name].default in (None, inspect.Parameter.empty)
        else:
            right = _is(value, kinds[name])
        if not right:
            raise ValueError(f"{name}={value!r} must be {_FORMS.get(kinds[name], kinds[name].__name__)}")


def check_history(state: Mapping[str, Any]) -> None:
    """Check the types of what an agent has lived through, and of the counters that go with it.

    Args:
        state: What :meth:`LLMAlgorithm.state_dict` gave, or a file says that it did.

    Raises:
        ValueError: Something is missing or of another type; name and value are given.
    """
    missing = _HISTORY.keys() - state.keys()
    if missing:
        raise ValueError(f"the state lacks {', '.join(sorted(missing))}")
    for name, (right, form) in _HISTORY.items():
        if not right(state[name]):
            raise ValueError(f"{name}={state[name]!r} must be {form}")


def _is(value: object, kind: type) -> bool:
    if kind is float:
        return _is_number(value)
    if kind is int:
        return _is_whole(value)
    # A loss may be set by its name, and names as a list.
    return isinstance(value, (str, tuple, list) if kind is tuple else kind)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_count(value: object) -> bool:
    return _is_whole(value) and value >= 0  # type: ignore[operator]


def _all(right: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, list) and all(map(right, value))


def _or_none(right: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: value is None or right(value)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


_HISTORY: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "index": (_is_whole, "a whole number"),
    "parent": (_or_none(_is_whole), "a whole number or None"),
    "fitness": (_all(_is_number), "a list of numbers"),
    "fitness_errors": (_all(_is_number), "a list of numbers"),
    "tie_break": (_is_number, "a number"),
    "held_out": (
        lambda value: isinstance(value, dict) and all(map(_is_text, value)) and all(map(_is_number, value.values())),
        "numbers by name",
    ),
    "diverged": (_or_none(_is_text), "text or None"),
    "scores": (_all(_is_number), "a list of numbers"),
    "steps": (lambda value: _all(_is_count)(value) and len(value) > 0, "a list of at least one whole number"),
    "mut": (_or_none(_is_text), "text or None"),
    "optimizer_steps": (_is_count, "a whole number of at least 0"),
    "reference_update_tracker": (_is_count, "a whole number of at least 0"),
    "applied": (
        lambda value: isinstance(value, (tuple, list)) and len(value) == 2 and all(map(_is_number, value)),
        "learning rate and weight decay, two numbers",
    ),
}
