"""Who has left a run of several processes, how, and who of them is to blame that it cannot go on."""

from dataclasses import dataclass, field
from enum import IntEnum

import torch.distributed

_REASON_LINES = 5
_REASON_CHARACTERS = 1000


class Manner(IntEnum):
    """How a process left. The smaller, the more likely it is the cause and not a consequence of another's leaving."""

    VANISHED = 0  # without a word: killed, os._exit, its host is gone
    FAILED = 1  # by an exception of its own
    STOPPED = 2  # by SystemExit or KeyboardInterrupt, which all ranks may well do at that moment
    CUT_OFF = 3  # because a collective broke, so that somebody else was first
    DONE = 4


@dataclass(frozen=True)
class Departure:
    """One process's leaving.

    Attributes:
        rank: The process's rank.
        manner: How it left.
        at: When, in seconds of a clock that never goes back.
        reason: The exception's type and message; empty if there was none.
    """

    rank: int
    manner: Manner
    at: float
    reason: str = ""


@dataclass
class Departures:
    """All leavings until now, of a run of ``size`` processes.

    Attributes:
        size: The number of processes.
        patience: Seconds that all have to follow one who was told to stop, and the cause of a broken collective to
            show itself.
        settling: Seconds that all have to follow one who failed: they may have found the same error.
        gathering: Seconds for which those who vanish at once, with their host, are put together.
    """

    size: int
    patience: float = 30.0
    settling: float = 2.0
    gathering: float = 0.1
    known: dict[int, Departure] = field(default_factory=dict)

    def note(self, departure: Departure) -> None:
        """Note that a process has left; only the first note of each rank counts."""
        self.known.setdefault(departure.rank, departure)

    @property
    def all_out(self) -> bool:
        """Whether nobody is left."""
        return len(self.known) == self.size

    def to_blame(self) -> list[Departure]:
        """Those whose leaving explains that of the others; empty if all who left were done.

        All who vanished are, in the order of their vanishing (a host that is gone takes all its ranks along), otherwise
        who was first to fail.
        """
        manner = min((departure.manner for departure in self.known.values()), default=Manner.DONE)
        if manner == Manner.DONE:
            return []
        found = [departure for departure in self.known.values() if departure.manner == manner]
        found.sort(key=lambda departure: departure.at)
        return found if manner == Manner.VANISHED else found[:1]

    def due(self) -> float | None:
        """When it can be said who is to blame, in seconds of the same clock; None while nobody is."""
        ill = [departure for departure in self.known.values() if departure.manner != Manner.DONE]
        if not ill:
            return None
        if self.all_out:
            return min(departure.at for departure in ill)
        has_broken = any(departure.manner == Manner.CUT_OFF for departure in ill)
        wait = {
            Manner.VANISHED: self.gathering,
            Manner.FAILED: self.settling,
            Manner.STOPPED: self.settling if has_broken else self.patience,
            Manner.CUT_OFF: self.patience,
        }
        return min(departure.at + wait[departure.manner] for departure in ill)


def manner_of(error: BaseException | None) -> tuple[Manner, str]:
    """How a process leaves by ``error``, and the reason in words."""
    if error is None:
        return Manner.DONE, ""
    reason = "\n".join(f"{type(error).__name__}: {error}".splitlines()[:_REASON_LINES])[:_REASON_CHARACTERS]
    if not isinstance(error, Exception):
        return Manner.STOPPED, reason
    cause: BaseException | None = error
    while cause is not None:
        if _is_of_a_collective(cause):
            return Manner.CUT_OFF, reason
        cause = cause.__cause__
    return Manner.FAILED, reason


def _is_of_a_collective(error: BaseException) -> bool:
    if isinstance(error, torch.distributed.DistError):
        return True
    return isinstance(error, RuntimeError) and "/gloo/" in str(error)  # Gloo's name only their source file
