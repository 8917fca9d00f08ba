"""Attention of packed rows, tile by tile: only between tokens that may see each other.

A tile is a part of a row (the prompt or a completion) and the parts whose keys it sees. In a row
``[prompt | chosen | rejected]`` that leaves out what neither completion sees of the other; where that is little, the
completions share a tile. Inside a tile torch's fused attention runs; where a model caps its scores, which that does
not know, a function of our own does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Tile:
    """Queries of some parts, and the parts that some of them see.

    Attributes:
        queries: Numbers of their parts, counted over all rows.
        keys: Numbers of the parts of the keys.
        bias: What is added to the scores, 0 or minus infinity, (queries, keys); None for plain causal attention of a
            part to itself.
    """

    queries: Sequence[int]
    keys: Sequence[int]
    bias: Tensor | None


def tiled_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Sequence[int],
    tiles: Sequence[Tile],
    scale: float,
    softcap: float | None,
) -> Tensor:
    """Softmax attention of packed parts.

    Args:
        query: (heads, N, D).
        key: (key heads, N, D); the number of heads is a multiple of that of key heads.
        value: (key heads, N, E).
        lengths: Tokens of each part; they sum to N.
        tiles: Their queries are all parts in order.
        scale: Factor on the scores.
        softcap: Cap on the scores (Gemma 2); None for none.

    Returns:
        (N, heads, E).
    """
    queries, keys, values = (x.split(list(lengths), dim=1) for x in (query, key, value))
    outputs = []
    for tile in tiles:
        q, k, v = _join(queries, tile.queries), _join(keys, tile.keys), _join(values, tile.keys)
        bias = None if tile.bias is None else tile.bias.to(q.dtype)
        if softcap is None:
            attended = F.scaled_dot_product_attention(
                q[None], k[None], v[None], bias, is_causal=bias is None, scale=scale, enable_gqa=len(q) != len(k)
            )[0]
        else:
            attended = _CappedAttention.apply(q, k, v, _causal_bias(q) if bias is None else bias, scale, softcap)
        outputs.append(attended.transpose(0, 1))
    return torch.cat(outputs)


class _CappedAttention(torch.autograd.Function):
    """Softmax attention with capped scores that keeps none of them: backward computes them again.

    Query heads that share a key head are one product.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float, softcap: float
    ) -> Tensor:
        ctx.save_for_backward(query, key, value, bias)
        ctx.scale, ctx.softcap = scale, softcap
        weights, _ = _weights(_group(query, key), key, bias, scale, softcap)
        return (weights @ value).view(*query.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        query, key, value, bias = ctx.saved_tensors
        grouped, grad = _group(query, key), _group(grad_output, key)
        weights, capped = _weights(grouped, key, bias, ctx.scale, ctx.softcap)
        grad_weights = grad @ value.transpose(1, 2)
        # The softmax's derivative, then the cap's.
        grad_scores = weights * (grad_weights - (grad_weights * weights).sum(-1, keepdim=True))
        grad_scores.mul_(1 - (capped / ctx.softcap).square_()).mul_(ctx.scale)
        return (
            (grad_scores @ key).view_as(query),
            grad_scores.transpose(1, 2) @ grouped,
            weights.transpose(1, 2) @ grad,
            None,
            None,
            None,
        )


def _weights(grouped: Tensor, key: Tensor, bias: Tensor, scale: float, softcap: float) -> tuple[Tensor, Tensor]:
    """Attention weights and capped scores, both (key heads, groups * queries, keys)."""
    capped = torch.tanh((grouped @ key.transpose(1, 2)).mul_(scale / softcap)).mul_(softcap)
    biased = capped.view(len(key), -1, *bias.shape) + bias
    return torch.softmax(biased, dim=-1).view_as(capped), capped


def _group(x: Tensor, key: Tensor) -> Tensor:
    """(heads, queries, D) -> (key heads, heads / key heads * queries, D)."""
    return x.reshape(len(key), -1, x.shape[-1])


def _join(parts: Sequence[Tensor], numbers: Sequence[int]) -> Tensor:
    wanted = [parts[number] for number in numbers]
    return wanted[0] if len(wanted) == 1 else torch.cat(wanted, dim=1)


def _causal_bias(query: Tensor) -> Tensor:
    return torch.full((query.shape[1],) * 2, float("-inf"), dtype=query.dtype, device=query.device).triu_(1)
