"""Processes that do the same thing together, each on its share of the work."""

import os
import socket
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor

from agiledpo.distributed.messages import Failure, is_known, note_known, packed, unpacked

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
        if not dist.is_available() or not dist.is_initialized():
            return Team.alone(accelerator.device)
        # Not the accelerator's own numbers: with DeepSpeed on CPUs it says that there is one process.
        return Team(dist.get_rank(), dist.get_world_size(), accelerator.device)

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

        Raises:
            Exception: Instead of giving a value a process had an error that it told the others by :meth:`agree`.
        """
        if self.is_alone:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        for rank, found in enumerate(values):
            if isinstance(found, Failure):
                own = value if rank == self.rank and isinstance(value, Failure) else found
                raise self._told(own.error, rank, own.where)
        return values

    def same(self, value: T, *, of: int = 0) -> T:
        """The value that one process has.

        Args:
            value: Of plain values, dataclasses and tensors on the CPU; only that process's counts. Large tensors go one
                by one.
            of: Its rank.

        Raises:
            Exception: The value cannot be sent.
        """
        return value if self.is_alone else self._sent(value, of)

    def _sent(self, value: Any, of: int) -> Any:
        """The value, or failure, that one process has."""
        box: list[bytes | None] = [None]
        tensors: list[Tensor] = []
        if self.rank == of:
            try:
                box[0], tensors = packed(value)
            except Exception as error:  # the others are waiting
                value = Failure(error, whereabouts())
                box[0], tensors = packed(value)
        dist.broadcast_object_list(box, src=of, device=self._message_device)
        if self.rank != of:
            assert box[0] is not None
            value, tensors = unpacked(box[0])
        for tensor in tensors:
            message = tensor.to(self._message_device)
            dist.broadcast(message, src=of)
            if self.rank != of:
                tensor.copy_(message)
        if isinstance(value, Failure):
            raise self._told(value.error, of, value.where)
        return value

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

        Also those have it who are in the midst of :meth:`gather` meanwhile.

        Args:
            error: This process's.

        Raises:
            Exception: That of the lowest rank that has one. Where it is another process's, a note says whose.
        """
        if self.is_alone:
            if error is not None:
                raise error
            return
        self.gather(None if error is None else Failure(error, whereabouts()))

    def everyone_does(self, act: Callable[[], T]) -> T:
        """Do something in every process that may fail in some of them only.

        Args:
            act: What to do. It may talk to the others by :meth:`gather`, and by what is made of it (:meth:`all_do`,
                :meth:`agree`): a process that fails tells those who are in another collective operation something
                else than they are waiting for.

        Returns:
            What it returned in this process.

        Raises:
            Exception: What it raised in the lowest rank in which it did, in every process.
        """
        if self.is_alone:
            return act()
        try:
            result = act()
        except Exception as error:
            if is_known(error):  # the others come by here with it too
                raise
            self.agree(error)
        else:
            self.agree(None)
            return result
        raise AssertionError("an error was not raised")

    def leader_does(self, act: Callable[[], T], *, of: int = 0) -> T:
        """Have the leader, or another process, do something and everybody know how it went.

        Args:
            act: What only that process calls; it must not talk to the others.
            of: Its rank.

        Returns:
            What it returned, in every process.

        Raises:
            Exception: What it raised, in every process.
        """
        if self.is_alone:
            return act()
        outcome: T | Failure | None = None
        if self.rank == of:
            try:
                outcome = act()
            except Exception as error:  # the others would wait for ever
                outcome = Failure(error, whereabouts())
        return self._sent(outcome, of)

    @contextmanager
    def speaking_once(self) -> Iterator[None]:
        """Inside, warnings are the leader's only: the other processes would say the same."""
        if self.leads:
            yield
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield

    def _told(self, error: Exception, rank: int, where: str) -> Exception:
        """An error of some process, as all of them raise it."""
        if rank != self.rank:
            error.add_note(f"This happened in rank {rank} ({where}).")
        return note_known(error)

    def all_do(self, act: Callable[[], T]) -> list[T]:
        """Have every process do its part and everybody know what came of it.

        Args:
            act: What each calls; it may do another thing in each, and returns plain values and tensors on the CPU.

        Returns:
            What it returned in each, by rank, in every process.

        Raises:
            Exception: What it raised in the process of the lowest rank in which it did, in every process.
        """
        if self.is_alone:
            return [act()]
        outcome: Any
        try:
            outcome = act()
        except Exception as error:  # the others would wait for ever
            outcome = Failure(error, whereabouts())
        return self.gather(outcome)  # which raises failures

    @property
    def _message_device(self) -> torch.device:
        return self.device if self.device.type == "cuda" else torch.device("cpu")


@contextmanager
def local_leader_first(accelerator: Accelerator | None) -> Iterator[None]:
    """Let one process of each machine go ahead, so that the others find what it has put into a cache.

    If it fails the others go on, and come to the same error or not. They wait on the CPU for as long as it takes: a
    collective operation of their devices would be given up after minutes.

    Args:
        accelerator: Accelerate's handle; None for a process of its own.
    """
    team = Team.of(accelerator)
    if team.is_alone:
        yield
        return
    leads = int(os.environ.get("LOCAL_RANK", team.rank)) == 0
    patient = dist.new_group(backend="gloo", timeout=timedelta(days=1))

    def meet() -> None:
        dist.barrier(group=patient)
        team.wait()  # nobody is in the barrier any more
        dist.destroy_process_group(patient)

    if not leads:
        meet()
    try:
        yield
    finally:
        if leads:
            meet()


def whereabouts() -> str:
    """Host and process, for messages."""
    return f"{socket.gethostname()}, process {os.getpid()}"
