"""How far a policy has moved from the base model, on texts."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from agiledpo.adapters.modes import modes
from agiledpo.algorithms.core.llm import LLMAlgorithm
from agiledpo.evaluation.intervals import Figure, Floats, Groups, mean_of, ratio_of

# Positions whose whole vocabulary is in memory as float32 at a time.
_POSITIONS = 64


@dataclass(frozen=True)
class Divergence:
    """KL(policy || base) at the tokens of answers that the policy sampled, over the whole vocabulary at each token.

    At temperature 1 the mean over answers of their summed KLs is an estimate without bias of the KL between the two
    distributions of answers, of less variance than the mean of log p - log p_base ("Rao-Blackwellised", Amini et al.
    2025, "Better Estimation of the KL Divergence Between Language Models", arXiv:2504.10637).

    Attributes:
        per_token: Sum of the KLs over all tokens divided by their number, nats.
        per_answer: Mean over answers of the KLs summed over their tokens, nats.
        answers: How many.
    """

    per_token: Figure
    per_answer: Figure
    answers: int

    @staticmethod
    def of(totals: Floats, tokens: Floats, groups: Groups) -> "Divergence":
        """Summarise KLs.

        Args:
            totals: (answers,) summed over the tokens of each answer, nats.
            tokens: (answers,) their number.
            groups: (answers,) the number of each one's prompt.
        """
        return Divergence(ratio_of(totals, tokens, groups), mean_of(totals, groups), len(totals))


@torch.inference_mode()
def kl_of(
    agent: LLMAlgorithm,
    prompts: Sequence[Tensor],
    completions: Sequence[Tensor],
    *,
    against: Literal["base", "reference"] = "base",
) -> Tensor:
    """KL(actor || base) of completions, over the whole vocabulary at each of their tokens and summed over these.

    Args:
        agent: The agent; it computes without dropout, and what was active on its model is restored.
        prompts: N prompts, int64 (prompt tokens,).
        completions: What followed each, int64 (tokens,), at least one.
        against: "base": the base model; "reference": the agent's reference, which is the base if it has none.

    Returns:
        Nats, float64 (N,).
    """
    totals = torch.zeros(len(prompts), dtype=torch.float64)
    with modes(agent.base, None, training=False, checkpointing=False):
        for place, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            ids = torch.cat([prompt, completion[:-1]])[None].to(agent.device)
            with agent.adapters.evaluate("actor"):
                policy = _logits(agent, ids, len(completion))
            with agent.base.active(None) if against == "base" else agent.adapters.evaluate("reference"):
                other = _logits(agent, ids, len(completion))
            for own, others in zip(policy.split(_POSITIONS), other.split(_POSITIONS), strict=True):
                totals[place] += _kl(own, others)
    return totals


def _kl(policy: Tensor, other: Tensor) -> float:
    """KL between the distributions of logits (positions, V), summed over the positions."""
    policy, other = (torch.log_softmax(logits.float(), dim=-1) for logits in (policy, other))
    return float((policy.exp() * (policy - other)).sum())


def _logits(agent: LLMAlgorithm, ids: Tensor, last: int) -> Tensor:
    """Logits at the last positions, (last, V), and at no others where the model can leave them out."""
    model = agent.lm.model
    kept = {"logits_to_keep": last} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    logits: Tensor = model(input_ids=ids, use_cache=False, **kept).logits
    return logits[0, -last:]
