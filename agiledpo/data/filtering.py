"""Leave out the rows that do not fit. No row is ever shortened."""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agiledpo.data.errors import DatasetError


@dataclass(frozen=True, slots=True)
class LengthLimits:
    """Limits on the number of tokens.

    Attributes:
        max_context_length: Most tokens of prompt and completion together, or None for no limit.
        min_completion_length: Fewest tokens of a completion, its end-of-sequence token included, or None for no limit.

    Raises:
        TypeError: A limit is not an integer.
        ValueError: The limits leave no room for a prompt of one token.
    """

    max_context_length: int | None = None
    min_completion_length: int | None = None

    def __post_init__(self) -> None:
        _check_limit("max_context_length", self.max_context_length, lowest=2)
        _check_limit("min_completion_length", self.min_completion_length, lowest=0)
        if self.max_context_length is not None and self.max_context_length <= self.least_completion:
            raise ValueError(
                f"max_context_length ({self.max_context_length}) must be larger than "
                f"min_completion_length ({self.min_completion_length}): a prompt needs room too."
            )

    @property
    def least_completion(self) -> int:
        """`min_completion_length` as a number."""
        return self.min_completion_length or 0


@dataclass(frozen=True, slots=True)
class FilterCounts:
    """How many rows were left out of a dataset and why. A row counts for the first cause that applies.

    Attributes:
        total: Rows before filtering.
        without_preference: The row prefers neither of its completions.
        prompt_too_long: The prompt leaves no room for `min_completion_length` tokens.
        pair_too_long: The prompt with its longest completion exceeds `max_context_length`.
        completion_too_short: A completion has fewer than `min_completion_length` tokens.
    """

    total: int
    without_preference: int = 0
    prompt_too_long: int = 0
    pair_too_long: int = 0
    completion_too_short: int = 0

    @property
    def dropped(self) -> int:
        """Rows left out."""
        return self.without_preference + self.prompt_too_long + self.pair_too_long + self.completion_too_short

    @property
    def kept(self) -> int:
        """Rows left."""
        return self.total - self.dropped

    def describe(self, limits: LengthLimits) -> str:
        """The causes that occurred, with their counts and limits."""
        causes = (
            (self.without_preference, "no preference between the completions"),
            (
                self.prompt_too_long,
                f"prompt longer than max_context_length - min_completion_length "
                f"({limits.max_context_length} - {limits.least_completion})",
            ),
            (self.pair_too_long, f"prompt and completion longer than max_context_length ({limits.max_context_length})"),
            (
                self.completion_too_short,
                f"completion shorter than min_completion_length ({limits.min_completion_length})",
            ),
        )
        return "; ".join(f"{count} of {self.total}: {cause}" for count, cause in causes if count)


def filter_by_length(
    lengths: NDArray[np.int32], limits: LengthLimits, *, name: str
) -> tuple[NDArray[np.int64] | None, FilterCounts]:
    """Find the rows that are within the limits.

    Args:
        lengths: (1 + completions, rows) numbers of tokens of the prompt and of each completion.
        limits: The limits.
        name: The dataset's name, for messages.

    Returns:
        The numbers of the rows kept, (kept,) int64 in ascending order, or None for all; and the counts by cause.

    Raises:
        DatasetError: No row is left.

    Warns:
        UserWarning: Rows were left out.
    """
    prompt, longer, shorter = lengths[0], lengths[1:].max(axis=0), lengths[1:].min(axis=0)
    context = limits.max_context_length if limits.max_context_length is not None else np.iinfo(np.int64).max
    without_preference = prompt == 0  # only such rows have no prompt
    prompt_too_long = prompt > context - limits.least_completion
    pair_too_long = ~prompt_too_long & (prompt + longer > context)
    completion_too_short = ~without_preference & ~prompt_too_long & ~pair_too_long & (shorter < limits.least_completion)
    counts = FilterCounts(
        total=lengths.shape[1],
        without_preference=int(without_preference.sum()),
        prompt_too_long=int(prompt_too_long.sum()),
        pair_too_long=int(pair_too_long.sum()),
        completion_too_short=int(completion_too_short.sum()),
    )
    if counts.dropped == 0:
        return None, counts
    if counts.kept == 0:
        raise _nothing_left(counts, limits, prompt + longer, shorter, name)
    warnings.warn(
        f"{counts.dropped} samples were filtered out of the {name} dataset{_reason(counts)}. "
        f"{counts.describe(limits)}.",
        UserWarning,
        stacklevel=3,
    )
    return np.flatnonzero(~(without_preference | prompt_too_long | pair_too_long | completion_too_short)), counts


def _reason(counts: FilterCounts) -> str:
    return "" if counts.dropped == counts.without_preference else " due to the max context length constraint"


def _check_limit(limit: str, value: Any, *, lowest: int) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{limit} must be an int or None, got {value!r}.")
    if value < lowest:
        raise ValueError(f"{limit} must be at least {lowest}, got {value}.")


def _nothing_left(
    counts: FilterCounts, limits: LengthLimits, row_lengths: NDArray[Any], shorter: NDArray[Any], name: str
) -> DatasetError:
    long_enough = shorter >= limits.least_completion
    if long_enough.any():
        remedy = f"Raise max_context_length to at least {row_lengths[long_enough].min()}."
    else:
        remedy = f"Lower min_completion_length to at most {shorter.max()}."
    return DatasetError(
        f"no row is left after filtering by length ({counts.describe(limits)}); "
        f"the shortest row has {row_lengths.min()} tokens",
        remedy=remedy,
        dataset=name,
    )
