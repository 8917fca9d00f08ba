"""Log-probabilities from hidden states, without ever holding all logits.

The language-model head runs over chunks of positions. For a frozen head the derivative of a log-probability by its
hidden state does not depend on the loss, so it is computed with the forward pass, while the chunk's logits exist, and
backward is one multiplication.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# Logits held at a time: 2^24 float32 numbers are 64 MiB, 340 positions of a vocabulary of 49k.
_CHUNK_LOGITS = 2**24


@dataclass(frozen=True)
class LMHead:
    """The way from a final hidden state to logits: ``softcap * tanh(scale * module(h) / softcap)``.

    Attributes:
        module: The output embedding.
        scale: Factor on the logits (Cohere's ``logit_scale``, the inverse of Granite's ``logits_scaling``).
        softcap: Gemma's ``final_logit_softcapping``; None for none.
    """

    module: nn.Module
    scale: float = 1.0
    softcap: float | None = None

    @property
    def vocabulary(self) -> int:
        """Number of tokens the head scores."""
        return cast(Tensor, self.module.weight).shape[0]

    @property
    def is_frozen_linear(self) -> bool:
        """Whether the head is a plain linear layer that nobody trains."""
        return type(self.module) is nn.Linear and not any(p.requires_grad for p in self.module.parameters())

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (N, V) in float32, or float64 if the hidden states (N, H) are."""
        return self.transform(_upcast(self.module(hidden)))

    def transform(self, raw: Tensor) -> Tensor:
        """Scale and soft-cap the logits of the module."""
        logits = raw if self.scale == 1.0 else raw * self.scale
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap

    def transform_grad(self, logits: Tensor, grad: Tensor) -> Tensor:
        """Derivative by the module's output, from the derivative by the final logits."""
        if self.softcap is not None:
            grad = grad * (1 - (logits / self.softcap) ** 2)
        return grad if self.scale == 1.0 else grad * self.scale


def completion_logps(hidden: Tensor, targets: Tensor, head: LMHead, *, collision: bool) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities of target tokens.

    Args:
        hidden: Final hidden states at the predicting positions, (N, H).
        targets: Tokens to score, int64 (N,).
        head: The language-model head.
        collision: Also return ``log sum_v p(v)^2`` per position (for WPO).

    Returns:
        Log-probabilities (N,) float32 (float64 for float64 hidden states), and the collision terms (N,), without
        gradient, or None.
    """
    if head.is_frozen_linear:
        logps, collisions = _FrozenHeadLogProbs.apply(hidden, targets, head, collision)
        return logps, collisions if collision else None
    parts = [
        checkpoint(_chunk_logps, h, t, head.logits, collision, use_reentrant=False)
        for h, t in zip(*(x.split(_chunk_rows(head.vocabulary)) for x in (hidden, targets)), strict=True)
    ]
    logps, collisions = (torch.cat(column) for column in zip(*parts, strict=True))
    return logps, collisions if collision else None


def _chunk_logps(
    hidden: Tensor, targets: Tensor, logits_of: Callable[[Tensor], Tensor], collision: bool
) -> tuple[Tensor, Tensor]:
    log_probs = torch.log_softmax(logits_of(hidden), dim=-1)
    return log_probs.gather(1, targets[:, None])[:, 0], _collision(log_probs.detach(), collision)


class _FrozenHeadLogProbs(torch.autograd.Function):
    """Chunked ``log_softmax(head(hidden))[target]``; differentiable by the hidden states only."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: Tensor, head: LMHead, collision: bool) -> tuple[Tensor, Tensor]:
        rows = _chunk_rows(head.vocabulary)
        weight = cast(Tensor, head.module.weight)
        needs_grad = ctx.needs_input_grad[0]
        derivative = torch.empty_like(hidden) if needs_grad else None
        logps, collisions = [], []
        for start in range(0, len(hidden), rows):
            part = slice(start, start + rows)
            target = targets[part, None]
            logits = head.logits(hidden[part])
            log_probs = torch.log_softmax(logits, dim=-1)
            logps.append(log_probs.gather(1, target)[:, 0])
            collisions.append(_collision(log_probs, collision))
            if derivative is not None:
                grad_logits = log_probs.exp_().neg_()
                grad_logits.scatter_add_(1, target, torch.ones_like(target, dtype=grad_logits.dtype))
                derivative[part] = head.transform_grad(logits, grad_logits).to(weight.dtype) @ weight
        ctx.save_for_backward(*(() if derivative is None else (derivative,)))
        collided = torch.cat(collisions)
        ctx.mark_non_differentiable(collided)
        return torch.cat(logps), collided

    @staticmethod
    def backward(ctx: Any, grad_logps: Tensor, _: Tensor) -> tuple[Tensor, None, None, None]:
        (derivative,) = ctx.saved_tensors
        return (grad_logps[:, None] * derivative).to(derivative.dtype), None, None, None


def _collision(log_probs: Tensor, wanted: bool) -> Tensor:
    return torch.logsumexp(2 * log_probs, dim=-1) if wanted else log_probs.new_empty(len(log_probs))


def _chunk_rows(vocabulary: int) -> int:
    return max(1, _CHUNK_LOGITS // vocabulary)


def _upcast(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
