"""Handing a state with tensors from one process to another, or to all."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from agiledpo.distributed.team import Team

# Bytes that go in one message, beside which nothing of the state is in memory twice.
_MESSAGE_BYTES = 64 * 2**20


@dataclass(frozen=True)
class _Slot:
    """Where a tensor is to be put into a state."""

    shape: torch.Size
    dtype: torch.dtype
    on_cpu: bool

    @property
    def bytes(self) -> int:
        return self.shape.numel() * self.dtype.itemsize


def hand_over(state: Any, team: Team, *, giver: int, receiver: int | None = None) -> Any:
    """Hand a state from one process to another, tensor by tensor as it lies on its device.

    All processes of the team call it, also those that neither give nor receive: they hear what the state looks like.

    Args:
        state: Plain values and tensors in dictionaries, lists and tuples; only the giver's counts.
        team: The processes.
        giver: Rank of the process that has it.
        receiver: Rank of the one that is to have it; None for all.

    Returns:
        The state, with tensors of its own, in processes that receive it; what was passed in the others.
    """
    if team.is_alone or giver == receiver:
        return state
    tensors: list[Tensor] = []
    outline = team.same(_outline(state, tensors) if team.rank == giver else None, of=giver)
    if team.rank != giver and receiver not in (None, team.rank):
        return state
    slots = list(_slots(outline))
    arrived: list[Tensor] = []
    for start, stop in _messages(slots):
        if team.rank == giver:
            message = torch.cat([_bytes(tensor).to(team.device) for tensor in tensors[start:stop]])
        else:
            message = torch.empty(sum(slot.bytes for slot in slots[start:stop]), dtype=torch.uint8, device=team.device)
        if receiver is None:
            dist.broadcast(message, src=giver)
        elif team.rank == giver:
            dist.send(message, dst=receiver)
        else:
            dist.recv(message, src=giver)
        if team.rank != giver:
            arrived += _taken_out(message, slots[start:stop])
    return state if team.rank == giver else _filled(outline, iter(arrived))


def _outline(state: Any, tensors: list[Tensor]) -> Any:
    """The state with slots instead of its tensors, which are appended to the list."""
    match state:
        case Tensor():
            tensors.append(state.detach())
            return _Slot(state.shape, state.dtype, state.device.type == "cpu")
        case dict():
            return {name: _outline(part, tensors) for name, part in state.items()}
        case list() | tuple():
            return type(state)(_outline(part, tensors) for part in state)
    return state


def _slots(outline: Any) -> Iterator[_Slot]:
    match outline:
        case _Slot():
            yield outline
        case dict():
            for part in outline.values():
                yield from _slots(part)
        case list() | tuple():
            for part in outline:
                yield from _slots(part)


def _filled(outline: Any, tensors: Iterator[Tensor]) -> Any:
    match outline:
        case _Slot():
            return next(tensors)
        case dict():
            return {name: _filled(part, tensors) for name, part in outline.items()}
        case list() | tuple():
            return type(outline)(_filled(part, tensors) for part in outline)
    return outline


def _messages(slots: list[_Slot]) -> Iterator[tuple[int, int]]:
    """From which slot to which goes in one message; a larger tensor goes in one of its own."""
    start, size = 0, 0
    for number, slot in enumerate(slots):
        if number > start and size + slot.bytes > _MESSAGE_BYTES:
            yield start, number
            start, size = number, 0
        size += slot.bytes
    if start < len(slots):
        yield start, len(slots)


def _bytes(tensor: Tensor) -> Tensor:
    # As bytes, so that numbers of all kinds go in one message.
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _taken_out(message: Tensor, slots: list[_Slot]) -> Iterator[Tensor]:
    """The tensors of a message, each in memory of its own."""
    for slot, part in zip(slots, message.split([slot.bytes for slot in slots]), strict=True):
        own = part.to("cpu", copy=True) if slot.on_cpu else part.clone()
        yield own.view(slot.dtype).reshape(slot.shape)
