"""What the losses read: log-probabilities per token and per sequence."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenLogProbs:
    """Per-token log-probabilities of a batch of completions, such as one side (chosen or rejected) of pairs.

    Rows are right-padded: the completion starts in column 0.

    Attributes:
        logps: (B, T) floating point. Log-probability of each completion token; padding holds 0.
        mask: (B, T) bool. True on completion tokens, False on padding.
        log_collision: (B, T) or None. log sum_v p(v)^2 at each position, without gradient. Only WPO weights read it.
        hits: (B, T) bool or None. Whether no token is more likely there; False at padding. Only accuracies read it.

    Raises:
        ValueError: If shapes or dtypes do not fit together.
    """

    logps: Tensor
    mask: Tensor
    log_collision: Tensor | None = None
    hits: Tensor | None = None

    def __post_init__(self) -> None:
        if self.logps.ndim != 2 or not self.logps.is_floating_point():
            raise ValueError(
                f"logps must be floating point of shape (B, T), got {self.logps.dtype} of shape "
                f"{tuple(self.logps.shape)}."
            )
        if self.mask.dtype != torch.bool or self.mask.shape != self.logps.shape:
            raise ValueError(
                f"mask must be bool of shape {tuple(self.logps.shape)} like logps, got {self.mask.dtype} of shape "
                f"{tuple(self.mask.shape)}."
            )
        if self.log_collision is not None and self.log_collision.shape != self.logps.shape:
            raise ValueError(
                f"log_collision must have the shape {tuple(self.logps.shape)} of logps, got "
                f"{tuple(self.log_collision.shape)}."
            )

        if self.hits is not None and (self.hits.dtype != torch.bool or self.hits.shape != self.logps.shape):
            raise ValueError(
                f"hits must be bool of shape {tuple(self.logps.shape)} like logps, got {self.hits.dtype} of shape "
                f"{tuple(self.hits.shape)}."
            )

    @property
    def lengths(self) -> Tensor:
        """(B,) int64. Number of completion tokens of each row."""
        return self.mask.sum(dim=1)


@dataclass(frozen=True, kw_only=True, eq=False)
class PairLogProbs:
    """Sequence-level log-probabilities of a batch of pairs.

    The four log-probabilities are sums over tokens unless the caller averaged or weighted them (see `sequence`).

    Attributes:
        policy_chosen: (B,) floating point. log pi(chosen | prompt).
        policy_rejected: (B,) floating point. log pi(rejected | prompt).
        reference_chosen: (B,) floating point. log pi_ref(chosen | prompt).
        reference_rejected: (B,) floating point. log pi_ref(rejected | prompt).
        chosen_tokens: (B,) integer. Completion length of the chosen side.
        rejected_tokens: (B,) integer. Completion length of the rejected side.

    Raises:
        ValueError: If the six tensors are not one-dimensional and equally long.
    """

    policy_chosen: Tensor
    policy_rejected: Tensor
    reference_chosen: Tensor
    reference_rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor

    def __post_init__(self) -> None:
        shapes = {
            "policy_chosen": tuple(self.policy_chosen.shape),
            "policy_rejected": tuple(self.policy_rejected.shape),
            "reference_chosen": tuple(self.reference_chosen.shape),
            "reference_rejected": tuple(self.reference_rejected.shape),
            "chosen_tokens": tuple(self.chosen_tokens.shape),
            "rejected_tokens": tuple(self.rejected_tokens.shape),
        }
        if len(set(shapes.values())) != 1 or self.policy_chosen.ndim != 1:
            raise ValueError(f"All tensors of a batch of pairs must have the same shape (B,), got {shapes}.")

    @property
    def chosen_logratios(self) -> Tensor:
        """(B,). log pi(chosen) - log pi_ref(chosen)."""
        return self.policy_chosen - self.reference_chosen

    @property
    def rejected_logratios(self) -> Tensor:
        """(B,). log pi(rejected) - log pi_ref(rejected)."""
        return self.policy_rejected - self.reference_rejected
