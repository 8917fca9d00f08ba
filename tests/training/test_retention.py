"""What is kept is the newest and the best, and never nothing."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agiledpo.training.retention import Retention, Saved

METRICS = st.lists(st.floats(-10, 10) | st.just(math.nan), max_size=12)


def saved(metrics):
    return [Saved(Path(f"step_{number}"), number, metric) for number, metric in enumerate(metrics)]


@given(METRICS, st.integers(1, 4), st.integers(0, 4), st.booleans())
def test_the_newest_and_the_best_are_kept(metrics, keep_last, keep_best, higher):
    entries = saved(metrics)
    gone = set(Retention(keep_last, keep_best, "loss", higher).expendable(entries))
    kept = [entry for entry in entries if entry.path not in gone]
    assert not gone & {entry.path for entry in entries[-keep_last:]}
    numbers = [entry.metric for entry in entries if not math.isnan(entry.metric)]
    best = sorted(numbers, reverse=higher)[:keep_best]
    remaining = [entry.metric for entry in kept]
    for number in best:
        assert remaining.count(number) >= best.count(number)
    assert len(kept) <= keep_last + keep_best
    assert len(kept) >= min(len(entries), keep_last)


def test_of_equally_good_ones_the_newer_is_kept():
    assert Retention(1, 1).expendable(saved([0.5, 0.9, 0.9, 0.1])) == [Path("step_0"), Path("step_1")]


def test_none_keeps_all():
    assert Retention(None).expendable(saved([1.0] * 9)) == []


@pytest.mark.parametrize(
    ("arguments", "message"), [({"keep_last": 0}, "keep_last=0"), ({"keep_best": -1}, "keep_best=-1")]
)
def test_nonsense_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Retention(**arguments)
