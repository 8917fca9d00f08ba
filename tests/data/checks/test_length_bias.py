"""Whether length predicts the labels: the interval against its definition, figures against counting."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agiledpo.data.checks.length_bias import Z95, length_bias, wilson_interval


@given(st.integers(1, 10**6), st.data())
def test_the_interval_solves_wilsons_equation(trials: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, trials))
    share = successes / trials
    # (share - p)² = z² p (1 - p) / n as a polynomial in p.
    z = Z95**2 / trials
    low, high = np.sort(np.roots([1 + z, -(2 * share + z), share**2]).real)
    assert wilson_interval(successes, trials) == pytest.approx((max(low, 0), min(high, 1)), abs=1e-7)


def test_the_interval_of_a_textbook() -> None:
    # Newcombe, Statistics in Medicine 17 (1998) 857-872, table I, method 3: 81 of 263, and 0 of 20.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0, 0.1611), abs=5e-5)
    assert wilson_interval(0, 0) == (0.0, 1.0)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=2, max_size=40))
def test_figures_against_counting(lengths: list[tuple[int, int]]) -> None:
    chosen, rejected = np.array(lengths, dtype=np.int32).T
    bias = length_bias(chosen, rejected)
    longer, shorter = sum(c > r for c, r in lengths), sum(c < r for c, r in lengths)
    assert (bias.chosen_longer, bias.rejected_longer, bias.equal) == (longer, shorter, len(lengths) - longer - shorter)
    differences = [c - r for c, r in lengths]
    assert bias.mean_difference == pytest.approx(np.mean(differences))
    assert bias.standard_error == pytest.approx(np.std(differences, ddof=1) / np.sqrt(len(lengths)))
    # Swapping the labels turns one rule into the other.
    swapped = length_bias(rejected, chosen)
    if bias.decided:
        assert swapped.longer_accuracy == pytest.approx(1 - bias.longer_accuracy)
        assert swapped.longer_interval == pytest.approx(tuple(1 - end for end in reversed(bias.longer_interval)))


@pytest.mark.parametrize(
    ("longer", "shorter", "biased", "strong"),
    [
        (50, 50, False, False),
        (7, 3, False, False),
        (70, 30, True, True),
        (5600, 4400, True, False),
        (3, 97, True, True),
    ],
)
def test_a_rule_counts_if_chance_is_outside_of_the_interval(
    longer: int, shorter: int, biased: bool, strong: bool
) -> None:
    chosen = np.array([2] * longer + [1] * shorter, dtype=np.int32)
    bias = length_bias(chosen, 3 - chosen)
    assert (bias.is_biased, bias.is_strong) == (biased, strong)


def test_lengths_of_a_few_billion_characters_in_all_do_not_overflow() -> None:
    bias = length_bias(np.full(3, 2**31 - 1, dtype=np.int32), np.zeros(3, dtype=np.int32))
    assert bias.mean_difference == 2**31 - 1
