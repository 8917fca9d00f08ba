"""How fast a run goes on, and when it will end."""

import time
from collections.abc import Callable


class Pace:
    """Counts rows against the clock. What an earlier process did, before a run was taken up again, does not count.

    Args:
        total: Rows of the whole run.
        clock: Seconds that only grow.

    Attributes:
        total: As given.
        done: Rows so far, those of an earlier process included.
    """

    def __init__(self, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.total = total
        self.done = 0
        self._before = 0
        self._clock = clock
        self._began = self._last = clock()

    def resumed(self, rows_done: int) -> None:
        """The run was taken up again after so many rows."""
        self.done = self._before = rows_done
        self._began = self._last = self._clock()

    def advanced(self, rows_done: int) -> None:
        """So many rows are done by now."""
        self.done, self._last = rows_done, self._clock()

    @property
    def share(self) -> float:
        """Part of the run that is done, from 0 to 1."""
        return self.done / self.total if self.total else 1.0

    @property
    def elapsed(self) -> float:
        """Seconds of this process."""
        return self._clock() - self._began

    @property
    def rate(self) -> float | None:
        """Rows per second of this process, evaluations included; None before the first rows."""
        seconds = self._last - self._began
        return (self.done - self._before) / seconds if self.done > self._before and seconds > 0 else None

    @property
    def remaining(self) -> float | None:
        """Estimated seconds to the last row; None before the first rows."""
        if self.done >= self.total:
            return 0.0
        rate = self.rate
        return None if rate is None else max(0.0, (self.total - self.done) / rate - (self._clock() - self._last))


def clock_face(seconds: float | None) -> str:
    """Seconds as hours, minutes and seconds, ``"1:02:03"``; ``"?"`` for None."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
