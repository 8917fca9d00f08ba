"""How far a policy has moved from the base model, on texts."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from agiledpo.adapters.modes import modes
from agiledpo.algorithms.core.llm import LLMAlgorithm
from agiledpo.evaluation.intervals import Figure, Floats, Groups, mean_of, ratio_of


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
def kl_from_base(agent: LLMAlgorithm, prompts: Sequence[Tensor], completions: Sequence[Tensor]) -> Tensor:
    """KL(actor || base) of completions, over the whole vocabulary at each of their tokens and summed over these.

    Args:
        agent: The agent; it computes without dropout, and what was active on its model is restored.
        prompts: N prompts, int64 (prompt tokens,).
        completions: What followed each, int64 (tokens,), at least one.

    Returns:
        Nats, float64 (N,).
    """
    totals = []
    with modes(agent.base, None, training=False, checkpointing=False):
        for prompt, completion in zip(prompts, completions, strict=True):
            ids = torch.cat([prompt, completion[:-1]])[None].to(agent.device)
            with agent.adapters.evaluate("actor"):
                policy = _log_probs(agent, ids, len(completion))
            with agent.base.active(None):
                base = _log_probs(agent, ids, len(completion))
            totals.append((policy.exp() * (policy - base)).sum())
    return torch.tensor([float(total) for total in totals], dtype=torch.float64)


def _log_probs(agent: LLMAlgorithm, ids: Tensor, last: int) -> Tensor:
    """Log-probabilities of the whole vocabulary at the last positions, float32 (last, V)."""
    return torch.log_softmax(agent.base.model(input_ids=ids, logits_to_keep=last).logits[0].float(), dim=-1)
