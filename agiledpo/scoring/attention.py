"""Attention over packed rows, in which the completions of a pair share their prompt.

All tokens of a batch lie in one sequence without padding; attention is what keeps the rows, and inside a row the two
completions, apart. It is registered through Transformers' attention interface, so it serves every architecture that
uses that interface, with the model's own projections, norms and positions.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from transformers import AttentionInterface, PreTrainedModel

from agiledpo.layers.elementwise import wide
from agiledpo.scoring import flex
from agiledpo.scoring.tiles import Tile, tiled_attention

PACKED_ATTENTION = "agiledpo_packed"

# Completions get tiles of their own where one for both would hold this many times the scores: a call costs something.
_WORTH_SPLITTING = 1.4


@dataclass(frozen=True)
class PackedRows:
    """Which of N packed tokens may attend to which.

    Attributes:
        bounds: First and last + 1 token of each row.
        parts: Number of the part of its row that each token belongs to: 0 the prompt, 1 and 2 the completions; (N,).
        positions: Position of each token in its own sequence, (N,).
    """

    bounds: Sequence[tuple[int, int]]
    parts: Tensor
    positions: Tensor
    _masks: dict[int | None, list[Tensor]] = field(default_factory=dict, repr=False, compare=False)
    _tiles: dict[int | None, list[Tile]] = field(default_factory=dict, repr=False, compare=False)
    _block_masks: dict[int | None, BlockMask] = field(default_factory=dict, repr=False, compare=False)

    def masks(self, window: int | None) -> list[Tensor]:
        """Which tokens (queries down, keys across) of each row attend to which; boolean (W, W) per row.

        A token sees the prompt and what came before it in its own part, at most ``window`` positions back.
        """
        if window not in self._masks:  # the same in every layer
            self._masks[window] = [self._mask(start, stop, window) for start, stop in self.bounds]
        return self._masks[window]

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens of each part, over all rows."""
        rows = [self.parts[start:stop] for start, stop in self.bounds]
        return [n for row in rows for n in torch.unique_consecutive(row, return_counts=True)[1].tolist()]

    def tiles(self, window: int | None) -> list[Tile]:
        """The same as tiles: for each part its queries and the parts they may see.

        Args:
            window: As for :meth:`masks`.
        """
        if window not in self._tiles:
            self._tiles[window] = list(self._make_tiles(window))
        return self._tiles[window]

    def _make_tiles(self, window: int | None) -> Iterator[Tile]:
        ends = list(accumulate(self.lengths, initial=0))
        first = 0
        for (start, stop), mask in zip(self.bounds, self.masks(window), strict=True):
            last = ends.index(stop)
            for queries, keys in _row_tiles(range(first, last), self.lengths):
                if queries == keys and window is None:
                    yield Tile(queries, keys, None)
                    continue
                down, across = (
                    torch.cat([torch.arange(ends[part] - start, ends[part + 1] - start) for part in parts])
                    for parts in (queries, keys)
                )
                allowed = mask[down.to(mask.device)][:, across.to(mask.device)]
                bias = torch.zeros(allowed.shape, device=mask.device).masked_fill_(~allowed, float("-inf"))
                yield Tile(queries, keys, bias)
            first = last

    def block_mask(self, window: int | None) -> BlockMask:
        """The same for all rows at once, as FlexAttention takes it.

        Args:
            window: As for :meth:`masks`.
        """
        if window not in self._block_masks:
            self._block_masks[window] = flex.make_block_mask(self.bounds, self.parts, self.positions, window)
        return self._block_masks[window]

    @property
    def windows(self) -> frozenset[int | None]:
        """The sliding windows that layers have asked masks for so far."""
        return frozenset(self._masks) | frozenset(self._block_masks)

    def _mask(self, start: int, stop: int, window: int | None) -> Tensor:
        part, position = self.parts[start:stop], self.positions[start:stop]
        earlier = torch.ones(stop - start, stop - start, dtype=torch.bool, device=part.device).tril()
        allowed = earlier & ((part == 0) | (part == part[:, None]))
        return allowed if window is None else allowed & (position[:, None] - position < window)


def _row_tiles(parts: range, lengths: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
    """Queries and keys of the tiles of a row whose first part is the prompt."""
    prompt, *completions = parts
    yield [prompt], [prompt]
    apart = sum(lengths[part] * (lengths[prompt] + lengths[part]) for part in completions)
    together = sum(lengths[part] for part in completions) * sum(lengths[part] for part in parts)
    if together < _WORTH_SPLITTING * apart:
        yield completions, list(parts)
    else:
        for part in completions:
            yield [part], [prompt, part]


@contextmanager
def packed_attention(model: PreTrainedModel) -> Iterator[None]:
    """Let a model attend through :func:`attend_packed`; its own attention is restored afterwards.

    Keep it open until after ``backward``: gradient checkpointing runs the forward pass again.
    """
    previous = model.config._attn_implementation
    model.set_attn_implementation(PACKED_ATTENTION)
    try:
        yield
    finally:
        model.set_attn_implementation(previous)


def attend_packed(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed_rows: PackedRows,
    scaling: float | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of packed rows, with the signature of Transformers' attention functions.

    Args:
        module: The attention layer.
        query: (1, heads, N, D).
        key: (1, key heads, N, D); the number of heads is a multiple of that of key heads.
        value: (1, key heads, N, D).
        attention_mask: Ignored; ``packed_rows`` says all.
        packed_rows: The rows.
        scaling: Factor on the scores; None for 1 / sqrt(D).
        softcap: Gemma 2's cap on the scores.
        sliding_window: How many positions back a token sees, itself included; None for all.
        s_aux: Attention sinks, which are not supported.

    Returns:
        The attended values, (1, N, heads, D), and None for the weights.
    """
    if s_aux is not None:
        raise ValueError("Attention sinks are not supported in packed rows.")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    path = attention_path(query, value, softcap)
    if path == "tiles":
        # In float32: twice as exact a log-probability, and under bfloat16 torch's backward pass is the slower one.
        tiles = packed_rows.tiles(sliding_window)
        q, k, v = (wide(x[0]) for x in (query, key, value))
        attended = tiled_attention(q, k, v, packed_rows.lengths, tiles, scale, softcap)
        return attended.to(value.dtype)[None], None
    query, key = query.to(value.dtype), key.to(value.dtype)  # rotary positions may have widened them
    if path == "flex":
        block_mask = packed_rows.block_mask(sliding_window)
        return flex.flex_rows_attention(query, key, value, block_mask, scale, softcap), None
    outputs = []
    for (start, stop), mask in zip(packed_rows.bounds, packed_rows.masks(sliding_window), strict=True):
        q, k, v = (x[0, :, start:stop] for x in (query, key, value))
        outputs.append(fused_row_attention(q, k, v, mask, scale))
    return torch.cat(outputs, dim=1).transpose(0, 1)[None], None


AttentionInterface.register(PACKED_ATTENTION, attend_packed)


def attention_path(query: Tensor, value: Tensor, softcap: float | None) -> Literal["flex", "tiles", "rows"]:
    """How :func:`attend_packed` attends.

    Args:
        query: (1, heads, N, D).
        value: (1, key heads, N, E).
        softcap: Cap on the scores; None for none.

    Returns:
        "flex" for one call of compiled kernels under a block mask; "tiles" for one call in float32 for each tile, with
        any cap; "rows" for one call of torch's fused kernels for each row.
    """
    if flex.suits(query, value):
        return "flex"
    return "tiles" if value.device.type == "cpu" or softcap is not None else "rows"


def fused_row_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Softmax attention of one row through torch's fused kernels, which are the faster way on a GPU.

    Args:
        query: (heads, W, D).
        key: (key heads, W, D).
        value: (key heads, W, D).
        mask: Boolean (W, W), true where a query (down) sees a key (across).
        scale: Factor on the scores.

    Returns:
        (heads, W, D).
    """
    # With grouped heads and a mask CUDA falls back to a kernel that holds all scores; repeated keys cost far less.
    key, value = (x.repeat_interleave(len(query) // len(x), 0) for x in (key, value))
    return F.scaled_dot_product_attention(query[None], key[None], value[None], attn_mask=mask, scale=scale)[0]
