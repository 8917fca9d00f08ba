"""Rank 0's part of the vigil: it hears from each process how it leaves, and tells all others when one is missing."""

import secrets
import selectors
import threading
import time
from dataclasses import dataclass
from typing import Any

from agiledpo.distributed.departures import Departure, Departures, Manner
from agiledpo.distributed.links import Ear, keep_alive, listen, say

# Seconds for which rank 0 stays when it is done and others are not, and that listeners have to hang up.
_FAREWELL = 10.0
_HANGING_UP = 2.0

WITHOUT_A_WORD = "without a word: killed (out of memory?), ended by os._exit, or its host is gone"


def introduce(rank: int, host: str, process: int) -> str:
    """How a process is named to people."""
    return f"rank {rank} (host {host}, pid {process})"


@dataclass
class _Listener:
    """A process that is connected; its rank is -1 until it has said it."""

    ear: Ear
    rank: int = -1


class RollCall(threading.Thread):
    """Hears all processes of a run, rank 0 itself included, until all have left or one of them is missing.

    Args:
        size: The number of processes.
        patience: Seconds, as for :class:`agiledpo.distributed.vigil.Vigil`.

    Attributes:
        port: Where to connect to.
        token: What to show when doing so, so that nobody else can take part.
    """

    def __init__(self, size: int, patience: float) -> None:
        super().__init__(name="agiledpo-roll-call", daemon=True)
        self.token = secrets.token_hex(16)
        self._patience = patience
        self._departures = Departures(size, patience)
        self._names: dict[int, str] = {}  # of all who have come
        self._listening = listen()
        self.port: int = self._listening.getsockname()[1]
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listening, selectors.EVENT_READ)
        self._listeners: list[_Listener] = []
        self._began = time.monotonic()

    def run(self) -> None:
        """Hear the processes, tell them what became of the run, and wait a moment for them to hang up."""
        while (seconds := self._seconds_left()) is None or seconds > 0:
            self._attend(seconds)
            self._miss_who_never_came()
        message = self._verdict()
        # Rank 0 last: when it hears that the run is over it may end the process.
        for listener in sorted(self._listeners, key=lambda listener: listener.rank, reverse=True):
            if listener.rank >= 0:
                say(listener.ear.link, message)
        until = time.monotonic() + _HANGING_UP
        while any(listener.rank > 0 for listener in self._listeners) and (left := until - time.monotonic()) > 0:
            self._attend(left)
        for listener in list(self._listeners):
            self._hang_up(listener)
        self._listening.close()
        self._selector.close()

    def _seconds_left(self) -> float | None:
        """Seconds until it ends or there is something to do; None if that is up to the processes."""
        departures = self._departures
        moments = []
        if departures.all_out:
            moments.append(0.0)
        if (due := departures.due()) is not None:
            moments.append(due)
        elif 0 in departures.known:
            moments.append(departures.known[0].at + _FAREWELL)
        if len(self._names) < departures.size and (absent := self._began + self._patience) > time.monotonic():
            moments.append(absent)
        return min(moments) - time.monotonic() if moments else None

    def _miss_who_never_came(self) -> None:
        if len(self._names) == self._departures.size or time.monotonic() < self._began + self._patience:
            return
        for rank in set(range(self._departures.size)) - self._names.keys():
            self._departures.note(Departure(rank, Manner.VANISHED, time.monotonic()))

    def _attend(self, seconds: float | None) -> None:
        """Do what there is to do, or wait for it, for as long at most."""
        for key, _ in self._selector.select(seconds):
            if key.fileobj is self._listening:
                self._accept()
                continue
            messages = key.data.ear.hear()
            for message in messages or []:
                self._hear(key.data, message)
            if messages is None:
                if key.data.rank >= 0:
                    self._departures.note(Departure(key.data.rank, Manner.VANISHED, time.monotonic()))
                self._hang_up(key.data)

    def _accept(self) -> None:
        try:
            link, _ = self._listening.accept()
            keep_alive(link, self._patience)
        except OSError:  # who called has hung up already
            return
        listener = _Listener(Ear(link))
        self._listeners.append(listener)
        self._selector.register(link, selectors.EVENT_READ, listener)

    def _hear(self, listener: _Listener, message: dict[str, Any]) -> None:
        if message.get("token") == self.token:
            listener.rank = message["rank"]
            self._names[listener.rank] = introduce(listener.rank, message["host"], message["process"])
        elif listener.rank >= 0:
            manner = Manner(message["manner"])
            self._departures.note(Departure(listener.rank, manner, time.monotonic(), message["reason"]))

    def _hang_up(self, listener: _Listener) -> None:
        self._selector.unregister(listener.ear.link)
        self._listeners.remove(listener)
        listener.ear.link.close()

    def _verdict(self) -> dict[str, Any]:
        blamed = self._departures.to_blame()
        return {
            "ranks": [departure.rank for departure in blamed],
            "what": "; ".join(map(self._in_words, blamed)),
        }

    def _in_words(self, departure: Departure) -> str:
        if departure.rank not in self._names:
            return f"rank {departure.rank} has not come to the run within {self._patience:g} seconds"
        name = self._names[departure.rank]
        match departure.manner:
            case Manner.VANISHED:
                return f"{name} has died {WITHOUT_A_WORD}"
            case Manner.FAILED:
                return f"{name} has died: {departure.reason}"
            case Manner.STOPPED:
                return f"{name} has left: {departure.reason}"
            case _:
                return f"{name} has lost the others: {departure.reason}"
