"""Attention over packed rows, in which the completions of a pair share their prompt.

All tokens of a batch lie in one sequence without padding; attention is what keeps the rows, and inside a row the two
completions, apart. It is registered through Transformers' attention interface, so it serves every architecture that
uses that interface, with the model's own projections, norms and positions.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

PACKED_ATTENTION = "agiledpo_packed"


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

    def masks(self, window: int | None) -> list[Tensor]:
        """Which tokens (queries down, keys across) of each row attend to which; boolean (W, W) per row.

        A token sees the prompt and what came before it in its own part, at most ``window`` positions back.
        """
        if window not in self._masks:  # the same in every layer
            self._masks[window] = [self._mask(start, stop, window) for start, stop in self.bounds]
        return self._masks[window]

    @property
    def windows(self) -> frozenset[int | None]:
        """The sliding windows that layers have asked masks for so far."""
        return frozenset(self._masks)

    def _mask(self, start: int, stop: int, window: int | None) -> Tensor:
        part, position = self.parts[start:stop], self.positions[start:stop]
        earlier = torch.ones(stop - start, stop - start, dtype=torch.bool, device=part.device).tril()
        allowed = earlier & ((part == 0) | (part == part[:, None]))
        return allowed if window is None else allowed & (position[:, None] - position < window)


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
    outputs = []
    for (start, stop), mask in zip(packed_rows.bounds, packed_rows.masks(sliding_window), strict=True):
        q, k, v = (x[0, :, start:stop] for x in (query, key, value))
        if query.device.type == "cpu" or softcap is not None:
            outputs.append(row_attention(q, k, v, mask, scale, softcap))
        else:
            outputs.append(fused_row_attention(q, k, v, mask, scale))
    return torch.cat(outputs, dim=1).transpose(0, 1)[None], None


AttentionInterface.register(PACKED_ATTENTION, attend_packed)


def row_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float, softcap: float | None
) -> Tensor:
    """Softmax attention of one row, in float32 inside, that keeps no scores for backward.

    Args:
        query: (heads, W, D).
        key: (key heads, W, D).
        value: (key heads, W, D).
        mask: Boolean (W, W), true where a query (down) sees a key (across).
        scale: Factor on the scores.
        softcap: Cap on the scores; None for none.

    Returns:
        (heads, W, D).
    """
    return _RowAttention.apply(query, key, value, mask, scale, softcap)


def fused_row_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
    """The same without soft cap through torch's fused kernels, which are the faster way on a GPU."""
    gqa = len(query) != len(key)
    return F.scaled_dot_product_attention(
        query[None], key[None], value[None], attn_mask=mask, scale=scale, enable_gqa=gqa
    )[0]


class _RowAttention(torch.autograd.Function):
    """Softmax attention of one row that keeps no scores: backward computes them again.

    On a CPU several times as fast in backward as ``scaled_dot_product_attention``. Query heads that share a key head
    are one product.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float, softcap: float | None
    ) -> Tensor:
        grouped = _group(query, len(key))
        weights = _capped_scores(grouped, key, scale, softcap)
        weights.masked_fill_(_repeat(mask, grouped), float("-inf"))
        normaliser = torch.logsumexp(weights, dim=-1, keepdim=True)
        weights = weights.sub_(normaliser).exp_()
        output = (weights.to(value.dtype) @ value).view_as(query)
        ctx.save_for_backward(query, key, value, mask, normaliser, output)
        ctx.scale, ctx.softcap = scale, softcap
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        query, key, value, mask, normaliser, output = ctx.saved_tensors
        grouped, grad = _group(query, len(key)), _group(grad_output.contiguous(), len(key))
        scores = _capped_scores(grouped, key, ctx.scale, ctx.softcap)
        weights = (scores - normaliser).exp_().masked_fill_(_repeat(mask, grouped), 0.0)
        low = weights.to(value.dtype)
        # d softmax: each row of the weights' gradient is centred on the output's projection.
        centre = (grad.to(weights.dtype) * _group(output, len(key))).sum(-1, keepdim=True)
        grad_scores = (grad @ value.transpose(1, 2)).to(weights.dtype).sub_(centre).mul_(weights)
        if ctx.softcap is not None:
            grad_scores.mul_(1 - (scores / ctx.softcap) ** 2)
        grad_scores = grad_scores.mul_(ctx.scale).to(query.dtype)
        return (
            (grad_scores @ key).view_as(query),
            grad_scores.transpose(1, 2) @ grouped,
            low.transpose(1, 2) @ grad,
            None,
            None,
            None,
        )


def _group(x: Tensor, key_heads: int) -> Tensor:
    """(heads, W, D) -> (key heads, heads / key heads * W, D)."""
    return x.reshape(key_heads, -1, x.shape[-1])


def _repeat(mask: Tensor, grouped: Tensor) -> Tensor:
    """What a query must not see, (groups * W, W), once per query head of a key head."""
    return ~mask.repeat(grouped.shape[1] // len(mask), 1)


def _capped_scores(grouped: Tensor, key: Tensor, scale: float, softcap: float | None) -> Tensor:
    """Scores (key heads, groups * W, W) in float32 or higher, before the mask."""
    scores = grouped @ key.transpose(1, 2)
    scores = (scores if scores.dtype == torch.float64 else scores.float()) * scale
    return scores if softcap is None else torch.tanh(scores / softcap) * softcap
