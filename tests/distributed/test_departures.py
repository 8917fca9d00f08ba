"""Who is to blame, and when that can be said."""

from itertools import permutations

import pytest
import torch.distributed
from hypothesis import given
from hypothesis import strategies as st

from agiledpo.distributed.departures import Departure, Departures, Manner, manner_of

GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:1925."


def departures(*known, size=8):
    noted = Departures(size, patience=30.0, settling=2.0, gathering=0.1)
    for rank, (manner, at) in enumerate(known):
        noted.note(Departure(rank, manner, at))
    return noted


@pytest.mark.parametrize(
    ("known", "blamed", "due"),
    [
        ([], [], None),
        ([(Manner.DONE, 1.0)], [], None),
        ([(Manner.VANISHED, 1.0)], [0], 1.1),
        ([(Manner.VANISHED, 1.05), (Manner.VANISHED, 1.0)], [1, 0], 1.1),
        ([(Manner.FAILED, 1.0), (Manner.FAILED, 1.5)], [0], 3.0),
        ([(Manner.STOPPED, 1.0)], [0], 31.0),
        ([(Manner.CUT_OFF, 1.0)], [0], 31.0),
        ([(Manner.CUT_OFF, 1.0), (Manner.CUT_OFF, 0.5)], [1], 30.5),
        # A collective broke because of another's leaving, which is told later or not as such.
        ([(Manner.CUT_OFF, 1.0), (Manner.VANISHED, 20.0)], [1], 20.1),
        ([(Manner.CUT_OFF, 1.0), (Manner.FAILED, 1.5)], [1], 3.5),
        ([(Manner.STOPPED, 1.0), (Manner.CUT_OFF, 1.5)], [0], 3.0),
        ([(Manner.DONE, 0.5), (Manner.STOPPED, 1.0), (Manner.DONE, 2.0)], [1], 31.0),
    ],
)
def test_the_first_cause_is_named_when_no_better_one_can_come(known, blamed, due):
    found = departures(*known)
    assert [departure.rank for departure in found.to_blame()] == blamed
    assert found.due() == pytest.approx(due)


def test_when_all_are_out_there_is_nobody_to_wait_for():
    found = departures((Manner.CUT_OFF, 1.0), (Manner.FAILED, 0.9), (Manner.DONE, 0.1), size=3)
    assert found.all_out
    assert found.due() == 0.9
    assert [departure.rank for departure in found.to_blame()] == [1]


def test_only_the_first_word_of_a_process_counts():
    found = Departures(2)
    found.note(Departure(1, Manner.DONE, 1.0))
    found.note(Departure(1, Manner.VANISHED, 2.0))  # its connection ends in any case
    assert found.to_blame() == []


@given(
    st.lists(st.tuples(st.sampled_from(Manner), st.floats(0, 100)), min_size=1, max_size=4, unique_by=lambda x: x[1])
)
def test_the_order_of_hearing_does_not_matter(known):
    all_known = [Departure(rank, manner, at) for rank, (manner, at) in enumerate(known)]
    verdicts = set()
    for order in permutations(all_known):
        found = Departures(5)
        for departure in order:
            found.note(departure)
        verdicts.add((tuple(found.to_blame()), found.due()))
    assert len(verdicts) == 1


def chained(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "manner", "reason"),
    [
        (None, Manner.DONE, ""),
        (ValueError("no such pair"), Manner.FAILED, "ValueError: no such pair"),
        (RuntimeError("shapes differ"), Manner.FAILED, "RuntimeError: shapes differ"),
        (RuntimeError(GLOO), Manner.CUT_OFF, f"RuntimeError: {GLOO}"),
        (torch.distributed.DistBackendError("NCCL"), Manner.CUT_OFF, "DistBackendError: NCCL"),
        (chained(ValueError("not gathered"), RuntimeError(GLOO)), Manner.CUT_OFF, "ValueError: not gathered"),
        (SystemExit(143), Manner.STOPPED, "SystemExit: 143"),
        (KeyboardInterrupt(), Manner.STOPPED, "KeyboardInterrupt: "),
        (OSError("\n".join("abcdefg")), Manner.FAILED, "OSError: a\nb\nc\nd\ne"),
    ],
)
def test_an_exception_says_how_a_process_leaves(error, manner, reason):
    assert manner_of(error) == (manner, reason)
