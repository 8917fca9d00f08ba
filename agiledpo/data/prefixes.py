"""Common beginnings of texts and of token lists."""

from collections.abc import Sequence
from typing import Any


def common_prefix_length(first: Sequence[Any], *others: Sequence[Any]) -> int:
    """Number of leading elements that all sequences share."""
    length = len(first)
    if all(other[:length] == first for other in others):  # nearly always
        return length
    # Bisection, for slices are compared much faster than elements in a loop.
    shared, beyond = 0, min(len(first), *map(len, others)) + 1
    while beyond - shared > 1:
        middle = (shared + beyond) // 2
        part = first[shared:middle]
        if all(other[shared:middle] == part for other in others):
            shared = middle
        else:
            beyond = middle
    return shared
