"""Accuracy without the advantage of length, on data whose answer is known."""

import math

import numpy as np
import pytest

from agiledpo.evaluation.calibration import sigmoid
from agiledpo.evaluation.length_control import length_control_of

N = 20_000


def lengths(share_longer: float, seed: int = 0) -> np.ndarray:
    """Differences of length: as many tokens longer as shorter, but longer more often."""
    random = np.random.default_rng(seed)
    sizes = 1 + random.integers(0, 200, size=N)
    return np.where(random.random(N) < share_longer, sizes, -sizes).astype(float)


def test_a_policy_that_prefers_whatever_is_longer() -> None:
    differences = lengths(0.8)
    found = length_control_of(differences, differences, np.arange(N))
    assert (found.chosen_longer.value, found.chosen_shorter.value) == (1.0, 0.0)
    assert found.balanced.value == 0.5
    assert found.at_equal_length.value == pytest.approx(0.5, abs=0.02)
    assert found.length_effect.value > 3
    shorter = length_control_of(-differences, differences, np.arange(N))
    assert shorter.balanced.value == 0.5
    assert shorter.at_equal_length.value == pytest.approx(0.5, abs=0.02)
    assert shorter.length_effect.value < -3


@pytest.mark.parametrize("share_longer", [0.5, 0.85])
def test_accuracy_that_follows_the_regression(share_longer: float) -> None:
    """Pairs that are ranked right with probability sigmoid(0.7 + 0.9 tanh(d / s)): at equal length that is 0.668."""
    random, differences = np.random.default_rng(3), lengths(share_longer)
    chances = sigmoid(0.7 + 0.9 * np.tanh(differences / differences.std()))
    margins = np.where(random.random(N) < chances, 1.0, -1.0)
    found = length_control_of(margins, differences, np.arange(N))
    assert found.at_equal_length.value == pytest.approx(1 / (1 + math.exp(-0.7)), abs=0.015)
    # Plain accuracy is drawn by how often chosen is longer, and the two figures are not.
    both = [chances[differences > 0].mean(), chances[differences < 0].mean()]
    assert found.balanced.value == pytest.approx(np.mean(both), abs=0.015)


def test_intervals_hold_the_truth_in_nineteen_of_twenty_cases() -> None:
    random, runs, pairs, inside = np.random.default_rng(7), 200, 300, np.zeros(3)
    for _ in range(runs):
        sizes = 1 + random.integers(0, 200, size=pairs)
        differences = np.where(random.random(pairs) < 0.8, sizes, -sizes).astype(float)
        chances = sigmoid(0.7 + 0.9 * np.tanh(differences / differences.std()))
        margins = np.where(random.random(pairs) < chances, 1.0, -1.0)
        found = length_control_of(margins, differences, np.arange(pairs))
        longer = sizes == differences
        truth = (1 / (1 + math.exp(-0.7)), 0.9, (chances[longer].mean() + chances[~longer].mean()) / 2)
        figures = (found.at_equal_length, found.length_effect, found.balanced)
        inside += [figure.low < value < figure.high for figure, value in zip(figures, truth, strict=True)]
    assert (inside / runs > 0.9).all()
    assert (inside / runs < 0.99).all()


def test_a_policy_to_which_length_is_nothing() -> None:
    random, differences = np.random.default_rng(4), lengths(0.9)
    margins = np.where(random.random(N) < 0.7, 1.0, -1.0)
    found = length_control_of(margins, differences, np.arange(N))
    assert found.balanced.value == pytest.approx(0.7, abs=0.02)
    assert found.at_equal_length.value == pytest.approx(0.7, abs=0.02)
    assert found.length_effect.low < 0 < found.length_effect.high


def test_kinds_and_their_absence() -> None:
    margins, differences = np.array([1.0, -1.0, 2.0, 0.0, 1.0]), np.array([3.0, 5.0, -2.0, -2.0, 0.0])
    found = length_control_of(margins, differences, np.arange(5))
    assert found.pairs == (2, 2, 1)
    assert (found.chosen_longer.value, found.chosen_shorter.value, found.same_length.value) == (0.5, 0.75, 1.0)
    assert found.balanced.value == pytest.approx(0.625)
    alone = length_control_of(margins[:2], differences[:2], np.arange(2))
    assert math.isnan(alone.balanced.value)
    assert math.isnan(alone.at_equal_length.value)
    assert math.isnan(alone.chosen_shorter.value)


def test_where_length_separates_there_is_no_regression() -> None:
    differences = np.array([1.0, 2, 3, -1, -2, -3])
    for margins in (np.ones(6), -np.ones(6), differences, -differences, differences - 1.5):
        found = length_control_of(margins, differences, np.arange(6))
        assert found.at_equal_length == found.balanced
        assert found.at_equal_length.high - found.at_equal_length.low > 0.3
        assert math.isnan(found.length_effect.low)
    both = length_control_of(np.array([1.0, -1, 1, 1, -1, 1]), differences, np.arange(6))
    assert both.at_equal_length != both.balanced


@pytest.mark.parametrize(("pairs", "truth"), [(30, 0.95), (30, 0.05), (60, 0.9), (200, 0.97)])
def test_intervals_hold_near_the_ends(pairs: int, truth: float) -> None:
    """Few pairs, most of them right: the normal interval of the logit held 0.95 of 30 pairs in 54 % of the cases."""
    random, runs, inside = np.random.default_rng(11), 200, 0
    for _ in range(runs):
        margins = np.where(random.random(pairs) < truth, 1.0, -1.0)
        found = length_control_of(margins, random.choice([-3.0, 3.0, 5.0, -1.0], pairs), np.arange(pairs))
        inside += found.at_equal_length.low <= truth <= found.at_equal_length.high
    assert inside / runs > 0.9
