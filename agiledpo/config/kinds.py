"""Which plain values a type hint allows, and a value as its parameter wants it.

What a file or a command line gives is text, numbers, true and false, null, lists and mappings. YAML 1.1 reads some
numbers as text (``5e-6``), so text that is a number is one where a number is wanted. Nothing else is guessed: true is
no number, and a number is no text.
"""

import re
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from os import PathLike
from typing import Any, Literal, Union, get_args, get_origin

_NUMBER = re.compile(r"[-+]?(\d[\d_]*\.?\d*|\.\d+)([eE][-+]?\d+)?")
_UNIONS = (Union, types.UnionType)


class KindError(ValueError):
    """A value is not of its parameter's kind; the message says what is allowed."""


def coerce(value: Any, hint: Any) -> Any:
    """A value as a parameter with this type hint wants it.

    Args:
        value: Plain data.
        hint: The type hint. Parts of it that no plain value has, such as a function or a device, are ignored.

    Raises:
        KindError: It is none of the values that the hint allows.
    """
    found = _exact(value, hint)
    if found is _NOTHING:
        found = _converted(value, hint)
    if found is _NOTHING:
        raise KindError(describe(hint))
    return found


def describe(hint: Any) -> str:
    """What a type hint allows, in words."""
    words = list(dict.fromkeys(_words(hint)))
    null = [word for word in words if word == "null"]
    return " or ".join([*(word for word in words if word != "null"), *null])


def is_plain(hint: Any) -> bool:
    """Whether plain data can be of a kind at all."""
    return bool(set(_words(hint)) - {"null"})


def allows_null(hint: Any) -> bool:
    """Whether a parameter may be null."""
    return "null" in _words(hint) or hint is Any


# One value --------------------------------------------------------------------------------------------------------


class _Nothing:
    """Stands for no value, since null is one."""


_NOTHING = _Nothing()


def _options(hint: Any) -> Iterable[Any]:
    """The parts of a hint, of which a value has to be one."""
    if get_origin(hint) in _UNIONS:
        for part in get_args(hint):
            yield from _options(part)
    else:
        yield hint


def _exact(value: Any, hint: Any) -> Any:
    """The value if it is one that the hint names, though lists and mappings may hold what is to be converted."""
    for option in _options(hint):
        origin = get_origin(option)
        if option is Any or option is object:
            return value
        if option in (None, type(None)):
            matches = value is None
        elif origin is Literal:
            matches = any(value == choice and type(value) is type(choice) for choice in get_args(option))
        elif option in (bool, int, float, str):
            matches = type(value) is option
        elif _is_path(option):
            matches = isinstance(value, str)
        else:
            found = _container(value, option)
            if found is not _NOTHING:
                return found
            continue
        if matches:
            return value
    return _NOTHING


def _container(value: Any, option: Any) -> Any:
    kind, parts = get_origin(option) or option, get_args(option)
    if not isinstance(kind, type):
        return _NOTHING
    if issubclass(kind, Mapping) and isinstance(value, Mapping):
        key, item = parts or (Any, Any)
        return _all(
            lambda: {coerce(name, key): coerce(held, item) for name, held in value.items()},
        )
    if kind is tuple and parts and parts[-1] is not Ellipsis and isinstance(value, Sequence):
        if isinstance(value, str) or len(value) != len(parts):
            return _NOTHING
        return _all(lambda: [coerce(held, part) for held, part in zip(value, parts, strict=True)])
    if issubclass(kind, Sequence | AbstractSet) and kind is not str and isinstance(value, list | tuple):
        return _all(lambda: [coerce(held, parts[0] if parts else Any) for held in value])
    return _NOTHING


def _all(make: Callable[[], Any]) -> Any:
    try:
        return make()
    except KindError:
        return _NOTHING


def _converted(value: Any, hint: Any) -> Any:
    """A number written in another way."""
    options = list(_options(hint))
    if isinstance(value, bool):
        return _NOTHING
    number = value
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        number = float(value) if re.search(r"[.eE]", value) else int(value)
    if not isinstance(number, int | float):
        return _NOTHING
    if float in options:
        return float(number)
    if int in options and float(number).is_integer():
        return int(number)
    return _NOTHING


def _is_path(option: Any) -> bool:
    kind = get_origin(option) or option
    return isinstance(kind, type) and issubclass(kind, PathLike)


# Words ------------------------------------------------------------------------------------------------------------


def _words(hint: Any) -> Iterable[str]:
    for option in _options(hint):
        kind, parts = get_origin(option) or option, get_args(option)
        if option is Any:
            yield "anything"
        elif option in (None, type(None)):
            yield "null"
        elif kind is Literal:
            yield "one of " + ", ".join(map(str, parts))
        elif option is bool:
            yield "true or false"
        elif option is int:
            yield "a whole number"
        elif option is float:
            yield "a number"
        elif option is str or _is_path(option):
            yield "text"
        elif isinstance(kind, type) and issubclass(kind, Mapping):
            yield "a mapping"
        elif kind is tuple and parts and parts[-1] is not Ellipsis:
            yield f"a list of {len(parts)}: {', '.join(map(describe, parts))}"
        elif isinstance(kind, type) and issubclass(kind, Sequence | AbstractSet):
            plain = describe(parts[0]) if parts and parts[0] is not Any else ""
            yield f"a list, each {plain}" if plain else "a list"
