"""Metrics of learning from rewards, kept as sums and divided once."""

import math
from collections import defaultdict
from collections.abc import Sequence

import torch

from agiledpo.algorithms.policy_steps import larger_advantages
from agiledpo.losses import PolicyTerms
from agiledpo.scoring import RolloutBatch


class PolicyMeter:
    """Collects loss terms over the steps of any number of passes over the same rollouts.

    The result holds ``loss`` and ``mean_loss`` (mean over completions), ``mean_token_logp`` (mean over the tokens that
    went through the model of their log-probability, nats; its negative estimates the entropy where tokens were sampled
    from the whole distribution of the policy; NaN if there were none) and, with a reference, ``kl`` (its k3 estimate,
    mean over tokens, nats; 0 if there were none), all in the first pass; and ``clip_ratio/low`` and
    ``clip_ratio/high`` (shares of tokens, over all passes, whose ratio a bound held: in the first step there is none).

    Args:
        counted: The rollouts that the loss is the mean over.
        with_reference: Whether there is a reference.
        passes: Number of passes.
    """

    def __init__(self, counted: RolloutBatch, *, with_reference: bool, passes: int = 1) -> None:
        self._completions = max(counted.completion_count, 1)
        self._tokens = max(counted.completion_tokens, 1)
        self._passes = passes
        self._with_reference = with_reference
        self._sums: dict[str, float] = defaultdict(float)

    def add(self, parts: Sequence[PolicyTerms], *, first: bool = True) -> None:
        """Add the terms of some completions.

        Args:
            parts: Per-completion terms, (N,) each.
            first: Whether it is the first pass.
        """
        for terms in parts:
            columns = {"clip_ratio/low": terms.clipped_low, "clip_ratio/high": terms.clipped_high}
            if first:
                columns |= {"loss": terms.loss, "logp": terms.logps, "tokens": terms.tokens}
            if first and terms.kl is not None:
                columns["kl"] = terms.kl
            for name, column in columns.items():
                self._sums[name] += float(column.detach().double().sum())

    def result(self) -> dict[str, float]:
        """Means over everything added."""
        sums = self._sums
        loss = sums["loss"] / self._completions
        return {
            "loss": loss,
            "mean_loss": loss,
            "mean_token_logp": sums["logp"] / sums["tokens"] if sums["tokens"] else math.nan,
            **({"kl": sums["kl"] / self._tokens} if self._with_reference else {}),
            "clip_ratio/low": sums["clip_ratio/low"] / self._tokens / self._passes,
            "clip_ratio/high": sums["clip_ratio/high"] / self._tokens / self._passes,
        }


def rollout_metrics(rollouts: RolloutBatch) -> dict[str, float]:
    """What was sampled, and what it was worth.

    Args:
        rollouts: Completions, each with an advantage for every token.

    Returns:
        ``mean_reward`` (over completions; NaN if none was judged), ``reward_std`` (standard deviation of a group, mean
        over groups of two or more), ``zero_advantage_groups`` (share of the groups without any advantage),
        ``completion_length`` (mean, tokens) and ``finished_rate`` (share of completions that ended themselves).
    """
    groups = [torch.tensor(group, dtype=torch.float64) for group in rollouts.rewards]
    groups = [group[~group.isnan()] for group in groups]
    spreads = [float(group.std()) for group in groups if len(group) > 1]
    pulling = larger_advantages(rollouts, 0.0)
    finished = [ended for group in rollouts.finished for ended in group]
    return {
        "mean_reward": float(torch.cat(groups).mean()),
        "reward_std": sum(spreads) / len(spreads) if spreads else math.nan,
        "zero_advantage_groups": sum(not any(group) for group in pulling) / len(pulling),
        "completion_length": rollouts.completion_tokens / rollouts.completion_count,
        "finished_rate": sum(finished) / len(finished),
    }
