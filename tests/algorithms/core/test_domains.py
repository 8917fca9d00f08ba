"""How values move: ranges with factors, log-uniform draws, choices."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agiledpo.algorithms.core.registry import Choice, LogUniform, RLParameter

DRAWS = 4000


def draws(domain, value, kind, *, n=200, seed=0):
    rng = np.random.default_rng(seed)
    return [domain.mutate(value, rng, kind) for _ in range(n)]


def chain(domain, value, kind, *, n=200, seed=0):
    """Values one after another, each mutated from the last."""
    rng = np.random.default_rng(seed)
    values = [value]
    for _ in range(n):
        values.append(domain.mutate(values[-1], rng, kind))
    return values


def within(share, probability, n=DRAWS):
    """Whether an observed share is within four standard errors of its probability."""
    return abs(share - probability) < 4 * math.sqrt(probability * (1 - probability) / n)


# RLParameter --------------------------------------------------------------------------------------------------------


def test_a_real_number_shrinks_and_grows_by_its_factors_equally_often():
    values = draws(RLParameter(min=0.1, max=1.0), 0.5, float, n=DRAWS)
    assert set(values) == {0.5 * 0.8, 0.5 * 1.2}
    assert within(values.count(0.5 * 0.8) / DRAWS, 0.5)
    assert set(draws(RLParameter(0.1, 10.0, shrink_factor=0.5, grow_factor=3.0), 1.0, float)) == {0.5, 3.0}


def test_steps_are_clipped_at_the_borders():
    assert set(draws(RLParameter(min=0.1, max=1.0), 0.9, float)) == {0.9 * 0.8, 1.0}
    assert set(draws(RLParameter(min=0.1, max=1.0), 1.0, float)) == {0.8, 1.0}
    assert set(draws(RLParameter(min=0.1, max=1.0), 0.1, float)) == {0.1, 0.1 * 1.2}


@pytest.mark.parametrize(("value", "expected"), [(0.001, 0.1), (50.0, 1.0)])
def test_a_value_set_outside_the_range_comes_back_into_it(value, expected):
    assert set(draws(RLParameter(min=0.1, max=1.0), value, float)) == {expected}
    assert all(0.1 <= drawn <= 1.0 for drawn in draws(LogUniform(0.1, 1.0), value, float))


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1, {1, 2}), (2, {1, 3}), (3, {2, 4}), (4, {3, 5}), (8, {6, 10}), (10, {8, 12}), (60, {48, 64}), (64, {51, 64})],
)
@pytest.mark.parametrize("dtype", [int, float])
def test_whole_numbers_move_by_rounded_factors_but_at_least_by_one(value, expected, dtype):
    values = draws(RLParameter(min=1, max=64, dtype=dtype), value, int)
    assert set(values) == expected
    assert {type(drawn) for drawn in values} == {int}


def test_a_batch_of_four_grows_to_five_which_truncation_forbids():
    assert max(draws(RLParameter(min=1, max=16), 4, int)) == 5
    assert max(chain(RLParameter(min=1, max=16), 1, int, n=2000)) == 16


def test_a_whole_number_for_a_real_hyperparameter_becomes_real():
    values = draws(RLParameter(min=0.1, max=10), 1, float)
    assert set(values) == {0.8, 1.2}
    assert type(RLParameter(min=1, max=2).mutate(2, np.random.default_rng(0), float)) is float


def test_a_whole_number_passes_zero():
    values = chain(RLParameter(min=-3, max=3), 0, int, n=2000)
    assert set(values) == set(range(-3, 4))
    assert all(abs(a - b) == 1 or (a == b and abs(a) == 3) for a, b in itertools.pairwise(values))


@given(
    low=st.floats(1e-8, 1e3),
    width=st.floats(1.01, 1e3),
    where=st.floats(0, 1),
    shrink=st.floats(0.05, 0.95),
    grow=st.floats(1.05, 5),
    seed=st.integers(0, 2**32),
)
def test_real_values_stay_in_the_range_and_every_move_is_a_factor_or_a_border(low, width, where, shrink, grow, seed):
    high = low * width
    domain = RLParameter(low, high, shrink, grow)
    values = chain(domain, min(low + where * (high - low), high), float, n=30, seed=seed)
    for before, after in itertools.pairwise(values):
        assert after in (before * shrink, before * grow, low, high)
        assert low <= after <= high


@given(
    low=st.integers(-50, 1000),
    width=st.integers(1, 1000),
    where=st.floats(0, 1),
    shrink=st.floats(0.05, 0.99),
    grow=st.floats(1.01, 5),
    seed=st.integers(0, 2**32),
)
def test_whole_values_stay_whole_and_in_the_range_and_move_unless_at_a_border(low, width, where, shrink, grow, seed):
    high = low + width
    values = chain(RLParameter(low, high, shrink, grow), low + int(where * width), int, n=30, seed=seed)
    for before, after in itertools.pairwise(values):
        assert type(after) is int
        assert low <= after <= high
        assert after != before or before in (low, high)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"min": 1, "max": 1}, "min < max"),
        ({"min": math.nan, "max": 1}, "min < max, both finite; got min=nan"),
        ({"min": 1, "max": math.inf}, "max=inf"),
        ({"min": 0, "max": 1, "shrink_factor": 1.2}, r"shrink_factor=1\.2"),
        ({"min": 0, "max": 1, "grow_factor": math.inf}, "grow_factor=inf"),
        ({"min": 0, "max": 1, "dtype": np.ndarray}, "numbers are float or int"),
    ],
)
def test_ranges_that_do_not_move_anything_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        RLParameter(**arguments)


@pytest.mark.parametrize(
    ("domain", "value", "kind", "message"),
    [
        (RLParameter(0.0, 1.0), 0.0, float, r"x=0\.0 would stay 0 for ever.*Start above 0.*x=Choice\(0\.0, \.\.\.\)"),
        (RLParameter(0, 1, dtype=int), 1.0, float, r"dtype=int.*x is a float. Leave dtype out"),
        (RLParameter(0.5, 16), 4, int, "x is a whole number, so min and max must be"),
        (LogUniform(0.5, 16), 4, int, "x is a whole number, so min and max must be"),
        (RLParameter(1, 16), 17, int, "x=17 is outside the range of hp_config, 1 to 16"),
        (LogUniform(1, 16), 0.5, float, r"x=0\.5 is outside the range of hp_config, 1 to 16"),
        (RLParameter(0, 1), ("sigmoid",), tuple, "not a number"),
        (LogUniform(1, 2), True, bool, "not a number"),
        (RLParameter(0, 1), None, float, r"value None is not a number.*x=Choice\(\.\.\.\)"),
    ],
)
def test_values_that_a_range_does_not_suit_are_refused(domain, value, kind, message):
    with pytest.raises(ValueError, match=message):
        domain.check("x", value, kind)


def test_what_suits_is_accepted():
    RLParameter(0, 4).check("x", 0, int)
    RLParameter(1.0, 16.0, dtype=int).check("x", 4, int)
    RLParameter(0, 1).check("x", 1, float)
    LogUniform(1, 16).check("x", 16, int)
    Choice(None, 0.5).check("x", None, float)


# LogUniform ---------------------------------------------------------------------------------------------------------


def test_log_uniform_draws_are_uniform_in_their_logarithm():
    low, high = 1e-6, 1e-3
    values = np.array(draws(LogUniform(low, high), 1e-5, float, n=DRAWS))
    assert low <= values.min() <= values.max() <= high
    uniform = np.sort(np.log(values / low) / math.log(high / low))
    rank = np.arange(1, DRAWS + 1) / DRAWS
    distance = max(np.abs(rank - uniform).max(), np.abs(rank - 1 / DRAWS - uniform).max())
    assert distance * math.sqrt(DRAWS) < 1.63  # Kolmogorov's statistic, 1 %


@pytest.mark.parametrize(("low", "high", "present"), [(1, 2, 1), (1, 6, 3), (3, 8, 8)])
def test_whole_log_uniform_draws_have_their_documented_probabilities(low, high, present):
    values = draws(LogUniform(low, high), present, int, n=DRAWS)
    weights = {n: math.log((n + 0.5) / (n - 0.5)) for n in range(low, high + 1) if n != present}
    assert set(values) == set(weights)
    assert {type(value) for value in values} == {int}
    for n, weight in weights.items():
        probability = weight / sum(weights.values())
        assert probability == 1 or within(values.count(n) / DRAWS, probability)


@given(low=st.integers(1, 10**6), width=st.integers(1, 10**6), where=st.floats(0, 1), seed=st.integers(0, 2**32))
def test_whole_log_uniform_draws_stay_in_the_range_and_always_move(low, width, where, seed):
    values = chain(LogUniform(low, low + width), low + int(where * width), int, n=20, seed=seed)
    assert all(low <= value <= low + width for value in values)
    assert all(a != b for a, b in itertools.pairwise(values))


@given(low=st.floats(1e-300, 1e300), factor=st.floats(1.0001, 1e6), seed=st.integers(0, 2**32))
def test_real_log_uniform_draws_stay_in_the_range(low, factor, seed):
    assert all(
        low <= value <= low * factor for value in draws(LogUniform(low, low * factor), low, float, n=5, seed=seed)
    )


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-1, 1), (2, 1), (1, math.inf)])
def test_log_uniform_needs_a_positive_range(low, high):
    with pytest.raises(ValueError, match="LogUniform needs min"):
        LogUniform(low, high)


# Choice -------------------------------------------------------------------------------------------------------------


def test_a_choice_draws_another_option_each_equally_often():
    values = draws(Choice("a", "b", "c", "d"), "b", str, n=DRAWS)
    assert set(values) == {"a", "c", "d"}
    assert all(within(values.count(option) / DRAWS, 1 / 3) for option in "acd")
    # A value that was set by hand is left for any of the options.
    assert set(draws(Choice("a", "b"), "z", str)) == {"a", "b"}


@pytest.mark.parametrize(
    ("choice", "kind", "expected"),
    [
        (Choice("sigmoid", ("sigmoid", "sft"), ["ipo"]), tuple, (("sigmoid",), ("sigmoid", "sft"), ("ipo",))),
        (Choice(0, 1), float, (0.0, 1.0)),
        (Choice(4, 8), int, (4, 8)),
        (Choice(False, True), bool, (False, True)),
        (Choice(None, 0.5), float, (None, 0.5)),
    ],
)
def test_options_take_the_type_of_the_hyperparameter(choice, kind, expected):
    assert choice.ends(kind) == expected
    assert [type(option) for option in choice.ends(kind)] == [type(option) for option in expected]
    assert draws(choice, expected[0], kind, n=1)[0] in expected[1:]


@pytest.mark.parametrize(
    ("options", "value", "kind", "message"),
    [
        (("ipo", "hinge"), ("sigmoid",), tuple, r"x=\('sigmoid',\) is not among the options.*Choice\('ipo', 'hinge'\)"),
        (("ipo", ("ipo",)), ("ipo",), tuple, r"lists \('ipo',\) twice"),
        ((1, 2.5), 1, int, r"option 2\.5, but x is a int"),
        ((1, True), 1, int, "option True"),
        (("a", 1), "a", str, "option 1"),
        ((0.1, "a"), 0.1, float, "option 'a'"),
        ((0.1, 0.2), 0.3, float, r"x=0\.3 is not among"),
    ],
)
def test_options_that_do_not_suit_are_refused(options, value, kind, message):
    with pytest.raises(ValueError, match=message):
        Choice(*options).check("x", value, kind)


def test_a_choice_needs_two_options():
    with pytest.raises(ValueError, match=r"Choice\('a',\) leaves nothing to choose"):
        Choice("a")


def test_domains_are_values_without_state():
    for make in (lambda: RLParameter(1, 2), lambda: LogUniform(1, 2), lambda: Choice(1, 2)):
        domain, before = make(), repr(make())
        draws(domain, 1, float)
        assert domain == make()
        assert repr(domain) == before
    assert repr(Choice("a", ("b", "c"))) == "Choice('a', ('b', 'c'))"
