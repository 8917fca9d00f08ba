"""Being asked to stop, by Ctrl-C or by a scheduler, is no reason to lose anything."""

import os
import signal
import threading
from time import monotonic
from types import FrameType
from typing import Self

from agiledpo.distributed.team import Team

# Ctrl-C; what Slurm, Kubernetes and kill send before they kill.
_SIGNALS = (signal.SIGINT, signal.SIGTERM)

# Seconds within which what several processes are sent twice is one signal.
_SAME = 2.0


class TrainingInterrupted(SystemExit):
    """A run was asked to stop and has saved everything.

    It ends the process with the status that shells expect of a signal, 128 plus its number, and without a traceback.

    Args:
        message: Where the run stopped and how to go on; it has been printed.
        number: The signal's.

    Attributes:
        message: As given.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(128 + number)
        self.message = message

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.message, self.code - 128)  # type: ignore[operator]  # the code is a number


class Interruption:
    """Inside the context SIGINT and SIGTERM are noted instead of obeyed, so that a step is finished and saved.

    A second one is obeyed at once. Python hands signals to the main thread only; in another one nothing is changed.

    Args:
        team: The processes that stop together; None for one. Launchers pass on to each what the terminal has sent to
            all, so with several a second signal within two seconds is the first one.

    Attributes:
        requested: The signal that asks this process to stop; None for none.
    """

    def __init__(self, team: Team | None = None) -> None:
        self.requested: signal.Signals | None = None
        self._team = Team.alone() if team is None else team
        self._since = 0.0
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            # One that is ignored stays ignored (nohup), and one that Python did not install is not Python's to replace.
            ours = [number for number in _SIGNALS if signal.getsignal(number) not in (signal.SIG_IGN, None)]
            self._previous = {number: signal.signal(number, self._note) for number in ours}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def agreed(self) -> signal.Signals | None:
        """The signal that asks any of the processes to stop, of the lowest rank that has one; all ask together."""
        if not self._team.any(self.requested is not None):
            return None
        return next(number for number in self._team.gather(self.requested) if number is not None)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested is None:
            self.requested, self._since = signal.Signals(number), monotonic()
            if self._team.leads:
                # Not by print, which may be in the midst of something.
                how = f"\n{self.requested.name}: finishing the batch in hand, then saving. Once more stops at once.\n"
                os.write(2, how.encode())
            if self._team.is_alone:
                self._restore()
        elif monotonic() - self._since > _SAME:
            self._restore()
            signal.raise_signal(number)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal returned it takes
        self._previous = {}
