"""Which prompts go through the model together."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PromptRows:
    """Some prompts and how many completions of each are sampled now.

    Attributes:
        places: Places of the prompts among all, the longest prompt first.
        copies: Rows of each.
        room: Tokens that each row may get.
    """

    places: Sequence[int]
    copies: Sequence[int]
    room: int


def prompt_batches(
    lengths: Sequence[int], rooms: Sequence[int], group_size: int, batch_size: int, *, pads: bool
) -> Iterator[PromptRows]:
    """Put prompts of similar length together.

    A group stays whole unless it is larger than a batch. All rows of a batch may get the same number of tokens, so
    that a prompt near the model's longest sequence does not cut others short or lengthen their padding.

    Args:
        lengths: Tokens of each prompt.
        rooms: Tokens that may follow each.
        group_size: Completions of each.
        batch_size: Most rows.
        pads: Whether prompts of different lengths may share a batch.
    """
    places: list[int] = []
    copies: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        for count in _parts(group_size, batch_size):
            alike = not places or (rooms[place] == rooms[places[0]] and (pads or lengths[place] == lengths[places[0]]))
            if places and (not alike or sum(copies) + count > batch_size):
                yield PromptRows(places, copies, rooms[places[0]])
                places, copies = [], []
            places.append(place)
            copies.append(count)
    if places:
        yield PromptRows(places, copies, rooms[places[0]])


def _parts(count: int, size: int) -> list[int]:
    """As few parts as possible, as equal as possible."""
    parts = -(-count // size)
    return [count // parts + (number < count % parts) for number in range(parts)]


def left_padded(prompts: Sequence[Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    """Prompts as a matrix that ends with their last tokens.

    Args:
        prompts: int64 (tokens,) each.
        device: Where the result goes.

    Returns:
        Tokens, int64 (P, T), 0 where there are none, and the mask of those that are some, int64 (P, T).
    """
    width = max(map(len, prompts))
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = prompt
        mask[row, width - len(prompt) :] = 1
    return ids.to(device), mask.to(device)
