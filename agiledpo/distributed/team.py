"""Processes that do the same thing together, each on its share of the work."""

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor

T = TypeVar("T")


class Team:
    """A rank among processes that call the same methods in the same order.

    Values go from process to process pickled; they are one program's own. Alone, every method is what it would be among
    one: nothing is sent, and no process group is needed.

    Args:
        rank: Number of this process among them, from 0.
        size: Number of processes.
        device: Where this process computes.

    Attributes:
        rank: As given.
        size: As given.
        device: As given.
    """

    def __init__(self, rank: int, size: int, device: torch.device) -> None:
        self.rank = rank
        self.size = size
        self.device = device

    @staticmethod
    def alone(device: torch.device | str = "cpu") -> "Team":
        """A team of one.

        Args:
            device: Where it computes.
        """
        return Team(0, 1, torch.device(device))

    @staticmethod
    def of(accelerator: Accelerator | None, device: torch.device | str = "cpu") -> "Team":
        """All processes of an accelerator.

        Args:
            accelerator: Accelerate's handle; None for a process of its own.
            device: Where to compute without an accelerator.
        """
        if accelerator is None:
            return Team.alone(device)
        return Team(accelerator.process_index, accelerator.num_processes, accelerator.device)

    @property
    def is_alone(self) -> bool:
        """Whether there is nobody to talk to."""
        return self.size == 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes files and speaks to people."""
        return self.rank == 0

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Add up tensors over all processes, in place.

        Args:
            tensors: The same shapes and dtypes in every process. They go in one message for each dtype.
        """
        if self.is_alone:
            return
        for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
            members = [tensor for tensor in tensors if tensor.dtype == dtype]
            flat = torch.cat([tensor.detach().reshape(-1) for tensor in members]).to(self.device)
            dist.all_reduce(flat)
            for tensor, total in zip(members, flat.split([t.numel() for t in members]), strict=True):
                tensor.detach().copy_(total.view_as(tensor))

    def gather(self, value: T) -> list[T]:
        """The values of all processes, by rank.

        Args:
            value: Of plain values and tensors on the CPU.
        """
        if self.is_alone:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def same(self, value: T, *, of: int = 0) -> T:
        """The value that one process has.

        Args:
            value: Of plain values and tensors on the CPU; only that process's counts.
            of: Its rank.
        """
        if self.is_alone:
            return value
        box = [value if self.rank == of else None]
        dist.broadcast_object_list(box, src=of, device=self._message_device)
        return box[0]  # type: ignore[return-value]  # by now it is what that process put in

    def any(self, flag: bool) -> bool:
        """Whether it is so in some process."""
        if self.is_alone:
            return flag
        votes = torch.tensor([int(flag)], device=self.device)
        dist.all_reduce(votes)
        return bool(votes.item())

    def wait(self) -> None:
        """Go on once all processes are here."""
        if not self.is_alone:
            self.any(False)  # unlike a barrier it needs no device to be guessed

    def agree(self, error: Exception | None) -> None:
        """Go on if nobody has an error; otherwise everybody has the same one.

        Args:
            error: This process's.

        Raises:
            Exception: That of the lowest rank that has one. Where it is another process's, a note says whose.
        """
        if self.is_alone:
            if error is not None:
                raise error
            return
        self.settle(self.gather((error, whereabouts())))

    def settle(self, outcomes: Sequence[tuple[Exception | None, str]]) -> None:
        """The second half of :meth:`agree`, for errors that have been gathered with something else.

        Args:
            outcomes: Of each process its error and its :func:`whereabouts`.
        """
        for rank, (error, where) in enumerate(outcomes):
            if error is not None:
                if rank != self.rank:
                    error.add_note(f"This happened in rank {rank} ({where}).")
                raise error

    def leader_does(self, act: Callable[[], T]) -> T:
        """Have the leader do something and everybody know how it went.

        Args:
            act: What only the leader calls; it must not talk to the others.

        Returns:
            What it returned, in every process.

        Raises:
            Exception: What it raised, in every process.
        """
        if self.is_alone:
            return act()
        outcome: tuple[T | None, Exception | None] = (None, None)
        if self.leads:
            try:
                outcome = act(), None
            except Exception as error:  # the others would wait for ever
                outcome = None, error
        result, failure = self.same(outcome)
        if failure is not None:
            raise failure
        return result  # type: ignore[return-value]  # act returned it

    @property
    def _message_device(self) -> torch.device:
        return self.device if self.device.type == "cuda" else torch.device("cpu")


@contextmanager
def local_leader_first(accelerator: Accelerator | None) -> Iterator[None]:
    """Let one process of each machine go ahead, so that the others find what it has put into a cache.

    If it fails the others go on, and come to the same error or not.

    Args:
        accelerator: Accelerate's handle; None for a process of its own.
    """
    if accelerator is None or accelerator.num_processes == 1:
        yield
        return
    if not accelerator.is_local_main_process:
        accelerator.wait_for_everyone()
    try:
        yield
    finally:
        if accelerator.is_local_main_process:
            accelerator.wait_for_everyone()


def whereabouts() -> str:
    """Host and process, for messages."""
    return f"{socket.gethostname()}, process {os.getpid()}"
