"""Whether a policy ranks pairs by more than the length of their completions."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agiledpo.evaluation.calibration import hits, sigmoid
from agiledpo.evaluation.intervals import (
    Figure,
    Floats,
    Groups,
    Z,
    group_error,
    share_of,
    share_with_error,
)

Flags = NDArray[np.bool_]

# Weight of the squared coefficients: it decides where the likelihood has no maximum, and nothing else to speak of.
_RIDGE = 1e-2
_STEPS = 100
_PRECISION = 1e-10


@dataclass(frozen=True)
class LengthControl:
    """Accuracy with the advantage that length gives taken out.

    Where most chosen completions are the longer ones, a policy that prefers whatever is longer seems accurate.

    Attributes:
        chosen_longer: Accuracy where the chosen completion has more tokens than the rejected one.
        chosen_shorter: Accuracy where it has fewer.
        same_length: Accuracy where both have as many.
        pairs: Pairs of these three.
        balanced: Mean of the first two: 0.5 for a policy that ranks by length, whichever it prefers. NaN unless there
            are pairs of both kinds.
        at_equal_length: Accuracy that a logistic regression predicts for equal length, in the manner of AlpacaEval 2's
            length-controlled win rate (Dubois et al. 2024, arXiv:2404.04475, which predicts wins at equal length):
            logit P(ranked right) = a + b tanh(d / s), with d the length of chosen minus that of rejected in tokens and
            s the standard deviation of d over the pairs; the figure is sigmoid(a). Both kinds of pairs weigh the same
            in it, however many there are, so that it too is 0.5 for a policy that ranks by length. NaN unless there
            are both. Its interval is Wilson's with as many trials as have its standard error, as a normal one of a
            would collapse near 0 and 1. Where length separates right from wrong the likelihood has no maximum: it is
            then ``balanced`` if each kind is all right or all wrong, and else NaN.
        length_effect: The coefficient b: above 0 the policy ranks right more often where chosen is longer. Without an
            interval where length separates right from wrong.
    """

    chosen_longer: Figure
    chosen_shorter: Figure
    same_length: Figure
    pairs: tuple[int, int, int]
    balanced: Figure
    at_equal_length: Figure
    length_effect: Figure


def length_control_of(margins: Floats, differences: Floats, groups: Groups) -> LengthControl:
    """Measure accuracy with length taken out.

    Args:
        margins: (pairs,) chosen minus rejected.
        differences: (pairs,) tokens of chosen minus tokens of rejected.
        groups: (pairs,) the number of each one's prompt.
    """
    right = hits(margins)
    kinds = (differences > 0, differences < 0, differences == 0)
    longer, shorter, same = (share_of(right[kind], groups[kind]) for kind in kinds)
    pairs = tuple(int(kind.sum()) for kind in kinds)
    absent = Figure(math.nan)
    both = pairs[0] > 0 and pairs[1] > 0
    balanced = _balanced(right, kinds[0], kinds[1], groups) if both else absent
    at_equal, effect = _regression(right, differences, groups) if both else (absent, absent)
    if both and _separated(right, differences):
        at_equal, effect = balanced, Figure(effect.value)
    return LengthControl(
        chosen_longer=longer,
        chosen_shorter=shorter,
        same_length=same,
        pairs=(pairs[0], pairs[1], pairs[2]),
        balanced=balanced,
        at_equal_length=at_equal,
        length_effect=effect,
    )


def _balanced(right: Floats, longer: Flags, shorter: Flags, groups: Groups) -> Figure:
    influences, means = np.zeros_like(right), []
    for kind in (longer, shorter):
        mean = float(right[kind].mean())
        influences[kind] = (right[kind] - mean) / (2 * kind.sum())
        means.append(mean)
    # The variance of a mean of two shares is that of so many trials.
    most = 4 / (1 / int(longer.sum()) + 1 / int(shorter.sum()))
    inside = longer | shorter
    return share_with_error(
        sum(means) / 2,
        group_error(influences[inside], groups[inside]),
        most=most,
        groups=len(np.unique(groups[inside])),
    )


def _regression(right: Floats, differences: Floats, groups: Groups) -> tuple[Figure, Figure]:
    """P(ranked right) at equal length, and the effect of length, by Newton's method."""
    design = np.stack([np.ones_like(right), np.tanh(differences / differences.std())], axis=1)
    weights = _weights(differences)
    ridge = _RIDGE * np.eye(2)
    coefficients = np.zeros(2)
    for _ in range(_STEPS):
        expected = sigmoid(design @ coefficients)
        slope = design.T @ (weights * (right - expected)) - ridge @ coefficients
        curvature = (design.T * (weights * expected * (1 - expected))) @ design + ridge
        step = np.linalg.solve(curvature, slope)
        # Far from the maximum Newton's step overshoots.
        coefficients = coefficients + step / max(1.0, float(np.abs(step).max()))
        if np.abs(step).max() < _PRECISION:
            break
    expected = sigmoid(design @ coefficients)
    curvature = (design.T * (weights * expected * (1 - expected))) @ design + ridge
    influences = np.linalg.solve(curvature, design.T * (weights * (right - expected))).T
    errors = [group_error(influences[:, place], groups) for place in range(2)]
    level, effect = (float(value) for value in coefficients)
    share = float(sigmoid(np.array(level)))
    at_equal = share_with_error(
        share,
        share * (1 - share) * errors[0],
        most=float(weights.sum() ** 2 / (weights**2).sum()),
        groups=len(np.unique(groups)),
    )
    return at_equal, Figure(effect, effect - Z * errors[1], effect + Z * errors[1])


def _separated(right: Floats, differences: Floats) -> bool:
    """Whether one length parts the pairs that are ranked right from those that are not; a tie is of both."""
    rights, wrongs = differences[right > 0], differences[right < 1]
    if not len(rights) or not len(wrongs):
        return True
    return bool(rights.min() >= wrongs.max() or rights.max() <= wrongs.min())


def _weights(differences: Floats) -> Floats:
    """Of each pair: those where chosen is longer weigh together as much as those where it is shorter."""
    longer, shorter = differences > 0, differences < 0
    counts = int(longer.sum()), int(shorter.sum())
    weights = np.ones_like(differences)
    weights[longer] = sum(counts) / (2 * counts[0])
    weights[shorter] = sum(counts) / (2 * counts[1])
    return weights
