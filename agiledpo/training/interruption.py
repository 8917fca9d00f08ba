"""Being asked to stop, by Ctrl-C or by a scheduler, is no reason to lose anything."""

import signal
import threading
from types import FrameType
from typing import Self

# Ctrl-C; what Slurm, Kubernetes and kill send before they kill.
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


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


class Interruption:
    """Inside the context SIGINT and SIGTERM are noted instead of obeyed, so that a step is finished and saved.

    A second one is obeyed at once. Python hands signals to the main thread only; in another one nothing is changed.

    Attributes:
        requested: The signal that asks the run to stop; None for none.
    """

    def __init__(self) -> None:
        self.requested: signal.Signals | None = None
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            # One that is ignored stays ignored (nohup), and one that Python did not install is not Python's to replace.
            ours = [number for number in _SIGNALS if signal.getsignal(number) not in (signal.SIG_IGN, None)]
            self._previous = {number: signal.signal(number, self._note) for number in ours}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = signal.Signals(number)
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal returned it takes
        self._previous = {}
