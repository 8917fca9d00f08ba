"""Rollouts cut into optimizer steps, and these into micro-batches with everything that the loss reads of them.

Where several processes share a step, each takes consecutive completions of it, so that those of a prompt stay together.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from agiledpo.distributed.consecutive import consecutive_shares
from agiledpo.distributed.team import Team
from agiledpo.losses import PolicyObjective, PolicyTerms, TokenLogProbs
from agiledpo.scoring import RolloutBatch


@dataclass(frozen=True, eq=False)
class PolicyPart:
    """Completions for one forward pass.

    Attributes:
        rollouts: The completions, each with an advantage for every token; N in all.
        counts: Whether what comes of them counts; see :class:`agiledpo.distributed.division.Turn`.
        old: Their log-probabilities under the policy that is left behind, (N, T); None for the one that learns.
        reference: Under the reference, (N, T); None if it has no say.
    """

    rollouts: RolloutBatch
    counts: bool = True
    old: TokenLogProbs | None = None
    reference: TokenLogProbs | None = None

    def terms(self, objective: PolicyObjective, policy: TokenLogProbs, *, mean_tokens: float) -> PolicyTerms:
        """The objective of these completions, corrected where they have log-probabilities of what sampled them.

        Args:
            objective: What is minimised.
            policy: Log-probabilities under the policy, (N, T).
            mean_tokens: Tokens per completion of the whole step.
        """
        device = policy.logps.device
        sampling = self.rollouts.sampling_logps
        known = any(logps is not None for logps in sampling)
        return objective(
            policy,
            self._padded(self.rollouts.advantages, fill=0.0).to(device),
            old=self.old,
            reference=self.reference,
            sampling=self._padded(sampling, fill=torch.nan).to(device) if known else None,
            mean_tokens=mean_tokens,
        )

    def per_row(self, values: Tensor) -> Tensor:
        """Sum what there is of each completion, (N,), over the completions of each row."""
        places = torch.tensor([place for place, _ in self.rollouts.numbered], device=values.device)
        return torch.zeros(len(self.rollouts), device=values.device, dtype=values.dtype).index_add(0, places, values)

    def _padded(self, column: Sequence[Sequence[Tensor] | None], *, fill: float) -> Tensor:
        """A value for each token, (N, T); ``fill`` where there is none."""
        rows = [
            torch.full((len(ids),), fill) if values is None else values[number].float()
            for group, values in zip(self.rollouts.completions, column, strict=True)
            for number, ids in enumerate(group)
        ]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=fill)


@dataclass(frozen=True, eq=False)
class PolicyStep:
    """Completions of one optimizer step.

    Attributes:
        parts: Those that pull at the policy, micro-batch by micro-batch: this process's, equally many in every one.
        completions: Completions that the loss is the mean over: also those which do not pull.
        mean_tokens: Tokens of one of them, on average.
        labels: What the rows are called.
    """

    parts: Sequence[PolicyPart]
    completions: int
    mean_tokens: float
    labels: Sequence[str]


def policy_steps(
    rollouts: RolloutBatch,
    *,
    batch_size: int,
    completions_per_pass: int,
    pulled_by_reference: bool,
    team: Team,
    shares_prompts: bool,
) -> Iterator[PolicyStep]:
    """Cut rollouts into optimizer steps.

    Completions whose advantages are all 0 have no gradient unless the reference pulls at them: they count, but do not
    go through the model. A step of nothing else is none: AdamW would make one on the moments of earlier steps.

    Args:
        rollouts: Completions, each with an advantage for every token.
        batch_size: Completions from which on a step takes in no further group.
        completions_per_pass: Most completions in one forward pass.
        pulled_by_reference: Whether every completion has a gradient.
        team: The processes that share each step; each has been handed all rollouts.
        shares_prompts: Whether completions of one prompt that go through the model together share its computation.
    """
    for span in rollouts.group_spans(batch_size):
        step = rollouts.slice(*span)
        pulling = step if pulled_by_reference else step.where(larger_advantages(step, 0.0))
        if len(pulling):
            yield PolicyStep(
                parts=own_parts(pulling, completions_per_pass, team=team, shares_prompts=shares_prompts),
                completions=step.completion_count,
                mean_tokens=step.completion_tokens / step.completion_count,
                labels=step.labels,
            )


def own_parts(rollouts: RolloutBatch, size: int, *, team: Team, shares_prompts: bool) -> list[PolicyPart]:
    """The micro-batches of a process, of completions that all processes have been handed.

    Those that count, of all processes by rank, hold the completions in the order of ``rollouts.numbered``.

    Args:
        rollouts: The completions; at least one.
        size: Most completions in a micro-batch.
        team: The processes. All get equally many micro-batches.
        shares_prompts: As for :func:`policy_steps`.
    """
    if team.is_alone:
        return [PolicyPart(part) for part, _ in rollouts.parts(size)]
    owners = [place for place, _ in rollouts.numbered]
    prompts = [len(prompt) for prompt in rollouts.prompts]
    weights = [len(ids) + (0 if shares_prompts else prompts[place]) for place, ids in rollouts.numbered]
    shares = consecutive_shares(weights, owners, prompts if shares_prompts else [0] * len(prompts), team.size)
    cuts = [[part for part, _ in rollouts.span(*share).parts(size)] for share in shares]
    lightest = min(range(len(weights)), key=weights.__getitem__)
    blanks = max(map(len, cuts)) - len(cuts[team.rank])
    return [PolicyPart(part) for part in cuts[team.rank]] + [
        PolicyPart(rollouts.span(lightest, lightest + 1), counts=False)
    ] * blanks


def larger_advantages(rollouts: RolloutBatch, threshold: float) -> list[list[bool]]:
    """For each prompt whether each of its completions has a token with an advantage of larger size than a threshold."""
    return [[bool((values.abs() > threshold).any()) for values in group or ()] for group in rollouts.advantages]
