"""Does the length of the completions already say which one was chosen?"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Two-sided 95 % of the standard normal distribution.
Z95 = 1.959963984540054
# A rule that is right this often is worth a warning.
_STRONG = 0.6


@dataclass(frozen=True, slots=True)
class LengthBias:
    """How well the rule "the longer one is better" predicts the labels.

    Attributes:
        chosen_longer: Pairs whose chosen completion is the longer one.
        rejected_longer: Pairs whose rejected completion is.
        equal: Pairs of which the rule says nothing.
        mean_difference: Mean of chosen minus rejected over all pairs, in the unit of the lengths.
        standard_error: Of that mean.
    """

    chosen_longer: int
    rejected_longer: int
    equal: int
    mean_difference: float
    standard_error: float

    @property
    def decided(self) -> int:
        """Pairs with completions of different lengths."""
        return self.chosen_longer + self.rejected_longer

    @property
    def longer_accuracy(self) -> float:
        """Accuracy of "longer is better" on the decided pairs; that of "shorter is better" is the rest to 1."""
        return self.chosen_longer / self.decided if self.decided else 0.5

    @property
    def longer_interval(self) -> tuple[float, float]:
        """95 % confidence interval of `longer_accuracy`."""
        return wilson_interval(self.chosen_longer, self.decided)

    @property
    def is_biased(self) -> bool:
        """Whether chance is outside of the interval."""
        low, high = self.longer_interval
        return not low <= 0.5 <= high

    @property
    def is_strong(self) -> bool:
        """Whether one of the two rules is also right for 60 % of the decided pairs."""
        return self.is_biased and max(self.longer_accuracy, 1 - self.longer_accuracy) >= _STRONG

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold."""
        low, high = self.longer_interval
        return {
            "chosen_longer": self.chosen_longer,
            "rejected_longer": self.rejected_longer,
            "equal_length": self.equal,
            "longer_is_better": {"accuracy": self.longer_accuracy, "interval_95": [low, high]},
            "shorter_is_better": {"accuracy": 1 - self.longer_accuracy, "interval_95": [1 - high, 1 - low]},
            "mean_difference": self.mean_difference,
            "standard_error": self.standard_error,
        }


def length_bias(chosen: NDArray[np.int32], rejected: NDArray[np.int32]) -> LengthBias:
    """Compare the lengths of completions.

    Args:
        chosen: (pairs,) lengths.
        rejected: (pairs,) lengths.
    """
    difference = chosen.astype(np.int64) - rejected
    pairs = len(difference)
    return LengthBias(
        chosen_longer=int((difference > 0).sum()),
        rejected_longer=int((difference < 0).sum()),
        equal=int((difference == 0).sum()),
        mean_difference=float(difference.mean()) if pairs else 0.0,
        standard_error=float(difference.std(ddof=1)) / math.sqrt(pairs) if pairs > 1 else 0.0,
    )


def wilson_interval(successes: float, trials: float, z: float = Z95) -> tuple[float, float]:
    """Confidence interval of a proportion: all p with (p̂ - p)² ≤ z² p (1 - p) / n.

    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927) 209-212.

    Args:
        successes: How many; a tie may count one half.
        trials: Of how many, as independent ones count; none gives (0, 1).
        z: Quantile of the standard normal distribution.
    """
    if trials == 0:
        return 0.0, 1.0
    share = successes / trials
    scale = 1 + z * z / trials
    centre = share + z * z / (2 * trials)
    margin = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return max(0.0, (centre - margin) / scale), min(1.0, (centre + margin) / scale)
