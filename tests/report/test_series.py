"""Thinning out: what must be kept is kept."""

import math

from hypothesis import given
from hypothesis import strategies as st

from agiledpo.report import Series

values = st.one_of(st.floats(-1e6, 1e6), st.just(math.nan), st.just(math.inf))


@given(st.lists(values, min_size=1, max_size=400), st.integers(4, 60))
def test_thinning_keeps_the_ends_the_extremes_and_real_points(numbers, most):
    series = Series(range(len(numbers)), numbers)
    thin = series.thinned(most)
    assert all(repr(numbers[step]) == repr(value) for step, value in zip(thin.steps, thin.values, strict=True))
    assert list(thin.steps) == sorted(set(thin.steps))
    assert (thin.steps[0], thin.steps[-1]) == (0, len(numbers) - 1)
    finite = [value for value in numbers if math.isfinite(value)]
    if finite:
        drawn = [value for value in thin.values if math.isfinite(value)]
        assert (min(drawn), max(drawn)) == (min(finite), max(finite))
    assert len(thin) <= max(most, len(numbers) if len(numbers) <= most else 0) + most // 2
    if len(numbers) <= most:
        assert thin is series
    # A gap is still a gap.
    assert any(not math.isfinite(value) for value in thin.values) == any(not math.isfinite(v) for v in numbers)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=60).map(sorted), st.integers(-1, 51), st.integers(-1, 51))
def test_parts_of_a_line_meet(steps, start, stop):
    series = Series(steps, steps)
    low, high = sorted((start, stop))
    parts = [series.between(*pair) for pair in ((-math.inf, low), (low, high), (high, math.inf))]
    assert [step for part in parts for step in part.steps] == steps
