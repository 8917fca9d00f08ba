"""Common beginnings of texts and of token lists."""

from collections.abc import Sequence
from typing import Any


def common_prefix_length(first: Sequence[Any], *others: Sequence[Any]) -> int:
    """Number of leading elements that all sequences share."""
    length = len(first)
    if all(other[:length] == first for other in others):  # nearly always; the loop below is slow
        return length
    length = 0
    for element, *rest in zip(first, *others, strict=False):
        if any(other != element for other in rest):
            break
        length += 1
    return length
