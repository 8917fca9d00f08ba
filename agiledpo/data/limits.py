"""How long rows may be, and what becomes of longer ones."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

# What becomes of rows of more than max_context_length tokens.
Truncation = Literal["drop", "keep_end", "keep_start"]


@dataclass(frozen=True, slots=True)
class LengthLimits:
    """Limits on the number of tokens.

    Attributes:
        max_context_length: Most tokens of prompt and completion together, or None for no limit.
        min_completion_length: Fewest tokens of a completion, its end-of-sequence token included, or None for no limit.
        truncation: What becomes of rows with more: "drop" leaves them out; "keep_end" cuts the beginning of the prompt,
            the same for all completions and never its beginning-of-sequence token; "keep_start" cuts the end of
            completions, which then have no end-of-sequence token.

    Raises:
        TypeError: A limit is not an integer.
        ValueError: The limits leave no room for a prompt of one token, or there is no such truncation, or nothing to
            truncate to.
    """

    max_context_length: int | None = None
    min_completion_length: int | None = None
    truncation: Truncation = "drop"

    def __post_init__(self) -> None:
        if self.truncation not in get_args(Truncation):
            raise ValueError(f"truncation must be one of {list(get_args(Truncation))}, got {self.truncation!r}.")
        if self.truncation != "drop" and self.max_context_length is None:
            raise ValueError(f"truncation={self.truncation!r} needs max_context_length: it is what rows are cut to.")
        _check_limit("max_context_length", self.max_context_length, lowest=2)
        _check_limit("min_completion_length", self.min_completion_length, lowest=0)
        if self.max_context_length is not None and self.max_context_length <= self.least_completion:
            raise ValueError(
                f"max_context_length ({self.max_context_length}) must be larger than "
                f"min_completion_length ({self.min_completion_length}): a prompt needs room too."
            )

    @property
    def context(self) -> int:
        """`max_context_length` as a number."""
        return np.iinfo(np.int64).max if self.max_context_length is None else self.max_context_length

    @property
    def least_completion(self) -> int:
        """`min_completion_length` as a number."""
        return self.min_completion_length or 0

    @property
    def least_room(self) -> int:
        """Tokens that a prompt must leave to its completions."""
        return max(1, self.least_completion) if self.truncation == "keep_start" else self.least_completion


def _check_limit(limit: str, value: Any, *, lowest: int) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{limit} must be an int or None, got {value!r}.")
    if value < lowest:
        raise ValueError(f"{limit} must be at least {lowest}, got {value}.")
