"""Liger's fused linear DPO loss on completion positions, in place of our own head and loss.

Liger is called once per pair, with the hidden states that predict its two completions. That is how Liger splits a
batch itself (a chunk is one pair), no completion is padded to the length of another pair's, and the loss of each pair
comes out. The reference enters as its log-probabilities, which are there already, so it needs no second head pass.

Liger averages the likelihood of chosen over the tokens it sees, so its weight is the pair's: our sum over tokens
divided by the mean length of the whole optimizer batch is Liger's mean times the pair's length over that mean length.
"""

import warnings
from collections.abc import Mapping
from dataclasses import replace
from importlib import metadata
from typing import Any, NoReturn, cast

import torch
from packaging.version import Version
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from agiledpo.losses import ObjectiveTerms, PreferenceObjective, TokenLogProbs, sequence_logps
from agiledpo.scoring.batch import PreferenceBatch
from agiledpo.scoring.causal_lm import CausalLM
from agiledpo.scoring.engine import PairScores, Scorer

LIGER_LOSSES = (
    "sigmoid",
    "hinge",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "apo_zero",
    "apo_down",
    "discopop",
)
_OLDEST_VERSION = "0.8.5"
_IGNORE_INDEX = -100


def resolve_liger(objective: PreferenceObjective) -> bool:
    """Whether Liger can be used where it is wanted.

    Args:
        objective: What it shall compute.

    Returns:
        False, with a warning, if the package is absent or too old: our own loss gives the same numbers.

    Raises:
        ValueError: Liger does not have this objective. That does not depend on whether the package is there.
    """
    check_liger_objective(objective)
    try:
        installed = metadata.version("liger-kernel")
    except metadata.PackageNotFoundError:
        problem = "liger-kernel is not installed"
    else:
        if Version(installed) >= Version(_OLDEST_VERSION):
            return True
        problem = f"liger-kernel {installed} is older than {_OLDEST_VERSION}"
    warnings.warn(
        f"use_liger_loss=True, but {problem}; using agiledpo's own loss, which gives the same numbers and holds no "
        "full logits either.",
        stacklevel=3,
    )
    return False


def check_liger_objective(objective: PreferenceObjective) -> None:
    """Refuse an objective that Liger's DPO loss does not have.

    Args:
        objective: The objective.

    Raises:
        ValueError: It names the setting that Liger lacks, and the way out.
    """
    names = objective.loss_type
    if len(names) > 1:
        _refuse(f"loss_type={names!r}: Liger computes one loss at a time", "name one loss")
    if names[0] not in LIGER_LOSSES:
        _refuse(f"loss_type={names[0]!r}, which Liger lacks", f"use one of {', '.join(LIGER_LOSSES)}")
    if _preference_weight(objective) == 0:
        _refuse("a preference loss of weight 0", "give preference_loss_weight and loss_weights values above 0")
    if objective.f_divergence_type != "reverse_kl":
        _refuse(f"f_divergence_type={objective.f_divergence_type!r}", "set f_divergence_type='reverse_kl'")
    if objective.ld_alpha is not None:
        _refuse(f"ld_alpha={objective.ld_alpha}", "set ld_alpha=None")
    if objective.use_weighting:
        _refuse("use_weighting=True", "set use_weighting=False")
    if objective.preference_average_log_probs:
        _refuse("preference_average_log_probs=True", "set preference_average_log_probs=False")


def check_liger_model(lm: CausalLM) -> nn.Linear:
    """Refuse a model whose head is not a plain frozen linear layer, the only kind that Liger's loss is exact for.

    Args:
        lm: The causal language model, taken apart.

    Returns:
        The head.

    Raises:
        ValueError: It names what is special about the head, and the way out.
    """
    model, head = type(lm.model).__name__, lm.head
    if head is None:
        _refuse(f"{model}, which computes its logits in a way agiledpo does not know", "use another model")
    if head.softcap is not None:
        _refuse(f"{model}, whose logits are soft-capped (final_logit_softcapping={head.softcap})", "use another model")
    if head.scale != 1.0:
        _refuse(f"{model}, whose logits are scaled by {head.scale:g}", "use another model")
    if not head.is_frozen_linear:
        _refuse(
            f"{model}, whose head ({type(head.module).__name__}) is trained or not a plain linear layer",
            "leave the head out of lora_config's target_modules and modules_to_save",
        )
    return cast(nn.Linear, head.module)


def liger_terms(
    scorer: Scorer,
    objective: PreferenceObjective,
    batch: PreferenceBatch,
    reference: PairScores,
    *,
    mean_chosen_tokens: float,
) -> ObjectiveTerms:
    """Evaluate the objective on a batch through Liger, inside a session of the scorer.

    Args:
        scorer: Runs the policy, whose adapter is active.
        objective: What to compute.
        batch: B pairs.
        reference: Log-probabilities of the same pairs under the reference.
        mean_chosen_tokens: Chosen tokens divided by pairs over the whole optimizer batch.

    Returns:
        The terms of :class:`PreferenceObjective`, each (B,): the same numbers as with :meth:`Scorer.score`, to
        rounding. The gradient of ``loss`` is Liger's.

    Raises:
        ValueError: Liger lacks the objective or the model's head. Both may have changed since the agent was made.
    """
    check_liger_objective(objective)
    head = check_liger_model(scorer.lm)
    hidden, layout = scorer.completion_states(batch)
    sizes = layout.lengths.tolist()
    states, targets = hidden.to(head.weight.dtype).split(sizes), layout.targets.split(sizes)
    reference_chosen, reference_rejected = (
        sequence_logps(side).detach() for side in (reference.chosen, reference.rejected)
    )
    scale = _preference_weight(objective)
    likelihood_weights = _likelihood_weights(objective, reference.chosen.lengths, mean_chosen_tokens) / scale
    options = {
        # A tensor, as the likelihood's weight is: numbers are compiled in, and the code again for each agent's.
        "beta": reference_chosen.new_tensor(objective.beta),
        "compute_nll_loss": objective.nll_alpha > 0 or objective.sft_loss_weight > 0,
        "loss_type": objective.loss_type[0],
        "label_smoothing": objective.label_smoothing,
        "discopop_tau": objective.discopop_tau,
    }

    losses, chosen_logps, rejected_logps = [], [], []
    for i in range(len(batch)):
        pair = (i, len(batch) + i)
        loss, (chosen, rejected, *_) = _LigerPairLoss.apply(
            pad_sequence([states[row] for row in pair], batch_first=True),
            head.weight,
            pad_sequence([targets[row] for row in pair], batch_first=True, padding_value=_IGNORE_INDEX),
            head.bias,
            {
                "alpha": likelihood_weights[i],
                "ref_chosen_logps": reference_chosen[i],
                "ref_rejected_logps": reference_rejected[i],
                **options,
            },
        )
        losses.append(scale * loss)
        chosen_logps.append(chosen)
        rejected_logps.append(rejected)
    measured = objective(
        _summed(torch.cat(chosen_logps), reference.chosen),
        _summed(torch.cat(rejected_logps), reference.rejected),
        reference.chosen,
        reference.rejected,
        mean_chosen_tokens=mean_chosen_tokens,
    )
    return replace(measured, loss=torch.stack(losses))


class _LigerPairLoss(torch.autograd.Function):
    """Liger's DPO loss of one pair, differentiable by the hidden states only.

    ``LigerFusedLinearDPOLoss`` would compute the reference's log-probabilities from hidden states. The function under
    it also takes them as they are.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, options: Mapping[str, Any]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        from liger_kernel.chunked_loss.dpo_loss import LigerFusedLinearDPOFunction
        from liger_kernel.chunked_loss.fused_linear_preference import LigerFusedLinearPreferenceBase

        return LigerFusedLinearPreferenceBase.forward(
            LigerFusedLinearDPOFunction,
            ctx,
            hidden,
            weight,
            targets,
            bias,
            ignore_index=_IGNORE_INDEX,
            use_ref_model=False,
            average_log_prob=False,
            # On a CPU compiling takes longer than it saves, and needs a C++ compiler.
            compiled=hidden.is_cuda,
            **options,
        )

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, _: Any) -> tuple[Tensor, None, None, None, None]:
        from liger_kernel.chunked_loss.fused_linear_preference import LigerFusedLinearPreferenceBase

        return LigerFusedLinearPreferenceBase.backward(ctx, (grad_loss,))[0], None, None, None, None


def _preference_weight(objective: PreferenceObjective) -> float:
    """Total weight of the only preference loss."""
    return objective.preference_loss_weight * (1.0 if objective.loss_weights is None else objective.loss_weights[0])


def _likelihood_weights(objective: PreferenceObjective, chosen_tokens: Tensor, mean_chosen_tokens: float) -> Tensor:
    """(B,) float32 weights of Liger's likelihood term, the mean over a pair's chosen tokens."""
    pooled = objective.nll_alpha * chosen_tokens / mean_chosen_tokens
    per_pair = torch.ones_like(pooled) if objective.sft_average_log_probs else chosen_tokens
    return pooled + objective.sft_loss_weight * per_pair


def _summed(logps: Tensor, like: TokenLogProbs) -> TokenLogProbs:
    """Tokens of the lengths of ``like`` (B, T) whose first carries the completion's log-probability (B,), detached."""
    tokens = logps.new_zeros(like.logps.shape)
    tokens[:, 0] = logps.detach()
    return TokenLogProbs(logps=tokens, mask=like.mask)


def _refuse(setting: str, way_out: str) -> NoReturn:
    raise ValueError(f"use_liger_loss=True does not work with {setting}; {way_out}, or set use_liger_loss=False.")
