"""Leave out the rows that do not fit, and count them by cause."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agiledpo.data.errors import DatasetError
from agiledpo.data.limits import LengthLimits
from agiledpo.data.truncation import FittedLengths, completion_range


@dataclass(frozen=True, slots=True)
class FilterCounts:
    """How many rows of a dataset were left out or cut, and why.

    A row that is left out counts for the first cause that applies.

    Attributes:
        total: Rows before filtering.
        without_preference: The row prefers neither of its completions.
        prompt_too_long: The prompt leaves no room for `min_completion_length` tokens, or with "keep_start" for one.
        pair_too_long: The prompt with its longest completion exceeds `max_context_length`.
        completion_too_long: With "keep_end", the longest completion leaves no room for a prompt.
        completion_too_short: A completion has fewer than `min_completion_length` tokens.
        equal_after_truncation: The completions are equal once they are cut.
        prompts_truncated: Rows that are kept with a prompt whose beginning is cut.
        completions_truncated: Rows that are kept with a completion whose end is cut.
    """

    total: int
    without_preference: int = 0
    prompt_too_long: int = 0
    pair_too_long: int = 0
    completion_too_long: int = 0
    completion_too_short: int = 0
    equal_after_truncation: int = 0
    prompts_truncated: int = 0
    completions_truncated: int = 0

    @property
    def dropped(self) -> int:
        """Rows left out."""
        return (
            self.without_preference
            + self.prompt_too_long
            + self.pair_too_long
            + self.completion_too_long
            + self.completion_too_short
            + self.equal_after_truncation
        )

    @property
    def truncated(self) -> int:
        """Rows kept that are cut."""
        return self.prompts_truncated + self.completions_truncated

    @property
    def kept(self) -> int:
        """Rows left."""
        return self.total - self.dropped

    def describe(self, limits: LengthLimits) -> str:
        """The causes that occurred, with their counts and limits."""
        most = limits.max_context_length
        causes = (
            (self.without_preference, "no preference between the completions"),
            (
                self.prompt_too_long,
                f"prompt longer than max_context_length - min_completion_length ({most} - {limits.least_completion})"
                if limits.least_completion or limits.truncation == "drop"
                else f"prompt not shorter than max_context_length ({most})",
            ),
            (self.pair_too_long, f"prompt and completion longer than max_context_length ({most})"),
            (
                self.completion_too_long,
                f"completion that leaves no room for a prompt in max_context_length ({most})",
            ),
            (
                self.completion_too_short,
                f"completion shorter than min_completion_length ({limits.min_completion_length})",
            ),
            (self.equal_after_truncation, f"completions that are equal once cut to max_context_length ({most})"),
            (self.prompts_truncated, f"kept with the beginning of the prompt cut to fit max_context_length ({most})"),
            (
                self.completions_truncated,
                f"kept with the end of a completion cut to fit max_context_length ({most}), which leaves it unfinished",
            ),
        )
        return "; ".join(f"{count} of {self.total}: {cause}" for count, cause in causes if count)

    def tabulate(self) -> dict[str, int]:
        """All counts by what a table calls them, in the order of its lines."""
        return {
            "rows": self.total,
            "dropped: no preference": self.without_preference,
            "dropped: prompt too long": self.prompt_too_long,
            "dropped: prompt and completion too long": self.pair_too_long,
            "dropped: completion leaves no room for a prompt": self.completion_too_long,
            "dropped: completion too short": self.completion_too_short,
            "dropped: equal after truncation": self.equal_after_truncation,
            "kept": self.kept,
            "kept, prompt truncated": self.prompts_truncated,
            "kept, completion truncated": self.completions_truncated,
        }


def filter_table(counts: Mapping[str, FilterCounts]) -> str:
    """The counts of several datasets as aligned text: a column for each, a line for each cause that occurred.

    Args:
        counts: By the datasets' names.
    """
    lines = [["", *counts]]
    tables = [each.tabulate() for each in counts.values()]
    for label in FilterCounts(0).tabulate():
        numbers = [table[label] for table in tables]
        if any(numbers) or label == "kept":
            lines.append([label, *(f"{number:,}" for number in numbers)])
    first, *others = (max(map(len, column)) for column in zip(*lines, strict=True))
    return "\n".join(
        "  ".join(
            [label.ljust(first), *(cell.rjust(width) for cell, width in zip(cells, others, strict=True))]
        ).rstrip()
        for label, *cells in lines
    )


def filter_rows(
    lengths: NDArray[np.int32], fitted: FittedLengths, limits: LengthLimits, *, name: str
) -> tuple[NDArray[np.int64] | None, FilterCounts]:
    """Find the rows that are within the limits once they are truncated.

    Args:
        lengths: (1 + completions, rows) numbers of tokens of the prompt and of each completion.
        fitted: What truncation makes of them.
        limits: The limits.
        name: The dataset's name, for messages.

    Returns:
        The numbers of the rows kept, (kept,) int64 in ascending order, or None for all; and the counts by cause.

    Raises:
        DatasetError: No row is left.

    Warns:
        UserWarning: Rows were left out, or completions were cut.
    """
    prompt = fitted.lengths[0]
    longer, shorter = completion_range(fitted.lengths, limits)
    left = prompt > 0  # only rows without a preference have no prompt
    causes = {"without_preference": ~left}
    for cause, applies in (
        ("prompt_too_long", (prompt > limits.context - limits.least_room) & (limits.truncation != "keep_end")),
        (
            "completion_too_long" if limits.truncation == "keep_end" else "pair_too_long",
            prompt + longer > limits.context,
        ),
        ("completion_too_short", shorter < limits.least_completion),
        ("equal_after_truncation", fitted.equal),
    ):
        causes[cause] = left & applies
        left &= ~applies
    counts = FilterCounts(
        total=lengths.shape[1],
        **{cause: int(applies.sum()) for cause, applies in causes.items()},
        prompts_truncated=int((left & (prompt < lengths[0])).sum()),
        completions_truncated=int((left & (fitted.lengths[1:] < lengths[1:]).any(axis=0)).sum()),
    )
    if counts.kept == 0:
        raise _nothing_left(counts, limits, fitted.least_context, completion_range(lengths, limits)[1], name)
    if counts.dropped:
        warnings.warn(
            f"{counts.dropped} samples were filtered out of the {name} dataset{_reason(counts)}. "
            f"{counts.describe(limits)}.",
            UserWarning,
            stacklevel=3,
        )
    elif counts.completions_truncated:
        warnings.warn(
            f"{counts.completions_truncated} samples of the {name} dataset have completions that were cut. "
            f"{counts.describe(limits)}.",
            UserWarning,
            stacklevel=3,
        )
    return (None if counts.dropped == 0 else np.flatnonzero(left)), counts


def _reason(counts: FilterCounts) -> str:
    short = counts.completion_too_short
    if counts.dropped > counts.without_preference + short:
        return " due to the max context length constraint"
    return " due to the min completion length constraint" if short else ""


def _nothing_left(
    counts: FilterCounts, limits: LengthLimits, least: NDArray[np.int64], shorter: NDArray[Any], name: str
) -> DatasetError:
    long_enough = (shorter >= limits.least_completion) & (shorter > 0)  # of a row without a preference it is 0
    if counts.without_preference == counts.total:
        return DatasetError(
            "no row prefers one of its completions",
            remedy="Give rows whose ranks or rewards differ.",
            dataset=name,
        )
    if long_enough.any():
        remedy = f"Raise max_context_length to at least {least[long_enough].min()}."
    else:
        remedy = f"Lower min_completion_length to at most {shorter.max()}."
    return DatasetError(
        f"no row is left after filtering by length ({counts.describe(limits)}); "
        f"the shortest row {'has' if limits.truncation == 'drop' else 'needs'} {least[shorter > 0].min()} tokens",
        remedy=remedy,
        dataset=name,
    )
