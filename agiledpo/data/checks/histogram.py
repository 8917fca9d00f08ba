"""How long prompts and completions are."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class LengthFigures:
    """Lengths of one part of all pairs.

    Attributes:
        mean: Their mean.
        quantiles: Smallest, quartiles, 99 % and largest: the keys are 0, 25, 50, 75, 99 and 100.
        counts: How many there are in each class of `EDGES`.
    """

    mean: float
    quantiles: dict[int, int]
    counts: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold; classes are named by their smallest length."""
        counts = {str(int(edge)): count for edge, count in zip(EDGES, self.counts, strict=True) if count}
        return {"mean": self.mean, "percentiles": {str(key): value for key, value in self.quantiles.items()}} | {
            "histogram": counts
        }


# Each class is twice as wide as the one before: lengths have long tails.
EDGES: NDArray[np.int64] = np.array([0, *(2**power for power in range(31))], dtype=np.int64)
_PERCENTILES = (0, 25, 50, 75, 99, 100)


def length_figures(lengths: NDArray[np.int32]) -> LengthFigures:
    """Describe lengths.

    Args:
        lengths: (pairs,) int32, at least one.
    """
    # A length occurs, so no quantile is between two of them.
    quantiles = np.percentile(lengths, _PERCENTILES, method="lower")
    classes = np.searchsorted(EDGES, lengths, side="right") - 1
    return LengthFigures(
        mean=float(lengths.mean()),
        quantiles={percentile: int(value) for percentile, value in zip(_PERCENTILES, quantiles, strict=True)},
        counts=tuple(np.bincount(classes, minlength=len(EDGES)).tolist()),
    )


def class_name(number: int) -> str:
    """The lengths in a class of `EDGES`, such as "16-31"."""
    low = int(EDGES[number])
    high = int(EDGES[number + 1]) - 1 if number + 1 < len(EDGES) else None
    if high is None:
        return f"{low:,}-"
    return str(low) if low == high else f"{low:,}-{high:,}"
