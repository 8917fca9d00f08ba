"""Intervals of figures over pairs of which several share a prompt.

Pairs of one prompt resemble each other: twenty pairs of one prompt tell less than twenty prompts. Standard errors are
therefore over prompts. A figure is linearised: each pair has an influence on it, and the variance of the figure is that
of the sums of influences over the prompts (the "cluster-robust" or "linearised" variance of survey statistics; Liang
and Zeger 1986, "Longitudinal data analysis using generalized linear models").
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agiledpo.data.checks.length_bias import Z95, wilson_interval

# Of the normal distribution, for 95 %.
Z = Z95

Floats = NDArray[np.float64]
Groups = NDArray[np.int64]


@dataclass(frozen=True)
class Figure:
    """A figure with its 95 % confidence interval.

    Attributes:
        value: The figure; NaN where there is nothing to measure.
        low: Lower end; NaN where there is no interval, as of a single prompt's mean.
        high: Upper end.
    """

    value: float
    low: float = math.nan
    high: float = math.nan

    def __str__(self) -> str:
        if math.isnan(self.value):
            return "-"
        return f"{self.value:.3f}" if math.isnan(self.low) else f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def wilson(share: float, trials: float) -> Figure:
    """A share with Wilson's score interval, which stays inside 0 and 1 and has a width where the share is 0 or 1.

    Args:
        share: Between 0 and 1.
        trials: Independent ones; any number above 0.
    """
    low, high = wilson_interval(share * trials, trials)
    # At the ends two terms of it are equal, but for rounding.
    return Figure(share, 0.0 if share == 0 else low, 1.0 if share == 1 else high)


def share_of(values: Floats, groups: Groups) -> Figure:
    """The mean of values in [0, 1], such as hits with ties as one half, with an interval that knows of the groups.

    The interval is Wilson's, with the number of trials that would have the variance which the groups give: n values
    count as n / d, where d, the design effect, is the ratio of the variance over groups to that of independent hits and
    misses. Of several intervals for shares of clustered samples this one covers best where the share is near 0 or 1
    (Dean and Pagano 2015, "Evaluating confidence interval methods for binomial proportions in clustered surveys"). It
    is never narrower than Wilson's interval of n independent trials, and equal to it where every value is a group.

    Args:
        values: (n,).
        groups: (n,) the number of each one's group.
    """
    if not len(values):
        return Figure(math.nan)
    value = float(values.mean())
    error = group_error((values - value) / len(values), groups)
    return share_with_error(value, error, most=len(values), groups=len(np.unique(groups)))


def share_with_error(value: float, error: float, *, most: float, groups: int) -> Figure:
    """A share with Wilson's interval of as many trials as would have its standard error.

    Args:
        value: In [0, 1].
        error: Its standard error over groups; NaN where there is one group.
        most: The number of trials if all were independent, which there are at most.
        groups: The number of groups, which counts where the error tells nothing: where all values are 0, or all 1.
    """
    spread = value * (1 - value)
    if math.isnan(error) or spread == 0:
        return wilson(value, min(most, groups))
    # As n - 1 divides the error's square, independent values come out as n trials.
    trials = most if error == 0 else spread / error**2 * (most / (most - 1) if most > 1 else 1.0)
    return wilson(value, min(most, trials))


def difference_of(values: Floats, groups: Groups) -> Figure:
    """The mean of paired differences of hits, in [-1, 1], with an interval that has a width where all of them agree.

    Bonett and Price 2012, "Adjusted Wald confidence interval for a difference of binomial proportions based on paired
    data": the mean and the variance are taken with one difference of 1 and one of -1 added to the n that there are.
    Where values of a group resemble each other, n is divided by the design effect, as for `share_of`. Unlike an
    interval for the share (1 + d) / 2 it is narrow for policies that mostly agree, which is what pairing is for.

    Args:
        values: (n,).
        groups: (n,) the number of each one's group.
    """
    if not len(values):
        return Figure(math.nan)
    count, value, square = len(values), float(values.mean()), float((values**2).mean())
    error = group_error((values - value) / count, groups)
    spread = square - value**2
    if math.isnan(error) or spread <= 0:
        trials = float(min(count, len(np.unique(groups))))
    else:
        trials = float(count) if error == 0 else min(count, spread / error**2 * count / max(count - 1, 1))
    centre = trials * value / (trials + 2)
    half = Z * math.sqrt(((trials * square + 2) / (trials + 2) - centre**2) / (trials + 2))
    return Figure(value, max(-1.0, min(value, centre - half)), min(1.0, max(value, centre + half)))


def mean_of(values: Floats, groups: Groups) -> Figure:
    """The mean of any values, with a normal interval over groups.

    Args:
        values: (n,).
        groups: (n,) the number of each one's group.
    """
    return ratio_of(values, np.ones_like(values), groups)


def ratio_of(totals: Floats, sizes: Floats, groups: Groups) -> Figure:
    """The sum of totals over the sum of sizes, such as nats over tokens, with a normal interval over groups.

    The influence of one on a ratio r is (total - r size) / (sum of sizes).

    Args:
        totals: (n,).
        sizes: (n,).
        groups: (n,) the number of each one's group.
    """
    whole = float(sizes.sum())
    if whole == 0:
        return Figure(math.nan)
    value = float(totals.sum()) / whole
    return with_error(value, group_error((totals - value * sizes) / whole, groups))


def with_error(value: float, error: float) -> Figure:
    """A figure with the normal interval of its standard error.

    Args:
        value: The figure.
        error: Its standard error; NaN for no interval.
    """
    return Figure(value, value - Z * error, value + Z * error)


def group_error(influences: Floats, groups: Groups) -> float:
    """Standard error of a figure: sqrt(G / (G - 1) * the sum over G groups of the squared sum of influences).

    Args:
        influences: (n,) of each value on the figure; their sum is 0.
        groups: (n,) the number of each one's group.

    Returns:
        The error; NaN where there are fewer than two groups.
    """
    _, places = np.unique(groups, return_inverse=True)
    sums = np.bincount(places, weights=influences)
    if len(sums) < 2:
        return math.nan
    return math.sqrt(len(sums) / (len(sums) - 1) * float(sums @ sums))
