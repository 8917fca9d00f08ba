"""What an agent's actor or reference makes of a batch, for measuring rather than for learning."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from agiledpo.adapters import AgentAdapters, Role
from agiledpo.adapters.modes import modes
from agiledpo.scoring import PairScores, PreferenceBatch, RolloutBatch, Scorer


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
    adapters: AgentAdapters, role: Role, batch: PreferenceBatch, scorer: Scorer, *, pairs_per_pass: int
) -> PairScores:
    """Log-probabilities of a batch of pairs under one role, without gradient or dropout.

    Args:
        adapters: The agent's adapters; what is active among them and on the base is restored.
        role: ``"actor"`` or ``"reference"``.
        batch: B pairs.
        scorer: Scores them with the active adapter.
        pairs_per_pass: Most pairs in one forward pass; memory and speed, never the result.

    Returns:
        Per-token log-probabilities, float32 (B, T) for each side.
    """
    with measuring(adapters, role, scorer):
        return PairScores.concat([scorer.score(batch.slice(*span)) for span in batch.spans(pairs_per_pass)])


def completion_logps(
    adapters: AgentAdapters, role: Role, batch: RolloutBatch, scorer: Scorer, *, completions_per_pass: int
) -> list[list[Tensor]]:
    """Log-probabilities of sampled completions under one role, without gradient or dropout.

    Args:
        adapters: The agent's adapters; what is active among them and on the base is restored.
        role: ``"actor"`` or ``"reference"``.
        batch: B prompts with their groups.
        scorer: Scores them with the active adapter.
        completions_per_pass: Most completions in one forward pass; memory and speed, never the result.

    Returns:
        For each prompt, for each of its completions, float32 (tokens,) on the CPU.
    """
    found: list[Tensor] = []
    with measuring(adapters, role, scorer):
        for part, _ in batch.parts(completions_per_pass):
            tokens = scorer.score_completions(part)
            found += tokens.logps[tokens.mask].cpu().split(tokens.lengths.tolist())
    rest = iter(found)
    return [[next(rest) for _ in group] for group in batch.completions]
