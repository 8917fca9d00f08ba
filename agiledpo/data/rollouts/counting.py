"""Figures of the rollouts of a file and of the pairs that are made of them."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agiledpo.data.rollouts.index import RolloutIndex
from agiledpo.data.rollouts.statistics import Distribution, PairStatistics
from agiledpo.data.rollouts.strategies import Pairing, Strategy


def count_pairs(
    index: RolloutIndex, pairing: Pairing, source: Path, target: Path, *, strategy: Strategy, min_gap: float
) -> PairStatistics:
    """What becomes of a file of rollouts.

    Args:
        index: What the file holds.
        pairing: The pairs that will be written.
        source: The file.
        target: Where the pairs go.
        strategy: How they were chosen.
        min_gap: Smallest gap that counted.
    """
    chosen, rejected = pairing.chosen, pairing.rejected
    rollouts_of_prompts = np.bincount(index.prompts)
    return PairStatistics(
        input=str(source),
        output=str(target) if len(chosen) else None,
        left_in_place=str(target) if not len(chosen) and target.exists() else None,
        strategy=strategy.value,
        min_gap=float(min_gap),
        lines=index.lines,
        blank_lines=index.blank_lines,
        left_out=index.left_out,
        rollouts=len(index.rewards),
        final_only=index.final_only,
        prompts=len(rollouts_of_prompts),
        single_rollout_prompts=int((rollouts_of_prompts == 1).sum()),
        ties=pairing.ties,
        small_gaps=pairing.small_gaps,
        identical_completions=pairing.identical,
        over_limit=pairing.over_limit,
        pairs=len(chosen),
        prompts_differ=int((index.prompts[chosen] != index.prompts[rejected]).sum()),
        gaps=Distribution.of(index.rewards[chosen] - index.rewards[rejected]),
        chosen_rewards=Distribution.of(index.rewards[chosen]),
        rejected_rewards=Distribution.of(index.rewards[rejected]),
        rewards=Distribution.of(index.rewards),
        spreads=Distribution.of(_spreads(index, rollouts_of_prompts)),
    )


def _spreads(index: RolloutIndex, rollouts_of_prompts: NDArray[np.int64]) -> NDArray[np.float64]:
    best = np.full(len(rollouts_of_prompts), -np.inf)
    worst = np.full(len(rollouts_of_prompts), np.inf)
    np.maximum.at(best, index.prompts, index.rewards)
    np.minimum.at(worst, index.prompts, index.rewards)
    return (best - worst)[rollouts_of_prompts > 1]
