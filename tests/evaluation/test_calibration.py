"""Calibration against what probabilities were drawn with, and against closed forms."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agiledpo.evaluation.calibration import calibration_of, hits, sigmoid

NO_TIES = st.lists(st.floats(-20, 20).filter(lambda value: abs(value) > 1e-3), min_size=1, max_size=30)


def test_margins_whose_beta_is_known() -> None:
    """Pairs that are ranked right with probability sigmoid(0.4 m) are calibrated at 0.4, and nowhere else."""
    random = np.random.default_rng(0)
    sizes = np.abs(random.normal(scale=6, size=20_000))
    margins = np.where(random.random(len(sizes)) < sigmoid(0.4 * sizes), sizes, -sizes)
    groups = np.arange(len(sizes))
    right = calibration_of(margins, groups, 0.4)
    assert right.expected_error < 0.01
    assert right.best_beta.value == pytest.approx(0.4, abs=0.02)
    assert right.best_beta.low < 0.4 < right.best_beta.high
    # Fisher's information of the maximum, n E[m^2 p (1 - p)]: the sandwich's error is the same where the model holds.
    chances = sigmoid(0.4 * sizes)
    error = 1 / math.sqrt((sizes**2 * chances * (1 - chances)).sum())
    assert (right.best_beta.high - right.best_beta.low) / 2 == pytest.approx(1.96 * error, rel=0.05)
    sure = calibration_of(margins, groups, 4.0)
    assert sure.expected_error > 0.1
    assert sure.log_loss.value > right.log_loss.value
    assert sure.best_log_loss == pytest.approx(right.best_log_loss)


def test_bins_and_scores_by_hand() -> None:
    # Probabilities 0.8, 0.9, 0.1 and 0.5: confidences 0.8, 0.9, 0.9 and 0.5.
    margins = np.log(np.array([4.0, 9.0, 1 / 9, 1.0]))
    found = calibration_of(margins, np.arange(4), 1.0)
    assert [part.pairs for part in found.bins] == [1, 1, 2]
    assert [part.accuracy for part in found.bins] == [0.5, 1.0, 0.5]
    assert [part.confidence for part in found.bins] == pytest.approx([0.5, 0.8, 0.9])
    assert found.expected_error == pytest.approx((0.0 + 0.2 + 2 * 0.4) / 4)
    assert found.brier.value == pytest.approx((0.04 + 0.01 + 0.81 + 0.25) / 4)
    assert found.log_loss.value == pytest.approx(-np.log([0.8, 0.9, 0.1, 0.5]).mean())


def test_a_policy_that_knows_nothing() -> None:
    found = calibration_of(np.zeros(6), np.arange(6), 0.1)
    assert (found.brier.value, found.expected_error) == (0.25, 0.0)
    assert math.isnan(found.best_beta.value)
    assert found.best_log_loss == pytest.approx(math.log(2))
    assert found.log_loss.value == pytest.approx(math.log(2))


def test_ties_cost_ln_2_however_sure_the_others_are() -> None:
    found = calibration_of(np.array([1.0, 2.0, 0.0, 0.0, 3.0]), np.arange(5), 0.1)
    assert math.isinf(found.best_beta.value)
    assert found.best_log_loss == pytest.approx(0.4 * math.log(2))
    assert calibration_of(np.array([0.5, 2.0]), np.arange(2), 0.1).best_log_loss == 0.0


def test_ends_of_beta() -> None:
    assert math.isinf(calibration_of(np.array([0.5, 2.0]), np.arange(2), 0.1).best_beta.value)
    assert calibration_of(np.array([-3.0, 2.0]), np.arange(2), 0.1).best_beta.value == 0.0
    # Of margins 2 and -1 the likelihood is greatest where 2 sigmoid(-2 b) = sigmoid(b).
    best = calibration_of(np.array([2.0, -1.0]), np.arange(2), 0.1).best_beta.value
    assert 2 * sigmoid(np.array(-2 * best)) == pytest.approx(float(sigmoid(np.array(best))), abs=1e-9)


@given(NO_TIES, st.floats(0.1, 10))
def test_beta_scales_with_the_unit_of_margins(margins: list[float], unit: float) -> None:
    values, groups = np.array(margins), np.arange(len(margins))
    one = calibration_of(values, groups, 0.1).best_beta.value
    other = calibration_of(values * unit, groups, 0.1).best_beta.value
    assert other * unit == pytest.approx(one, rel=1e-6, abs=1e-9)
    assert hits(values).mean() == np.mean([value > 0 for value in margins])
