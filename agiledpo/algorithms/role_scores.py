"""What an agent's actor or reference makes of a batch, for measuring rather than for learning."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

from agiledpo.adapters import AgentAdapters, Role
from agiledpo.adapters.modes import modes
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
