"""The training objective of preference tuning: a weighted sum of preference losses and likelihood terms."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from agiledpo.losses.checks import check_name, check_number, refuse
from agiledpo.losses.divergences import F_DIVERGENCE_TYPES, make_divergence
from agiledpo.losses.inputs import PairLogProbs, TokenLogProbs
from agiledpo.losses.pointwise import sft
from agiledpo.losses.registry import PREFERENCE_LOSSES, LabelSmoothing, LossSettings, PreferenceLoss
from agiledpo.losses.sequence import ld_sequence_logps, nll, sequence_logps, wpo_weights


@dataclass(frozen=True, kw_only=True, eq=False)
class ObjectiveTerms:
    """The objective of a batch, per pair. The value for the batch is the mean over pairs.

    `loss` is the weighted sum of the three terms below it; the terms are without the weights of the objective, so that
    curves of runs with different weights can be compared. Everything but `loss` is detached.

    Attributes:
        loss: (B,) total, with gradient.
        preference_loss: (B,) sum of loss_weights[k] * loss_type[k].
        sft_loss: (B,) negative log-likelihood of the chosen completion, summed or averaged over its tokens.
        nll_loss: (B,) negative log-likelihood of the chosen completion over the batch's mean chosen length.
        chosen_rewards: (B,) beta * (log pi - log pi_ref) of chosen, from plain sums over tokens.
        rejected_rewards: (B,) the same of rejected.
        chosen_logps: (B,) log pi(chosen), the plain sum over tokens.
        rejected_logps: (B,) log pi(rejected), the plain sum over tokens.
    """

    loss: Tensor
    preference_loss: Tensor
    sft_loss: Tensor
    nll_loss: Tensor
    chosen_rewards: Tensor
    rejected_rewards: Tensor
    chosen_logps: Tensor
    rejected_logps: Tensor

    def slice(self, start: int, stop: int) -> "ObjectiveTerms":
        """The terms of pairs ``start`` to ``stop``."""
        return ObjectiveTerms(**{name: column[start:stop] for name, column in vars(self).items()})


def preference_accuracy(chosen_rewards: Tensor, rejected_rewards: Tensor) -> Tensor:
    """Whether each pair is ranked correctly: 1 if chosen has the larger reward, 0.5 for a tie, else 0.

    Args:
        chosen_rewards: (B,) rewards of chosen.
        rejected_rewards: (B,) rewards of rejected.

    Returns:
        (B,) in the dtype of the rewards.
    """
    ties = 0.5 * (chosen_rewards == rejected_rewards).to(chosen_rewards.dtype)
    return (chosen_rewards > rejected_rewards).to(chosen_rewards.dtype) + ties


@dataclass(frozen=True, kw_only=True)
class PreferenceObjective:
    """A preference-tuning objective, checked when it is built and called on log-probabilities.

    Formula, as a mean over pairs: preference_loss_weight * sum_k loss_weights[k] * loss_type[k]
    + sft_loss_weight * NLL(chosen) + nll_alpha * token-mean NLL(chosen).

    Attributes:
        loss_type: Names in `PREFERENCE_LOSSES`.
        loss_weights: One weight >= 0 per loss; None means 1 each.
        beta: Strength of the pull towards the reference, > 0.
        label_smoothing: For robust, exo_pair, aot and aot_unpaired; in [0, 0.5). exo_pair needs more than 0.
        f_divergence_type: Regulariser of the losses of the margin; one of `F_DIVERGENCE_TYPES`.
        f_alpha_divergence_coef: Order of the alpha-divergence.
        ld_alpha: LD-DPO weight in [0, 1] of tokens beyond the length shared by the pair; None switches it off.
        use_weighting: Multiply the loss of each pair by its WPO weight.
        discopop_tau: Temperature of DiscoPOP, > 0.
        nll_alpha: Weight of the likelihood of chosen, averaged over all chosen tokens of the optimizer batch.
        preference_loss_weight: Weight of the preference losses together.
        sft_loss_weight: Weight of the likelihood of chosen per sequence, averaged over pairs.
        preference_average_log_probs: The preference losses see mean instead of summed log-probabilities.
        sft_average_log_probs: The per-sequence likelihood is averaged over its tokens instead of summed.

    Raises:
        ValueError: If a value or a combination of values is not admissible; the message names it and the way out.
    """

    loss_type: tuple[str, ...] = ("sigmoid",)
    loss_weights: tuple[float, ...] | None = None
    beta: float = 0.1
    label_smoothing: float = 0.0
    f_divergence_type: str = "reverse_kl"
    f_alpha_divergence_coef: float = 0.5
    ld_alpha: float | None = None
    use_weighting: bool = False
    discopop_tau: float = 0.05
    nll_alpha: float = 0.0
    preference_loss_weight: float = 1.0
    sft_loss_weight: float = 0.0
    preference_average_log_probs: bool = False
    sft_average_log_probs: bool = False

    def __post_init__(self) -> None:
        self._check_losses()
        self._check_numbers()
        self._check_combinations()

    @property
    def batch_coupled(self) -> bool:
        """Whether the loss of a pair depends on the other pairs, so that a batch must not be split."""
        return any(loss.batch_coupled for _, loss in self._weighted_losses)

    @property
    def pools_tokens(self) -> bool:
        """Whether a term is a mean over tokens, so that a split batch needs `mean_chosen_tokens`."""
        return self.nll_alpha > 0 or any(loss.pools_tokens for _, loss in self._weighted_losses)

    def describe(self) -> str:
        """The objective on one line, such as "1 * sigmoid(beta=0.1) + 1 * token-mean NLL of chosen"."""
        terms = [f"{weight:g} * {self._describe_loss(loss)}" for weight, loss in self._weighted_losses]
        if self.sft_loss_weight > 0:
            reduction = "averaged" if self.sft_average_log_probs else "summed"
            terms.append(f"{self.sft_loss_weight:g} * NLL of chosen {reduction} per sequence")
        if self.nll_alpha > 0:
            terms.append(f"{self.nll_alpha:g} * token-mean NLL of chosen")
        return " + ".join(terms)

    def __call__(
        self,
        policy_chosen: TokenLogProbs,
        policy_rejected: TokenLogProbs,
        reference_chosen: TokenLogProbs,
        reference_rejected: TokenLogProbs,
        *,
        mean_chosen_tokens: float | None = None,
    ) -> ObjectiveTerms:
        """Evaluate the objective on a batch, or on a part of one.

        Args:
            policy_chosen: Policy log-probabilities of chosen, (B, T_chosen). WPO needs `log_collision` in it.
            policy_rejected: Policy log-probabilities of rejected, (B, T_rejected). WPO needs `log_collision` in it.
            reference_chosen: Reference log-probabilities of chosen, (B, T_chosen); no gradient flows into it.
            reference_rejected: Reference log-probabilities of rejected, (B, T_rejected); no gradient flows into it.
            mean_chosen_tokens: Chosen tokens divided by pairs over the whole optimizer batch; give it when this call
                sees only a part of the batch. None takes it from `policy_chosen`.

        Returns:
            The terms, each (B,), in float32 or higher.

        Raises:
            ValueError: If `mean_chosen_tokens` is not positive, or WPO lacks `log_collision`.
        """
        sides = (policy_chosen, policy_rejected, reference_chosen, reference_rejected)
        plain = _pairs(sides, [sequence_logps(side) for side in sides])
        pooled_length = _mean_length(policy_chosen) if mean_chosen_tokens is None else mean_chosen_tokens
        if mean_chosen_tokens is not None and not mean_chosen_tokens > 0:
            raise ValueError(
                f"mean_chosen_tokens={mean_chosen_tokens} must be positive; pass the chosen tokens of the optimizer "
                "batch divided by its number of pairs."
            )

        preference_loss = self._preference_loss(plain, self._reduced(sides), pooled_length)
        if self.use_weighting:
            preference_loss = preference_loss * wpo_weights(policy_chosen, policy_rejected)
        sft_loss = nll(policy_chosen, average=self.sft_average_log_probs)
        nll_loss = sft(plain, mean_chosen_tokens=pooled_length)

        terms = (
            (self.preference_loss_weight, preference_loss),
            (self.sft_loss_weight, sft_loss),
            (self.nll_alpha, nll_loss),
        )
        return ObjectiveTerms(
            loss=_weighted_sum(terms),
            preference_loss=preference_loss.detach(),
            sft_loss=sft_loss.detach(),
            nll_loss=nll_loss.detach(),
            chosen_rewards=self.beta * plain.chosen_logratios.detach(),
            rejected_rewards=self.beta * plain.rejected_logratios.detach(),
            chosen_logps=plain.policy_chosen.detach(),
            rejected_logps=plain.policy_rejected.detach(),
        )

    def _preference_loss(self, plain: PairLogProbs, reduced: PairLogProbs, pooled_length: Tensor | float) -> Tensor:
        """(B,) weighted sum of the losses in `loss_type`."""
        settings = LossSettings(
            beta=self.beta,
            label_smoothing=self.label_smoothing,
            divergence=make_divergence(self.f_divergence_type, alpha_coef=self.f_alpha_divergence_coef),
            discopop_tau=self.discopop_tau,
            mean_chosen_tokens=pooled_length,
        )
        losses = [PREFERENCE_LOSSES[name] for name in self.loss_type]
        values = [loss(plain if loss.pools_tokens else reduced, settings) for loss in losses]
        return _weighted_sum(list(zip(self._loss_weights, values, strict=True)))

    def _reduced(self, sides: Sequence[TokenLogProbs]) -> PairLogProbs:
        """Log-probabilities of the sequences as the preference losses see them."""
        if self.ld_alpha is None:
            return _pairs(sides, [sequence_logps(side, average=self.preference_average_log_probs) for side in sides])
        policy = ld_sequence_logps(sides[0], sides[1], self.ld_alpha)
        reference = ld_sequence_logps(sides[2], sides[3], self.ld_alpha)
        return _pairs(sides, [*policy, *reference])

    @property
    def _loss_weights(self) -> tuple[float, ...]:
        return (1.0,) * len(self.loss_type) if self.loss_weights is None else self.loss_weights

    @property
    def _weighted_losses(self) -> list[tuple[float, PreferenceLoss]]:
        """The losses that count, each with its total weight."""
        weights = [self.preference_loss_weight * weight for weight in self._loss_weights]
        losses = [PREFERENCE_LOSSES[name] for name in self.loss_type]
        return [(weight, loss) for weight, loss in zip(weights, losses, strict=True) if weight > 0]

    def _describe_loss(self, loss: PreferenceLoss) -> str:
        if loss.pools_tokens:
            return f"{loss.name}(token-mean NLL of chosen)"
        details = [f"beta={self.beta:g}"]
        if loss.label_smoothing is not LabelSmoothing.UNUSED and self.label_smoothing > 0:
            details.append(f"label_smoothing={self.label_smoothing:g}")
        if self.f_divergence_type == "alpha_divergence":
            details.append(f"f_divergence=alpha_divergence({self.f_alpha_divergence_coef:g})")
        elif self.f_divergence_type != "reverse_kl":
            details.append(f"f_divergence={self.f_divergence_type}")
        if loss.name == "discopop":
            details.append(f"tau={self.discopop_tau:g}")
        if self.ld_alpha is not None:
            details.append(f"ld_alpha={self.ld_alpha:g}")
        if self.preference_average_log_probs:
            details.append("mean log-probs")
        if self.use_weighting:
            details.append("WPO weights")
        return f"{loss.name}({', '.join(details)})"

    def _check_losses(self) -> None:
        if not isinstance(self.loss_type, tuple) or not self.loss_type:
            raise ValueError(
                f"loss_type={self.loss_type!r} must be a non-empty tuple of names, such as loss_type=('sigmoid',)."
            )
        for name in self.loss_type:
            check_name("loss_type", name, list(PREFERENCE_LOSSES))
        check_name("f_divergence_type", self.f_divergence_type, F_DIVERGENCE_TYPES)
        if self.loss_weights is None:
            return
        if not isinstance(self.loss_weights, tuple) or len(self.loss_weights) != len(self.loss_type):
            raise ValueError(
                f"loss_weights={self.loss_weights!r} must be a tuple with one weight for each of the "
                f"{len(self.loss_type)} losses in loss_type={self.loss_type!r}, or None for equal weights."
            )

    def _check_numbers(self) -> None:
        for index, weight in enumerate(self._loss_weights):
            check_number(f"loss_weights[{index}]", weight, minimum=0.0)
        check_number("beta", self.beta, minimum=0.0, exclusive=True)
        check_number("label_smoothing", self.label_smoothing)
        check_number("f_alpha_divergence_coef", self.f_alpha_divergence_coef)
        check_number("discopop_tau", self.discopop_tau, minimum=0.0, exclusive=True)
        check_number("nll_alpha", self.nll_alpha, minimum=0.0)
        check_number("preference_loss_weight", self.preference_loss_weight, minimum=0.0)
        check_number("sft_loss_weight", self.sft_loss_weight, minimum=0.0)
        if self.ld_alpha is not None:
            check_number("ld_alpha", self.ld_alpha)
            if not 0.0 <= self.ld_alpha <= 1.0:
                raise ValueError(f"ld_alpha={self.ld_alpha} must lie in [0, 1], or be None to switch LD-DPO off.")
        if not self._weighted_losses and self.sft_loss_weight == 0 and self.nll_alpha == 0:
            raise ValueError(
                f"preference_loss_weight={self.preference_loss_weight}, loss_weights={self.loss_weights}, "
                "sft_loss_weight=0 and nll_alpha=0 leave nothing to train; give one of them a weight above 0."
            )

    def _check_combinations(self) -> None:
        losses = [PREFERENCE_LOSSES[name] for name in self.loss_type]
        self._check_label_smoothing(losses)
        if self.f_divergence_type != "reverse_kl":
            refuse(
                f"f_divergence_type={self.f_divergence_type!r}",
                [loss.name for loss in losses if not loss.accepts_f_divergence],
                [loss.name for loss in PREFERENCE_LOSSES.values() if loss.accepts_f_divergence],
                "f_divergence_type='reverse_kl'",
            )
        if self.use_weighting:
            refuse(
                "use_weighting=True",
                [loss.name for loss in losses if not loss.accepts_weighting],
                [loss.name for loss in PREFERENCE_LOSSES.values() if loss.accepts_weighting],
                "use_weighting=False",
            )
        if self.preference_average_log_probs:
            refuse(
                "preference_average_log_probs=True",
                [loss.name for loss in losses if loss.normalises_length],
                [loss.name for loss in PREFERENCE_LOSSES.values() if not loss.normalises_length],
                "preference_average_log_probs=False",
            )
        if self.preference_average_log_probs and self.ld_alpha is not None:
            raise ValueError(
                f"preference_average_log_probs=True and ld_alpha={self.ld_alpha} are two corrections for length that "
                "do not combine; set preference_average_log_probs=False or ld_alpha=None."
            )

    def _check_label_smoothing(self, losses: Sequence[PreferenceLoss]) -> None:
        users = [loss for loss in losses if loss.label_smoothing is not LabelSmoothing.UNUSED]
        for loss in users:
            if not loss.label_smoothing.contains(self.label_smoothing):
                raise ValueError(
                    f"label_smoothing={self.label_smoothing} must lie in {loss.label_smoothing.value} for "
                    f"loss_type {loss.name!r}."
                )
        if self.label_smoothing != 0 and not users:
            takers = [loss.name for loss in PREFERENCE_LOSSES.values() if loss.label_smoothing.contains(0.1)]
            raise ValueError(
                f"label_smoothing={self.label_smoothing} has no effect on loss_type={self.loss_type!r}; set it to 0 or "
                f"use one of {takers}."
            )


def _pairs(sides: Sequence[TokenLogProbs], logps: Sequence[Tensor]) -> PairLogProbs:
    """Pairs of policy chosen, policy rejected, reference chosen, reference rejected; the reference is a constant."""
    return PairLogProbs(
        policy_chosen=logps[0],
        policy_rejected=logps[1],
        reference_chosen=logps[2].detach(),
        reference_rejected=logps[3].detach(),
        chosen_tokens=sides[0].lengths,
        rejected_tokens=sides[1].lengths,
    )


def _mean_length(tokens: TokenLogProbs) -> Tensor:
    """Scalar mean completion length; the clamp keeps a batch of empty completions at loss 0 instead of 0 / 0."""
    return tokens.mask.sum().clamp(min=1) / tokens.mask.shape[0]


def _weighted_sum(terms: Sequence[tuple[float, Tensor]]) -> Tensor:
    """(B,) sum of weight * values. A term of weight 0 is left out, so that it cannot contribute 0 * inf."""
    total = torch.zeros_like(terms[0][1])
    for weight, values in terms:
        if weight > 0:
            total = total + weight * values
    return total
