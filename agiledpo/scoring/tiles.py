"""Attention of packed rows, tile by tile: only between tokens that may see each other.

A tile is one part of a row (the prompt or a completion) and the keys it sees. In a row ``[prompt | chosen | rejected]``
that leaves out what neither completion sees of the other. On a CPU its backward pass is faster than that of
``scaled_dot_product_attention``, and float32 scores under bfloat16 inputs keep log-probabilities exact.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from agiledpo.layers.elementwise import wide


@dataclass(frozen=True)
class Tile:
    """Queries of one part of a row, and the keys that some of them see.

    Attributes:
        queries: First and last + 1 of the queries.
        keys: The same of each run of keys.
        bias: What is added to the scores, 0 or minus infinity, (queries, keys); once per query head of a key head.
    """

    queries: tuple[int, int]
    keys: Sequence[tuple[int, int]]
    bias: Tensor


def tiled_attention(
    query: Tensor, key: Tensor, value: Tensor, tiles: Sequence[Tile], scale: float, softcap: float | None
) -> Tensor:
    """Softmax attention, in float32 or higher inside, that keeps no scores: backward computes them again.

    Args:
        query: (heads, N, D).
        key: (key heads, N, D); the number of heads is a multiple of that of key heads.
        value: (key heads, N, E).
        tiles: They cover every query once.
        scale: Factor on the scores.
        softcap: Cap on the scores (Gemma 2); None for none.

    Returns:
        (N, heads, E) in the dtype of ``value``.
    """
    return _TiledAttention.apply(query, key, value, tiles, scale, softcap)


class _TiledAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, tiles: Sequence[Tile], scale: float, softcap: float | None
    ) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.tiles, ctx.scale, ctx.softcap = tiles, scale, softcap
        output = value.new_empty(query.shape[1], len(query), value.shape[2])
        wide_key, wide_value = wide(key), wide(value)
        for tile in tiles:
            weights, _ = _weights(_queries(query, tile, len(key)), _keys(wide_key, tile), tile, scale, softcap)
            _put(output, weights @ _keys(wide_value, tile), tile)
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        query, key, value = ctx.saved_tensors
        wide_key, wide_value = wide(key), wide(value)
        # In memory all tensors are (N, heads, D), as the projections make them.
        grad_query = query.new_empty(query.shape[1], len(query), query.shape[2])
        grad_key, grad_value = (x.new_zeros(x.shape[1], *x.shape[::2]).transpose(0, 1) for x in (wide_key, wide_value))
        for tile in ctx.tiles:
            queries, keys = _queries(query, tile, len(key)), _keys(wide_key, tile)
            grad = _queries(grad_output.transpose(0, 1), tile, len(key))
            weights, capped = _weights(queries, keys, tile, ctx.scale, ctx.softcap)
            grad_scores = grad @ _keys(wide_value, tile).transpose(1, 2)
            grad_scores = torch.ops.aten._softmax_backward_data(grad_scores, weights, -1, weights.dtype)
            if capped is not None:
                grad_scores.mul_(1 - (capped / ctx.softcap).square_())
            _put(grad_query, (grad_scores @ keys).mul_(ctx.scale), tile)
            _add(grad_key, (grad_scores.transpose(1, 2) @ queries).mul_(ctx.scale), tile)
            _add(grad_value, weights.transpose(1, 2) @ grad, tile)
        return grad_query.transpose(0, 1), grad_key.to(key.dtype), grad_value.to(value.dtype), None, None, None


def _weights(
    queries: Tensor, keys: Tensor, tile: Tile, scale: float, softcap: float | None
) -> tuple[Tensor, Tensor | None]:
    """Attention weights (key heads, groups * queries, keys), and with a soft cap also the capped scores."""
    bias = tile.bias.to(queries.dtype)
    if softcap is None:
        return torch.softmax(torch.baddbmm(bias, queries, keys.transpose(1, 2), alpha=scale), dim=-1), None
    capped = torch.tanh(torch.bmm(queries, keys.transpose(1, 2)).mul_(scale / softcap)).mul_(softcap)
    return torch.softmax(capped + bias, dim=-1), capped


def _queries(x: Tensor, tile: Tile, key_heads: int) -> Tensor:
    """(heads, N, D) -> (key heads, heads / key heads * queries, D) in float32 or higher."""
    rows = x[:, slice(*tile.queries)]
    return wide(rows).reshape(key_heads, -1, x.shape[2])


def _keys(x: Tensor, tile: Tile) -> Tensor:
    """(key heads, N, D) -> (key heads, keys, D)."""
    parts = [x[:, slice(*span)] for span in tile.keys]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _put(target: Tensor, values: Tensor, tile: Tile) -> None:
    """Write (key heads, groups * queries, D) to the tile's place in (N, heads, D)."""
    place = target[slice(*tile.queries)]
    place.copy_(values.view(place.shape[1], len(place), -1).transpose(0, 1))


def _add(target: Tensor, values: Tensor, tile: Tile) -> None:
    """Add (key heads, keys, D) to the tile's places in (key heads, N, D)."""
    lengths = [stop - start for start, stop in tile.keys]
    for span, part in zip(tile.keys, values.split(lengths, dim=1), strict=True):
        target[:, slice(*span)] += part
