"""Tell by what a class does whether it is still the same: its name stays when its code is edited."""

import hashlib
import re
from collections.abc import Callable, Iterator
from functools import cached_property
from types import CodeType, FunctionType
from typing import Any

_PLAIN = (str, bytes, int, float, complex, type(None), type(...))
# What Python and dataclasses write themselves; the latter's fields are in the bytecode of what they write.
_GENERATED = frozenset(
    {"__abstractmethods__", "__annotations__", "__dataclass_fields__", "__dataclass_params__", "__dict__", "__doc__"}
    | {"__firstlineno__", "__module__", "__qualname__", "__static_attributes__", "__weakref__", "_abc_impl"}
    | {"__annotate__", "__annotate_func__", "__annotations_cache__", "__replace__"}
)


def definition_digest(cls: type) -> str:
    """Digest of the code of a class, of its bases, and of the functions and constants of its package that it uses.

    It is that of the bytecode that runs, not of a source file, which may have been edited since. It is the same in any
    process of one version of Python, for formatting and comments whatever they are.

    Args:
        cls: The class.

    Returns:
        32 hexadecimal digits.
    """
    package = cls.__module__.partition(".")[0]
    seen: set[int] = set()
    parts = "\n".join(_described(cls, seen, lambda module: module.partition(".")[0] == package))
    return hashlib.sha256(parts.encode(errors="surrogatepass")).hexdigest()[:32]


def _described(value: Any, seen: set[int], own: Callable[[str], bool]) -> Iterator[str]:
    """Lines that differ when the value does; of what others wrote, its name."""
    if isinstance(value, staticmethod | classmethod):
        value = value.__func__
    if isinstance(value, property):
        for accessor in (value.fget, value.fset):
            yield from _described(accessor, seen, own)
    elif isinstance(value, cached_property):
        yield from _described(value.func, seen, own)
    elif isinstance(value, type | FunctionType):
        yield f"{value.__module__}.{value.__qualname__}"
        if id(value) in seen or not own(value.__module__):
            return
        seen.add(id(value))
        yield from _class(value, seen, own) if isinstance(value, type) else _function(value, seen, own)
    elif isinstance(value, set | frozenset):
        # In another process they have another order.
        yield f"set {sorted(' '.join(_described(item, seen, own)) for item in value)}"
    elif isinstance(value, tuple | list):
        yield f"{len(value)} items"
        for item in value:
            yield from _described(item, seen, own)
    elif isinstance(value, dict):
        yield from _described(list(value.items()), seen, own)
    elif isinstance(value, re.Pattern):
        yield f"{value.pattern!r} {value.flags}"
    elif isinstance(value, CodeType):
        yield f"{value.co_code.hex()} {value.co_names} {value.co_varnames} {value.co_freevars} {value.co_cellvars}"
        yield from _described(value.co_consts, seen, own)
    elif isinstance(value, _PLAIN):
        yield repr(value)
    else:
        yield f"{type(value).__module__}.{type(value).__qualname__}"


def _class(cls: type, seen: set[int], own: Callable[[str], bool]) -> Iterator[str]:
    for base in cls.__bases__:
        yield from _described(base, seen, own)
    for name, value in sorted(vars(cls).items()):
        if name not in _GENERATED:
            yield name
            yield from _described(value, seen, own)


def _function(function: FunctionType, seen: set[int], own: Callable[[str], bool]) -> Iterator[str]:
    yield from _described(function.__code__, seen, own)
    yield from _described([function.__defaults__, function.__kwdefaults__], seen, own)
    for cell in function.__closure__ or ():
        try:
            held = cell.cell_contents
        except ValueError:  # not filled yet
            continue
        yield from _described(held, seen, own)
    for name in sorted(_names(function.__code__) & function.__globals__.keys()):
        yield name
        yield from _described(function.__globals__[name], seen, own)


def _names(code: CodeType) -> set[str]:
    """Names that code, and functions inside it, look up."""
    inner = (_names(constant) for constant in code.co_consts if isinstance(constant, CodeType))
    return set(code.co_names).union(*inner)
