"""Speed and time left, against a clock that is set by hand."""

import pytest

from agiledpo.training.pace import Pace, clock_face


class Clock:
    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def test_speed_counts_the_rows_of_this_process_only():
    clock = Clock()
    pace = Pace(200, clock)
    assert (pace.rate, pace.remaining, pace.elapsed) == (None, None, 0.0)
    clock.seconds += 30  # a checkpoint is loaded
    pace.resumed(100)
    clock.seconds += 5
    pace.advanced(110)
    assert pace.rate == 2.0
    assert pace.remaining == 45.0
    assert pace.share == 0.55
    clock.seconds += 3  # within the next batch the time left goes down, and the speed does not
    assert (pace.rate, pace.remaining, pace.elapsed) == (2.0, 42.0, 8.0)
    clock.seconds += 100
    assert pace.remaining == 0.0
    pace.advanced(200)
    assert (pace.share, pace.remaining) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00:00"), (59.6, "0:01:00"), (3723, "1:02:03"), (360_000, "100:00:00"), (None, "?")]
)
def test_a_clock_face(seconds, text):
    assert clock_face(seconds) == text
