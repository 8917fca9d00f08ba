"""Log-probabilities from hidden states, without ever holding all logits.

A frozen head runs over blocks of the vocabulary. The derivative of a log-probability by its hidden state does not
depend on the loss, so it is computed with the forward pass, while the block's logits exist, and backward is one
multiplication. A trained head runs over chunks of positions, which backward computes again.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from agiledpo.layers.elementwise import PLAIN, Elementwise, wide
from agiledpo.layers.products import linear

# Logits held at a time by a trained head or on an accelerator: 64 MiB in float32, 340 positions of 49k tokens.
_CHUNK_LOGITS = 2**24
# The same by a frozen head on a CPU: 8 MiB in float32 stay in a cache between the passes over them.
_BLOCK_LOGITS = 2**21
# Tokens whose weights are converted at a time, however few the positions.
_BLOCK_TOKENS = 2**13
# Positions that share the conversion of a block of weights.
_POSITIONS = 1024


@dataclass(frozen=True)
class LMHead:
    """The way from a final hidden state to logits: ``softcap * tanh(scale * module(h) / softcap) / temperature``.

    Attributes:
        module: The output embedding.
        scale: Factor on the logits (Cohere's ``logit_scale``, the inverse of Granite's ``logits_scaling``).
        softcap: Gemma's ``final_logit_softcapping``; None for none.
        elementwise: How to run the softmax's formulas.
        temperature: That of the distribution that is scored; 1 is the model's own.
    """

    module: nn.Module
    scale: float = 1.0
    softcap: float | None = None
    elementwise: Elementwise = PLAIN
    temperature: float = 1.0

    @property
    def weight(self) -> Tensor:
        """Output embedding of each token, (V, H)."""
        return cast(Tensor, self.module.weight)

    @property
    def bias(self) -> Tensor | None:
        """Bias of each token's logit, (V,), if there is one."""
        return cast(Tensor | None, self.module.bias)

    @property
    def vocabulary(self) -> int:
        """Number of tokens the head scores."""
        return self.weight.shape[0]

    @property
    def is_frozen_linear(self) -> bool:
        """Whether the head is a plain linear layer that nobody trains."""
        return type(self.module) is nn.Linear and not any(p.requires_grad for p in self.module.parameters())

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (N, V) in float32, or float64 if the hidden states (N, H) are."""
        return self.transform(wide(self.module(hidden.to(self.weight.dtype))))

    def block_logits(self, hidden: Tensor, block: slice) -> Tensor:
        """Logits (N, block) of some tokens of the vocabulary, in the dtype of ``hidden``, of a linear head."""
        weight, bias = self.weight[block], self.bias if self.bias is None else self.bias[block]
        if weight.device.type == "cpu":
            # Twice the time of bfloat16 products, and a tenth of a nat less error in a completion's log-probability.
            return self.transform(linear(hidden, weight.to(hidden.dtype), None if bias is None else wide(bias)))
        return self.transform(F.linear(hidden.to(weight.dtype), weight, bias).to(hidden.dtype))

    def target_logits(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Logit (N, 1) of one token at each position, in the dtype of ``hidden``, of a linear head."""
        raw = (hidden * self.weight[targets]).sum(1, keepdim=True)
        return self.transform(raw if self.bias is None else raw + self.bias[targets, None])

    def transform(self, raw: Tensor) -> Tensor:
        """Scale and soft-cap the logits of the module, and divide them by the temperature."""
        logits = raw if self.scale == 1.0 else raw * self.scale
        capped = logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap
        return capped if self.temperature == 1.0 else capped / self.temperature

    def bend(self, logits: Tensor) -> Tensor:
        """Derivative of the soft cap, from what :meth:`transform` made."""
        return 1 - (logits * (self.temperature / cast(float, self.softcap))).square()

    @property
    def slope(self) -> float:
        """Derivative of the rest of :meth:`transform`."""
        return self.scale / self.temperature


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
    logps, collisions, _ = _scores(hidden, targets, head, collision=collision, hits=False)
    return logps, collisions if collision else None


def completion_hits(hidden: Tensor, targets: Tensor, head: LMHead) -> tuple[Tensor, Tensor]:
    """Log-probabilities of target tokens, and whether they are what the model would say.

    Args:
        hidden: Final hidden states at the predicting positions, (N, H).
        targets: Tokens to score, int64 (N,).
        head: The language-model head.

    Returns:
        Log-probabilities (N,) as :func:`completion_logps`, and bool (N,), whether no token has a larger logit.
    """
    logps, _, hits = _scores(hidden, targets, head, collision=False, hits=True)
    return logps, hits


def _scores(
    hidden: Tensor, targets: Tensor, head: LMHead, *, collision: bool, hits: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities, collision terms and hits; the last two empty unless asked for."""
    if head.is_frozen_linear:
        return _FrozenHeadLogProbs.apply(hidden, targets, head, collision, hits)
    parts = [
        checkpoint(_chunk_scores, h, t, head.logits, collision, hits, use_reentrant=False)
        for h, t in zip(*(x.split(_chunk_rows(head.vocabulary)) for x in (hidden, targets)), strict=True)
    ]
    logps, collisions, found = (torch.cat(column) for column in zip(*parts, strict=True))
    return logps, collisions, found


def _chunk_scores(
    hidden: Tensor, targets: Tensor, logits_of: Callable[[Tensor], Tensor], collision: bool, hits: bool
) -> tuple[Tensor, Tensor, Tensor]:
    log_probs = torch.log_softmax(logits_of(hidden), dim=-1)
    logps = log_probs.gather(1, targets[:, None])[:, 0]
    found = logps.detach() >= log_probs.detach().amax(1) if hits else targets.new_empty(0, dtype=torch.bool)
    return logps, _collision(log_probs.detach(), collision), found


class _FrozenHeadLogProbs(torch.autograd.Function):
    """``log_softmax(head(hidden))[target]``, differentiable by the hidden states, a block of the vocabulary at a time.

    The softmax is accumulated over the blocks under a running maximum, as FlashAttention does over keys (Dao et al.
    2022, https://arxiv.org/abs/2205.14135, algorithm 1), and with it its product with the weights, which is the
    derivative of the normaliser. No block is computed twice.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, targets: Tensor, head: LMHead, collision: bool, hits: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        needs_grad = ctx.needs_input_grad[0]
        parts = [
            _score_positions(h, t, head, collision=collision, hits=hits, needs_grad=needs_grad)
            for h, t in zip(hidden.detach().split(_POSITIONS), targets.split(_POSITIONS), strict=True)
        ]
        logps, collisions, found, derivatives = (torch.cat(column) for column in zip(*parts, strict=True))
        ctx.save_for_backward(derivatives.to(hidden.dtype))
        ctx.mark_non_differentiable(collisions, found)
        return logps, collisions, found

    @staticmethod
    def backward(ctx: Any, grad_logps: Tensor, *_: Tensor) -> tuple[Tensor, None, None, None, None]:
        (derivative,) = ctx.saved_tensors
        return (grad_logps[:, None] * derivative).to(derivative.dtype), None, None, None, None


def _score_positions(
    hidden: Tensor, targets: Tensor, head: LMHead, *, collision: bool, hits: bool, needs_grad: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-probabilities, collision terms, hits and derivatives by ``hidden``; the last three empty unless asked for."""
    weight, rows = head.weight, _block_tokens(hidden)
    hidden = wide(hidden)
    largest = hidden.new_full((len(hidden), 1), torch.finfo(hidden.dtype).min)
    total = torch.zeros_like(largest)  # of the softmax's weights, in units of exp(largest)
    squares = torch.zeros_like(largest)
    slope = torch.zeros_like(hidden)  # derivative of the total, in the same units
    own = torch.full_like(largest, -torch.inf)  # the target's logit as its block has it, to compare with the largest
    for start in range(0, head.vocabulary, rows):
        block = slice(start, start + rows)
        logits = head.block_logits(hidden, block)
        if hits:
            inside = ((targets >= start) & (targets < start + logits.shape[1]))[:, None]
            place = (targets - start).clamp(0, logits.shape[1] - 1)[:, None]
            own = torch.where(inside, logits.gather(1, place), own)
        before, largest = largest, torch.maximum(largest, logits.amax(1, keepdim=True))
        shrink = (before - largest).exp_()
        bent = head.bend(logits) if needs_grad and head.softcap is not None else None
        weights, part = head.elementwise.shifted_exp(logits, largest)
        total.mul_(shrink).add_(part)
        if collision:
            squares.mul_(shrink.square()).add_(weights.square().sum(1, keepdim=True))
        if needs_grad:
            weights = weights if bent is None else weights.mul_(bent)
            slope.mul_(shrink).add_(linear(weights.to(weight.dtype), weight[block].t()))
    # The target's own logit once more, in full precision: in bfloat16 its rounding would be the largest error of all.
    chosen = head.target_logits(hidden, targets)
    logps = (chosen - largest - total.log())[:, 0]
    found = (own >= largest)[:, 0] if hits else targets.new_empty(0, dtype=torch.bool)
    collisions = (squares.log() - 2 * total.log())[:, 0] if collision else logps.new_empty(len(logps))
    if not needs_grad:
        return logps, collisions, found, hidden.new_empty(0, hidden.shape[1])
    bend = 1.0 if head.softcap is None else head.bend(chosen)
    derivative = wide(weight[targets]).mul_(bend).sub_(slope.div_(total)).mul_(head.slope)
    return logps, collisions, found, derivative


def _block_tokens(hidden: Tensor) -> int:
    """Tokens of the vocabulary per block."""
    if hidden.device.type == "cpu":
        return min(max(1, _BLOCK_LOGITS // len(hidden)), _BLOCK_TOKENS)
    return max(1, _CHUNK_LOGITS // len(hidden))  # fewer, larger kernels


def _collision(log_probs: Tensor, wanted: bool) -> Tensor:
    return torch.logsumexp(2 * log_probs, dim=-1) if wanted else log_probs.new_empty(len(log_probs))


def _chunk_rows(vocabulary: int) -> int:
    return max(1, _CHUNK_LOGITS // vocabulary)
