"""What an agent's actor or reference makes of a batch, for measuring rather than for learning."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch

from agiledpo.adapters import AgentAdapters, Role
from agiledpo.adapters.modes import modes
from agiledpo.distributed.division import Division
from agiledpo.distributed.team import Team
from agiledpo.losses import TokenLogProbs
from agiledpo.scoring import PairScores, PreferenceBatch, PromptBatch, Scorer


@contextmanager
def measuring(adapters: AgentAdapters, role: Role, scorer: Scorer) -> Iterator[None]:
    """Let a role have the base model, without gradient or dropout.

    Args:
        adapters: The agent's adapters; what is active among them and on the base is restored.
        role: ``"actor"`` or ``"reference"``.
        scorer: What scores with it.
    """
    with (
        torch.no_grad(),
        adapters.evaluate(role),
        modes(adapters.base, None, training=False, checkpointing=False),
        scorer.session(),
    ):
        yield


def role_scores(
    adapters: AgentAdapters, role: Role, batch: PreferenceBatch, scorer: Scorer, *, pairs_per_pass: int, team: Team
) -> PairScores:
    """Log-probabilities of a batch of pairs under one role, without gradient or dropout.

    Args:
        adapters: The agent's adapters; what is active among them and on the base is restored.
        role: ``"actor"`` or ``"reference"``.
        batch: B pairs.
        scorer: Scores them with the active adapter.
        pairs_per_pass: Most pairs in one forward pass; memory and speed, never the result.
        team: The processes that share the work; each has been handed the whole batch.

    Returns:
        Per-token log-probabilities, float32 (B, T) for each side; those of all pairs in every process.
    """
    division = Division(team, batch.row_tokens)
    with measuring(adapters, role, scorer):
        parts = [(scorer.score(batch.select(turn.places)), turn.counts) for turn in division.turns(pairs_per_pass)]
    return whole_scores([scores for scores, counts in parts if counts], division, adapters.base.device)


def whole_scores(own: Sequence[PairScores], division: Division, device: torch.device) -> PairScores:
    """The scores of all pairs of a batch, from those that each process has computed.

    Args:
        own: This process's, one after the other.
        division: Who did which pairs.
        device: Where the result is to be.
    """
    if division.team.is_alone:
        return PairScores.concat(own)
    laid = PairScores.concat(division.laid([scores.to("cpu") for scores in own]))
    return laid.select(division.order).to(device)


def scores_with_own_gradient(own: PairScores, division: Division) -> PairScores:
    """The scores of all pairs of a batch, with a gradient for this process's own.

    The gradient of a loss of all pairs, by what a process computed, is then that process's share of the whole gradient.

    Args:
        own: Of this process's pairs; of some other pair where it has none.
        division: Who did which pairs.
    """
    team = division.team
    counts = len(division.own) > 0
    shares = team.gather([own.detach().to("cpu")] if counts else [])
    device = own.chosen.logps.device
    laid = [
        [own] if counts and rank == team.rank else [s.to(device) for s in share] for rank, share in enumerate(shares)
    ]
    return PairScores.concat([scores for share in laid for scores in share]).select(division.order)


def completion_scores(
    adapters: AgentAdapters, role: Role, batches: Iterable[PromptBatch], scorer: Scorer
) -> list[TokenLogProbs]:
    """Log-probabilities of the completions of some batches under one role, without gradient or dropout.

    Args:
        adapters: The agent's adapters; what is active among them and on the base is restored.
        role: ``"actor"`` or ``"reference"``.
        batches: Each for one forward pass.
        scorer: Scores them with the active adapter.

    Returns:
        For each batch per-token log-probabilities, float32 (N, T).
    """
    with measuring(adapters, role, scorer):
        return [scorer.score_completions(batch) for batch in batches]
