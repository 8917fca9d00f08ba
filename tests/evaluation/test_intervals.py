"""Intervals against hand-computed ones, closed forms, and their coverage on simulated prompts."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agiledpo.evaluation.intervals import (
    Z,
    difference_of,
    group_error,
    mean_of,
    ratio_of,
    share_of,
    share_with_error,
    wilson,
)


def test_wilson_by_hand() -> None:
    # With n = 10, p = 0.8 and z^2 = 3.841459 the centre is (0.8 + 0.192073) / 1.384146, and half the width is
    # 1.959964 sqrt(0.016 + 0.009604) / 1.384146.
    found = wilson(0.8, 10)
    assert (found.low, found.high) == pytest.approx((0.490162, 0.943318), abs=1e-6)
    assert wilson(1.0, 10).low == pytest.approx(1 / (1 + Z**2 / 10), abs=1e-12)
    assert wilson(1.0, 10).high == 1.0
    assert wilson(0.0, 7).high == pytest.approx((Z**2 / 7) / (1 + Z**2 / 7), abs=1e-12)


@given(st.lists(st.sampled_from([0.0, 1.0]), min_size=2, max_size=40))
def test_independent_hits_have_wilsons_interval(values: list[float]) -> None:
    found = share_of(np.array(values), np.arange(len(values)))
    plain = wilson(sum(values) / len(values), len(values))
    assert (found.low, found.high) == pytest.approx((plain.low, plain.high), abs=1e-9)


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 5)), min_size=1, max_size=40))
def test_no_interval_is_narrower_than_wilsons(rows: list[tuple[float, int]]) -> None:
    values, groups = (np.array(column) for column in zip(*rows, strict=True))
    found, plain = share_of(values.astype(float), groups), wilson(float(values.mean()), len(values))
    assert found.low <= plain.low + 1e-12
    assert found.high >= plain.high - 1e-12


def test_copies_of_a_pair_tell_nothing_new() -> None:
    # Each of 12 prompts four times with the same outcome is worth 12 pairs.
    once = np.array([1, 1, 0, 1, 0, 1, 1, 1, 0, 1, 1, 0], dtype=float)
    found = share_of(np.repeat(once, 4), np.repeat(np.arange(12), 4))
    # 48 values lose nothing for the mean, and 12 do: (48 / 47) (11 / 12) of the 12.
    plain = wilson(once.mean(), 12 * (48 / 47) * (11 / 12))
    assert (found.low, found.high) == pytest.approx((plain.low, plain.high), abs=1e-9)
    all_right = share_of(np.ones(48), np.repeat(np.arange(12), 4))
    assert all_right.low == pytest.approx(wilson(1.0, 12).low)


def test_errors_by_hand() -> None:
    # Groups (1, 2) and (6): mean 3, sums of influences (-2 - 1) / 3 = -1 and 1; sqrt(2 / 1 * 2) = 2.
    values, groups = np.array([1.0, 2.0, 6.0]), np.array([5, 5, 9])
    assert group_error((values - 3) / 3, groups) == pytest.approx(2.0)
    assert mean_of(values, groups).high == pytest.approx(3 + 2 * Z)
    assert math.isnan(mean_of(values, np.zeros(3, dtype=int)).low)
    # Of independent values it is s / sqrt(n).
    drawn = np.random.default_rng(0).normal(size=50)
    assert group_error((drawn - drawn.mean()) / 50, np.arange(50)) == pytest.approx(drawn.std(ddof=1) / math.sqrt(50))
    # A ratio of totals and sizes that are proportional is exact.
    sizes = np.array([1.0, 4.0, 2.0])
    ratio = ratio_of(3 * sizes, sizes, np.arange(3))
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((3, 3, 3))
    assert math.isnan(share_of(np.array([]), np.array([], dtype=int)).value)
    assert share_with_error(0.5, 0.0, most=20, groups=3) == wilson(0.5, 20)


def test_coverage_where_pairs_share_prompts() -> None:
    """Nineteen of twenty intervals hold the truth, where Wilson's for independent pairs hold it far more rarely."""
    random = np.random.default_rng(1)
    prompts, each, runs, inside, naive = 60, 5, 600, 0, 0
    groups = np.repeat(np.arange(prompts), each)
    for _ in range(runs):
        # A prompt's own accuracy is drawn from a Beta distribution of mean 0.75: its pairs correlate by 1/3.
        chances = np.repeat(random.beta(1.5, 0.5, size=prompts), each)
        values = (random.random(prompts * each) < chances).astype(float)
        found, plain = share_of(values, groups), wilson(values.mean(), len(values))
        inside += found.low <= 0.75 <= found.high
        naive += plain.low <= 0.75 <= plain.high
    assert 0.925 < inside / runs < 0.975
    assert naive / runs < 0.85


def test_paired_differences_by_hand() -> None:
    # With 7 wins, 2 losses and 11 of neither the added pair makes (8 - 3) / 22 and sqrt((11 / 22 - (5 / 22)^2) / 22).
    found = difference_of(np.array([1.0] * 7 + [-1.0] * 2 + [0.0] * 11), np.arange(20))
    half = Z * math.sqrt((11 / 22 - (5 / 22) ** 2) / 22)
    assert (found.value, found.low, found.high) == pytest.approx((0.25, 5 / 22 - half, 5 / 22 + half))
    # Nothing differs, or all does: the interval has a width, and stays in [-1, 1].
    for value in (-1.0, 0.0, 1.0):
        same = difference_of(np.full(10, value), np.arange(10))
        assert -1 <= same.low <= value <= same.high <= 1
        assert same.high - same.low > 0.4
    # Copies of a prompt tell next to nothing new.
    once = np.array([1.0, 0, 0, -1, 1, 0, 0, 1, 0, 0])
    copies = difference_of(np.repeat(once, 5), np.repeat(np.arange(10), 5))
    alone = difference_of(once, np.arange(10))
    assert copies.high - copies.low == pytest.approx(alone.high - alone.low, rel=0.1)


@pytest.mark.parametrize(("pairs", "policy", "other"), [(30, 0.97, 0.93), (30, 0.7, 0.6), (100, 0.99, 0.99)])
def test_coverage_of_paired_differences(pairs: int, policy: float, other: float) -> None:
    random, runs, inside = np.random.default_rng(5), 400, 0
    for _ in range(runs):
        values = (random.random(pairs) < policy).astype(float) - (random.random(pairs) < other)
        found = difference_of(values, np.arange(pairs))
        inside += found.low <= policy - other <= found.high
    assert inside / runs > 0.93
