"""Other forward passes for some modules, for a time."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def replaced_forwards(replacements: Iterable[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    """Give modules the forward passes; afterwards each has what it had, be it its class's or one of its own.

    Args:
        replacements: Modules, each once, and their forward passes.
    """
    previous: list[tuple[nn.Module, Callable[..., Any] | None]] = []
    try:
        for module, forward in replacements:
            previous.append((module, vars(module).get("forward")))
            module.forward = forward
        yield
    finally:
        for module, own in previous:
            del module.forward
            if own is not None:
                module.forward = own
