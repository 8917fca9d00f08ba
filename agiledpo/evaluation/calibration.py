"""Whether the probabilities that a policy gives to preferences are those with which it is right."""

import math
from dataclasses import dataclass

import numpy as np

from agiledpo.evaluation.intervals import Figure, Floats, Groups, group_error, mean_of, with_error

BINS = 10
_STEPS = 200
_PRECISION = 1e-12


@dataclass(frozen=True)
class Bin:
    """Pairs of which a policy is about equally sure.

    Attributes:
        low: Least confidence.
        high: Greatest confidence.
        pairs: How many.
        confidence: Mean confidence.
        accuracy: Share that is ranked right, a tie counts one half.
    """

    low: float
    high: float
    pairs: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Calibration:
    """The probability sigmoid(beta * margin) that chosen is preferred (Bradley-Terry), held against what was preferred.

    The confidence of a policy in its ranking of a pair is the larger of that probability and 1 minus it, in [0.5, 1].

    Attributes:
        beta: Beta of the probabilities.
        expected_error: Expected calibration error: the mean over pairs of abs(accuracy - confidence) of their bin, of
            ten bins of equal width (Guo et al. 2017, "On Calibration of Modern Neural Networks", eq. 3).
        brier: Mean of (1 - p)^2, p the probability that chosen is preferred (Brier 1950); 0.25 where all p are 0.5.
        log_loss: Mean of -log p, nats: the DPO loss at this beta; ln 2 where all p are 0.5.
        bins: The bins that hold pairs.
        best_beta: The beta, not negative, whose probabilities make these preferences most likely: temperature scaling
            (Guo et al. 2017, section 4.2) with 1 / beta as the temperature. 0 where margins point the wrong way on
            average; infinite where no pair is ranked wrong, as no beta is then too sure; NaN where all margins are 0,
            as those of the base model against itself, which say nothing of beta.
        best_log_loss: ``log_loss`` at ``best_beta``; where that is infinite its limit, ln 2 times the share of ties.
    """

    beta: float
    expected_error: float
    brier: Figure
    log_loss: Figure
    bins: tuple[Bin, ...]
    best_beta: Figure
    best_log_loss: float


def calibration_of(margins: Floats, groups: Groups, beta: float) -> Calibration:
    """Measure the calibration of a policy.

    Args:
        margins: (pairs,) without beta, nats.
        groups: (pairs,) the number of each one's prompt.
        beta: What they are multiplied by.
    """
    probabilities = sigmoid(beta * margins)
    bins = _bins(np.maximum(probabilities, 1 - probabilities), hits(margins))
    gaps = [part.pairs * abs(part.accuracy - part.confidence) for part in bins]
    best = _best_beta(margins, groups)
    return Calibration(
        beta=beta,
        expected_error=sum(gaps) / len(margins),
        brier=mean_of((1 - probabilities) ** 2, groups),
        log_loss=mean_of(log_losses(beta * margins), groups),
        bins=bins,
        best_beta=best,
        best_log_loss=math.log(2) * float((margins == 0).mean())
        if math.isinf(best.value)
        else float(log_losses(np.nan_to_num(best.value) * margins).mean()),
    )


def hits(margins: Floats) -> Floats:
    """1 for a pair that is ranked right, 0 for one that is not, one half for a tie.

    Args:
        margins: (pairs,) chosen minus rejected.
    """
    return (np.sign(margins) + 1) / 2


def sigmoid(values: Floats) -> Floats:
    """1 / (1 + exp(-x)), without overflow."""
    return np.exp(-log_losses(values))


def log_losses(values: Floats) -> Floats:
    """-log sigmoid(x), without overflow."""
    return np.logaddexp(0.0, -values)


def _bins(confidences: Floats, right: Floats) -> tuple[Bin, ...]:
    edges = np.linspace(0.5, 1.0, BINS + 1)
    places = np.clip(np.searchsorted(edges, confidences, side="right") - 1, 0, BINS - 1)
    return tuple(
        Bin(
            low=float(edges[place]),
            high=float(edges[place + 1]),
            pairs=int(inside.sum()),
            confidence=float(confidences[inside].mean()),
            accuracy=float(right[inside].mean()),
        )
        for place in range(BINS)
        if (inside := places == place).any()
    )


def _best_beta(margins: Floats, groups: Groups) -> Figure:
    """Where the slope of the likelihood, sum of m * sigmoid(-b m), is 0; it only falls."""

    def slope(beta: float) -> float:
        return float((margins * sigmoid(-beta * margins)).sum())

    if not margins.any():
        return Figure(math.nan)
    if slope(0.0) <= 0:
        return Figure(0.0)
    if (margins >= 0).all():
        return Figure(math.inf)
    low, high = 0.0, 1.0 / float(np.abs(margins).max())
    while slope(high) > 0:
        low, high = high, 2 * high
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
        if high - low <= _PRECISION * high:
            break
    best = (low + high) / 2
    wrong = sigmoid(-best * margins)
    curvature = float((margins**2 * wrong * (1 - wrong)).sum())
    # The sandwich: what one more pair would move the maximum by.
    return with_error(best, group_error(margins * wrong / curvature, groups))
