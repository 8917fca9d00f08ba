"""What a policy makes of preference pairs, pair by pair."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from agiledpo.adapters import Role
from agiledpo.algorithms import DPO
from agiledpo.data import PreparedRows
from agiledpo.evaluation.intervals import Floats, Groups
from agiledpo.llm_envs.batching import collate_pairs
from agiledpo.losses.sequence import sequence_logps
from agiledpo.scoring import PairScores, PreferenceBatch

_ROLES: tuple[Role, Role] = ("actor", "reference")

# Pairs that are handed to the agent at once; it takes them batch by batch.
_PAIRS = 256


@dataclass(frozen=True, eq=False)
class ScoredPairs:
    """Log-probabilities of pairs under a policy and its reference.

    Attributes:
        policy: (pairs, 2) summed log-probability of chosen and of rejected under the policy, nats.
        reference: The same under the reference.
        lengths: (pairs, 2) their tokens, the end-of-sequence token among them.
        groups: (pairs,) the number of each one's prompt.
    """

    policy: Floats
    reference: Floats
    lengths: Floats
    groups: Groups

    @property
    def margins(self) -> Floats:
        """(log p - log p_ref)(chosen) - (log p - log p_ref)(rejected), nats; (pairs,)."""
        return _difference(self.policy - self.reference)

    @property
    def margins_per_token(self) -> Floats:
        """The same with each side divided by its tokens, nats per token; (pairs,)."""
        return _difference((self.policy - self.reference) / self.lengths)

    @property
    def likelihoods(self) -> Floats:
        """Log p(chosen) - log p(rejected), without a reference, nats; (pairs,)."""
        return _difference(self.policy)

    @property
    def likelihoods_per_token(self) -> Floats:
        """The same with each side divided by its tokens, nats per token; (pairs,)."""
        return _difference(self.policy / self.lengths)

    @property
    def length_differences(self) -> Floats:
        """Tokens of chosen minus tokens of rejected; (pairs,)."""
        return _difference(self.lengths)


def score_pairs(agents: Sequence[DPO], rows: PreparedRows, groups: Groups, *, name: str) -> list[ScoredPairs]:
    """Score pairs under the actors of some agents and their references; what is equal among these is scored once.

    Args:
        agents: The agents, on one base model.
        rows: Tokenised pairs.
        groups: The number of the prompt of each row of the user's dataset.
        name: What messages call the rows.

    Returns:
        The scores of each agent.
    """
    contents = [[agent.adapters.content(role, portable=False) for role in _ROLES] for agent in agents]
    sums: list[dict[str, Tensor]] = []
    lengths, numbers = [], []
    for start in range(0, len(rows), _PAIRS):
        columns = rows.take(np.arange(start, min(start + _PAIRS, len(rows))))
        batch = PreferenceBatch.from_experiences(
            collate_pairs(columns, split=name, pad_token_id=agents[0].pad_token_id)
        )
        scored: dict[str, Tensor] = {}
        for agent, own in zip(agents, contents, strict=True):
            for role, content in zip(_ROLES, own, strict=True):
                if content not in scored:
                    scored[content] = _sums(agent.score(batch, role))
        sums.append(scored)
        lengths.append(torch.tensor([[len(side[pair]) for side in batch.sides] for pair in range(len(batch))]))
        numbers.append(groups[np.asarray(columns["row"])])
    return [
        ScoredPairs(
            policy=torch.cat([part[actor] for part in sums]).numpy(),
            reference=torch.cat([part[reference] for part in sums]).numpy(),
            lengths=torch.cat(lengths).double().numpy(),
            groups=np.concatenate(numbers),
        )
        for actor, reference in contents
    ]


def _sums(scores: PairScores) -> Tensor:
    """Log-probabilities of the completions, float64 (pairs, 2) on the CPU."""
    sides = (replace(side, logps=side.logps.double()) for side in (scores.chosen, scores.rejected))
    return torch.stack([sequence_logps(side) for side in sides], dim=1).cpu()


def _difference(values: Floats) -> Floats:
    return values[:, 0] - values[:, 1]
