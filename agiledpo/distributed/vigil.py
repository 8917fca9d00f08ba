"""A process that dies ends the run in all others within a minute, and they say who died and why.

A collective operation waits for all processes. Where one has been killed the others wait for ever (or for NCCL's ten
minutes, or Gloo's thirty), and what they say then is that a connection broke. So a thread of each process is connected
to rank 0, apart from all collectives, and ends its process when one is missing.
"""

import os
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, NoReturn, Self

from agiledpo.distributed.departures import Manner, manner_of
from agiledpo.distributed.links import Ear, connect, say
from agiledpo.distributed.roll_call import WITHOUT_A_WORD, RollCall, introduce

# Seconds after which a process ends though it cannot find out where its last checkpoint is (on a disk that is gone).
_LAST_WORDS = 10.0
# Seconds for which one who was told to stop waits for the others to stop too.
_SOON = 2.0


class Vigil:
    """Inside the context each process of a run learns of the death of another, says so and ends.

    A process that is killed is missed at once, since its kernel closes its connection; one whose host is gone, within
    ``patience``; one that fails has told its reason. What the others then print is the first cause: a collective that
    broke because of it is not reported. A process that merely stands still is not dead: that is for the time limit of
    collectives to find (``InitProcessGroupKwargs(timeout=...)`` of Accelerate). Where a process leaves by SystemExit or
    KeyboardInterrupt the others have ``patience`` to do the same.

    The other processes end by ``os._exit(1)``, because their main thread is in a collective that nothing interrupts. An
    exception that is no consequence of another process's leaving is raised as always.

    With one process nothing happens. Vigils can follow each other and be nested.

    Args:
        rank: This process's number.
        size: The number of processes.
        same: Returns what rank 0 passed to it, in all processes; called once, by all, with plain values.
        last_checkpoint: Says where the last complete checkpoint is, or None; called by a thread when the run ends.
        patience: Seconds after which a host that does not answer is gone, and for which who may follow or precede
            another's leaving is waited for.

    Raises:
        ValueError: ``patience`` is not positive.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        *,
        same: Callable[[Any], Any],
        last_checkpoint: Callable[[], str | None],
        patience: float = 30.0,
    ) -> None:
        if not patience > 0:
            raise ValueError(f"patience={patience} is not positive: seconds to wait for another process.")
        self.rank = rank
        self.size = size
        self.patience = patience
        self._same = same
        self._last_checkpoint = last_checkpoint
        self._roll_call: RollCall | None = None
        self._leaving = False

    def __enter__(self) -> Self:
        """Connect this process to rank 0.

        Raises:
            ConnectionError: There is no way to rank 0.
        """
        if self.size == 1:
            return self
        self._leaving = False
        host = socket.gethostname()
        place = None
        if self.rank == 0:
            self._roll_call = RollCall(self.size, self.patience)
            self._roll_call.start()
            place = (self._roll_call.port, self._roll_call.token, host, os.getpid())
        port, token, leader_host, leader_process = self._same(place)
        self._leader = introduce(0, leader_host, leader_process)
        # Where rank 0 was found for the process group it is found now.
        address = "localhost" if self.rank == 0 else os.environ.get("MASTER_ADDR", leader_host)
        try:
            self._link = connect(address, port, self.patience)
        except OSError as error:
            raise ConnectionError(
                f"rank {self.rank} on {host} has no connection to {self._leader} at {address}, port {port}: {error}. "
                "The processes of a run need free TCP ports between them; MASTER_ADDR says where rank 0 is."
            ) from error
        say(self._link, {"token": token, "rank": self.rank, "host": host, "process": os.getpid()})
        self._thread = threading.Thread(target=self._watch, name="agiledpo-vigil", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.size == 1:
            return
        manner, reason = manner_of(error)
        self._leaving = manner != Manner.CUT_OFF
        say(self._link, {"manner": int(manner), "reason": reason})
        if manner == Manner.DONE:
            self._hang_up()
        # Otherwise this process stays until all know why it leaves, so that their collectives do not break before. If
        # it was cut off, somebody else is the cause, and the thread is going to say so and to end the process.
        self._thread.join(_SOON if manner == Manner.STOPPED else 2 * self.patience)
        self._leaving = True
        self._hang_up()
        self._thread.join()
        if self._roll_call is not None:  # it serves the others until they have left too, or for a while
            self._roll_call.join()
        self._link.close()

    def _hang_up(self) -> None:
        with suppress(OSError):  # the other end has done so already
            self._link.shutdown(socket.SHUT_RDWR)

    def _watch(self) -> None:
        ear = Ear(self._link)
        while True:
            messages = ear.hear()
            if self._leaving:
                return
            if messages is None:
                self._end(f"{self._leader} has died {WITHOUT_A_WORD}")
            for message in messages:
                if message["ranks"] and self.rank not in message["ranks"]:
                    if self._roll_call is not None:
                        self._roll_call.join()  # the others are to hear it before this process is gone
                    self._end(message["what"])
                return

    def _end(self, what: str) -> NoReturn:
        sooner = threading.Timer(_LAST_WORDS, os._exit, [1])
        sooner.daemon = True
        sooner.start()
        try:
            print(f"\n{what}.", file=sys.stderr, flush=True)
            print(self._advice(), file=sys.stderr, flush=True)
            sys.stdout.flush()
        finally:
            os._exit(1)

    def _advice(self) -> str:
        end = f"The run cannot go on, so rank {self.rank} ends here."
        checkpoint = self._last_checkpoint()
        if checkpoint is None:
            return f"{end} No checkpoint has been saved."
        return f"{end} The last complete checkpoint is {checkpoint}; go on with resume_from='latest'."
