"""The clipped policy-gradient losses of GRPO and its kin, as functions of log-probabilities and advantages."""

from dataclasses import dataclass

import torch
from torch import Tensor

from agiledpo.losses.checks import check_name, check_number, check_whole_number
from agiledpo.losses.inputs import TokenLogProbs

LOSS_TYPES = ("grpo", "gspo", "cispo")
LOSS_NORMALIZATIONS = ("sequence", "token", "constant")
IMPORTANCE_SAMPLING_LEVELS = ("token", "trajectory")


@dataclass(frozen=True, kw_only=True, eq=False)
class PolicyTerms:
    """The objective of some completions. Its value for an optimizer step is the mean of ``loss`` over the step.

    Everything but ``loss`` is detached.

    Attributes:
        loss: (N,) with gradient.
        kl: (N,) KL divergence from the reference (k3), summed over tokens, nats; None without a reference.
        logps: (N,) log-probability of the completion under the policy, nats.
        clipped_low: (N,) int64. Tokens whose ratio the lower bound held.
        clipped_high: (N,) int64. Tokens whose ratio the upper bound held.
        tokens: (N,) int64. Tokens.
    """

    loss: Tensor
    kl: Tensor | None
    logps: Tensor
    clipped_low: Tensor
    clipped_high: Tensor
    tokens: Tensor


@dataclass(frozen=True, kw_only=True)
class PolicyObjective:
    """A policy-gradient objective, checked when it is built and called on log-probabilities.

    With the ratio ``r = pi / pi_old`` of a token, its advantage A and ``clip(r)`` = r held within ``bounds``, the loss
    of a token is ``-min(r A, clip(r) A) + beta * (pi_ref / pi - log(pi_ref / pi) - 1)``.

    * ``"grpo"``: just that (Shao et al. 2024, "DeepSeekMath", arXiv:2402.03300, eq. 3 and 4).
    * ``"gspo"``: r is the same for all tokens of a completion, the geometric mean of their ratios (Zheng et al. 2025,
      "Group Sequence Policy Optimization", arXiv:2507.18071, eq. 5 and 7). Its gradient is that of GSPO-token (eq. 13
      to 18): each token's own advantage pulls at it, which is the same where a completion has one advantage.
    * ``"cispo"``: ``-stop_gradient(clip(r)) A log pi`` instead of the minimum, so that no token loses its gradient
      (MiniMax 2025, "MiniMax-M1", arXiv:2506.13585, eq. 4 and 5).

    Attributes:
        loss_type: One of these three.
        clip_coef: c for ratios from 1 - c to 1 + c, or the bounds themselves, (min, max), with min <= 1 <= max. DAPO's
            are (0.8, 1.28) (Yu et al. 2025, arXiv:2503.14476).
        beta: Weight of the KL divergence from the reference, by the estimator k3 (Schulman 2020,
            http://joschu.net/blog/kl-approx.html); 0 needs no reference.
        importance_sampling_level: ``"token"``, or ``"trajectory"`` for GSPO's ratio; None takes what ``loss_type``
            says.
        loss_normalization: ``"sequence"``: mean over the tokens of a completion, then over completions (GRPO);
            ``"token"``: mean over all completion tokens of the optimizer step (DAPO); ``"constant"``: the sum over
            tokens divided by ``max_completion_length``, then the mean over completions (Dr. GRPO, Liu et al. 2025,
            arXiv:2503.20783).
        max_completion_length: Tokens, for ``"constant"``.
        sampling_cap: Largest weight of the correction for tokens that another engine sampled (truncated importance
            sampling, Yao et al. 2025, https://fengyao.notion.site/off-policy-rl).

    Raises:
        ValueError: If a value or a combination of values is not admissible; the message names it and the way out.
    """

    loss_type: str = "grpo"
    clip_coef: float | tuple[float, float] = 0.2
    beta: float = 0.001
    importance_sampling_level: str | None = None
    loss_normalization: str = "sequence"
    max_completion_length: int | None = None
    sampling_cap: float = 2.0

    def __post_init__(self) -> None:
        check_name("loss_type", self.loss_type, LOSS_TYPES)
        check_name("loss_normalization", self.loss_normalization, LOSS_NORMALIZATIONS)
        check_clip_coef(self.clip_coef)
        check_number("beta", self.beta, minimum=0.0)
        check_number("sampling_cap", self.sampling_cap, minimum=0.0, exclusive=True)
        if self.importance_sampling_level is not None:
            check_name("importance_sampling_level", self.importance_sampling_level, IMPORTANCE_SAMPLING_LEVELS)
        if self.loss_type == "gspo" and self.importance_sampling_level == "token":
            raise ValueError(
                "loss_type='gspo' has one ratio per completion, which importance_sampling_level='token' contradicts. "
                "Set importance_sampling_level=None, or loss_type='grpo'."
            )
        if self.loss_normalization == "constant" and self.max_completion_length is None:
            raise ValueError("loss_normalization='constant' divides by max_completion_length, which is None; pass it.")
        if self.max_completion_length is not None:
            check_whole_number("max_completion_length", self.max_completion_length)

    @property
    def bounds(self) -> tuple[float, float]:
        """Smallest and largest ratio."""
        if isinstance(self.clip_coef, tuple):
            return self.clip_coef
        return 1 - self.clip_coef, 1 + self.clip_coef

    @property
    def level(self) -> str:
        """What has one ratio: a token or a trajectory, which is a completion."""
        return "trajectory" if self.loss_type == "gspo" else self.importance_sampling_level or "token"

    def describe(self) -> str:
        """The objective on one line."""
        low, high = self.bounds
        means = {
            "sequence": "mean over the tokens of a completion",
            "token": "mean over the tokens of a step",
            "constant": f"sum over tokens / {self.max_completion_length}",
        }
        text = f"{self.loss_type}({self.level} ratios from {low:g} to {high:g}, {means[self.loss_normalization]})"
        return f"{text} + {self.beta:g} * KL(policy || reference)" if self.beta > 0 else text

    def __call__(
        self,
        policy: TokenLogProbs,
        advantages: Tensor,
        *,
        old: TokenLogProbs | None = None,
        reference: TokenLogProbs | None = None,
        sampling: Tensor | None = None,
        mean_tokens: float | None = None,
    ) -> PolicyTerms:
        """Evaluate the objective on the completions of an optimizer step, or on some of them.

        Args:
            policy: Log-probabilities under the policy, (N, T).
            advantages: Advantage of each token, (N, T).
            old: The same as ``policy`` under the policy that is left behind; None for the policy as it is, without
                gradient, which makes every ratio 1.
            reference: The same under the reference; needed unless ``beta`` is 0.
            sampling: Log-probability of each token by what sampled it, (N, T), NaN where that is not known: the loss
                without its KL term is weighed by ``min(pi_old / pi_sampling, sampling_cap)``. None weighs nothing.
            mean_tokens: Tokens divided by completions over the whole optimizer step; give it when this call sees only a
                part of the step. None takes it from ``policy``.

        Returns:
            The terms, each (N,), in float32 or higher.

        Raises:
            ValueError: If the reference is missing or ``mean_tokens`` is not positive.
        """
        if self.beta > 0 and reference is None:
            raise ValueError(
                f"beta={self.beta} needs the reference's log-probabilities; pass reference, or set beta=0."
            )
        if mean_tokens is not None and not mean_tokens > 0:
            raise ValueError(
                f"mean_tokens={mean_tokens} must be positive; pass the tokens of the optimizer step divided by its "
                "completions."
            )
        mask, lengths = policy.mask, policy.lengths
        logps = _masked(policy.logps, mask)
        old_logps = logps.detach() if old is None else _masked(old.logps, mask).detach()
        advantages = _masked(advantages, mask)

        log_ratios = logps - old_logps
        if self.level == "trajectory":
            means = (log_ratios.sum(1) / lengths.clamp(min=1))[:, None].detach()
            log_ratios = means + (logps - logps.detach())  # the mean's value, with the gradient of each token's own
        ratios = log_ratios.exp()
        low, high = self.bounds
        clipped = ratios.clamp(low, high)
        if self.loss_type == "cispo":
            losses = -clipped.detach() * advantages * logps
            below, above = (ratios < low) & (advantages != 0), (ratios > high) & (advantages != 0)
        else:
            losses = -torch.min(ratios * advantages, clipped * advantages)
            below, above = (ratios < low) & (advantages < 0), (ratios > high) & (advantages > 0)
        if sampling is not None:
            losses = losses * self._sampling_weights(old_logps, sampling)
        divergence = None
        if self.beta > 0 and reference is not None:
            divergence = _k3(logps, _masked(reference.logps, mask).detach())
            losses = losses + self.beta * divergence

        return PolicyTerms(
            loss=_masked(losses, mask).sum(1) / self._divisor(lengths, mean_tokens),
            kl=None if divergence is None else _masked(divergence, mask).sum(1).detach(),
            logps=logps.sum(1).detach(),
            clipped_low=(below & mask).sum(1),
            clipped_high=(above & mask).sum(1),
            tokens=lengths,
        )

    def _sampling_weights(self, old_logps: Tensor, sampling: Tensor) -> Tensor:
        """(N, T) ``min(pi_old / pi_sampling, sampling_cap)``, and 1 where the latter is not known."""
        return (old_logps - sampling).nan_to_num(nan=0.0).exp().clamp(max=self.sampling_cap).detach()

    def _divisor(self, lengths: Tensor, mean_tokens: float | None) -> Tensor | float:
        """What the sum over the tokens of each completion is divided by."""
        if self.loss_normalization == "sequence":
            return lengths.clamp(min=1)
        if self.loss_normalization == "constant":
            assert self.max_completion_length is not None
            return self.max_completion_length
        return float(lengths.sum()) / len(lengths) if mean_tokens is None else mean_tokens


def check_clip_coef(clip_coef: float | tuple[float, ...]) -> None:
    """Check a ``clip_coef`` argument.

    Raises:
        ValueError: It is no number of at least 0 and no pair of bounds around 1.
    """
    if not isinstance(clip_coef, tuple):
        check_number("clip_coef", clip_coef, minimum=0.0)
        return
    if len(clip_coef) != 2:
        raise ValueError(f"clip_coef={clip_coef!r} must be one number, or two: the smallest and the largest ratio.")
    for name, bound in zip(("min", "max"), clip_coef, strict=True):
        check_number(f"clip_coef ({name})", bound, minimum=0.0)
    if not clip_coef[0] <= 1 <= clip_coef[1]:
        raise ValueError(
            f"clip_coef={clip_coef} must hold ratios around 1, where they start: min <= 1 <= max, such as (0.8, 1.28)."
        )


def _k3(logps: Tensor, reference: Tensor) -> Tensor:
    """Estimate KL(policy || reference) from tokens of the policy: q - log q - 1 with q = pi_ref / pi, at least 0."""
    log_quotients = reference - logps
    return log_quotients.exp() - log_quotients - 1


def _masked(values: Tensor, mask: Tensor) -> Tensor:
    """`values` (N, T) in float32 or higher with 0 at the padding, whatever the padding held before."""
    return values.to(torch.promote_types(values.dtype, torch.float32)).masked_fill(~mask, 0.0)
