"""Which rollouts become pairs: pure functions of prompts and rewards.

A gap is clear if it is at least `min_gap`; rounding is forgiven, and a tie is never clear. Of rollouts with equal
rewards the earliest in the file stands for all where one is needed. Pairs come in the order of the file: by prompt,
then chosen, then rejected.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

import numpy as np
from numpy.typing import NDArray

from agiledpo.data.rollouts.ranking import Ranking, rank

# Above this the pairs themselves, 16 bytes each, would fill the memory.
MOST_PAIRS = 100_000_000


class Strategy(StrEnum):
    """How pairs are chosen.

    SAME_PROMPT: The best against the worst of each prompt.
    ADJACENT: Neighbours in rank within each prompt; rollouts with equal rewards share a rank.
    MIN_GAP: Each rollout against the nearest that is clearly worse: the hardest pairs that are still clear.
    ALL_PAIRS: Every two rollouts of a prompt with a clear gap.
    STRATIFIED: Rollouts with a high reward against rollouts with a low one, also of other prompts.
    """

    SAME_PROMPT = "same_prompt"
    ADJACENT = "adjacent"
    MIN_GAP = "min_gap"
    ALL_PAIRS = "all_pairs"
    STRATIFIED = "stratified"


@dataclass(frozen=True)
class Pairing:
    """The pairs, and what was considered and is no pair.

    Attributes:
        chosen: (P,) int64, numbers of rollouts.
        rejected: (P,) int64, numbers of rollouts.
        ties: Candidates whose rewards are equal.
        small_gaps: Candidates whose gap is not clear.
        over_limit: Clear ones beyond `max_pairs`.
    """

    chosen: NDArray[np.int64]
    rejected: NDArray[np.int64]
    ties: int
    small_gaps: int
    over_limit: int

    def at_most(self, max_pairs: int | None, rng: np.random.Generator) -> Self:
        """Keep a random choice of the pairs, in their order, if there are more than `max_pairs`."""
        if max_pairs is None or len(self.chosen) <= max_pairs:
            return self
        kept = np.sort(rng.choice(len(self.chosen), max_pairs, replace=False))
        over = self.over_limit + len(self.chosen) - max_pairs
        return type(self)(self.chosen[kept], self.rejected[kept], self.ties, self.small_gaps, over)


def same_prompt(ranking: Ranking) -> Pairing:
    """The best against the worst. Candidates are the prompts with two rollouts or more."""
    ends = _prompts_of_several(ranking)
    lower, clear = ranking.lower[ends], ranking.clear[ends]
    pairs = ends[clear > 0]
    return _pairing(
        ranking,
        ranking.tied[pairs],
        ranking.first[pairs],
        ties=int((lower == 0).sum()),
        small_gaps=int(((lower > 0) & (clear == 0)).sum()),
    )


def adjacent(ranking: Ranking) -> Pairing:
    """Neighbours in rank. Candidates are the neighbours, and as ties the rollouts that share another's rank."""
    ranks = np.flatnonzero(ranking.tied == np.arange(len(ranking.tied)))
    has_lower = ranks > ranking.first[ranks]
    upper = ranks[has_lower]
    below = ranks[np.flatnonzero(has_lower) - 1]
    steps = below - ranking.first[upper]
    is_clear = steps < ranking.clear[upper]
    is_tie = steps >= ranking.lower[upper]
    return _pairing(
        ranking,
        upper[is_clear],
        below[is_clear],
        ties=len(ranking.tied) - len(ranks) + int(is_tie.sum()),
        small_gaps=int((~is_clear & ~is_tie).sum()),
    )


def nearest_clear(ranking: Ranking) -> Pairing:
    """Each rollout against the nearest clearly worse. Candidates are the rollouts that have a worse one at all.

    Ties are the prompts whose rollouts, two or more, all have the same reward.
    """
    chosen = np.flatnonzero(ranking.clear > 0)
    nearest = ranking.first[chosen] + ranking.clear[chosen] - 1
    return _pairing(
        ranking,
        chosen,
        ranking.tied[nearest],
        ties=int((ranking.lower[_prompts_of_several(ranking)] == 0).sum()),
        small_gaps=int(((ranking.lower > 0) & (ranking.clear == 0)).sum()),
    )


def all_pairs(ranking: Ranking, max_pairs: int | None, rng: np.random.Generator) -> Pairing:
    """Every two rollouts of a prompt with a clear gap. Candidates are every two rollouts of a prompt.

    Args:
        ranking: The rollouts.
        max_pairs: Choose so many of them at random, before they are listed; None for all.
        rng: Chooses.

    Raises:
        ValueError: There are too many to list and `max_pairs` is None.
    """
    total = int(ranking.clear.sum())
    listed = total if max_pairs is None else min(total, max_pairs)
    if listed > MOST_PAIRS:
        raise ValueError(
            f"strategy='all_pairs' makes {total:,} pairs of these rollouts; set max_pairs (at most {MOST_PAIRS:,}), or "
            f"use strategy='adjacent' or 'min_gap', which make at most one per rollout."
        )
    numbers = np.arange(total) if listed == total else np.sort(rng.choice(total, listed, replace=False))
    ends = np.cumsum(ranking.clear)
    chosen = np.searchsorted(ends, numbers, side="right")
    rejected = ranking.first[chosen] + numbers - (ends[chosen] - ranking.clear[chosen])
    # Each rollout meets those that come before it in the ranking.
    candidates = int((np.arange(len(ranking.first)) - ranking.first).sum())
    lower = int(ranking.lower.sum())
    return _pairing(
        ranking,
        chosen,
        rejected,
        ties=candidates - lower,
        small_gaps=lower - total,
        over_limit=total - listed,
    )


_WITHIN_PROMPTS: dict[Strategy, Callable[[Ranking], Pairing]] = {
    Strategy.SAME_PROMPT: same_prompt,
    Strategy.ADJACENT: adjacent,
    Strategy.MIN_GAP: nearest_clear,
}


def pair_within_prompts(
    strategy: Strategy,
    prompts: NDArray[np.int64],
    rewards: NDArray[np.float64],
    *,
    min_gap: float,
    max_pairs: int | None,
    rng: np.random.Generator,
) -> Pairing:
    """Make pairs of rollouts of the same prompt.

    Args:
        strategy: Any but `STRATIFIED`.
        prompts: (N,) int64, equal for the same prompt, numbered as they appear.
        rewards: (N,) float64, finite.
        min_gap: Smallest gap that counts, at least 0.
        max_pairs: Keep at most so many, chosen at random; None for all.
        rng: Chooses.

    Raises:
        ValueError: There are too many to list.
    """
    ranking = rank(prompts, rewards, min_gap)
    if strategy is Strategy.ALL_PAIRS:
        pairing = all_pairs(ranking, max_pairs, rng)
    else:
        pairing = _WITHIN_PROMPTS[strategy](ranking).at_most(max_pairs, rng)
    return in_file_order(pairing, prompts)


def in_file_order(pairing: Pairing, prompts: NDArray[np.int64]) -> Pairing:
    """The same pairs by the chosen's prompt, then chosen, then rejected."""
    order = np.lexsort((pairing.rejected, pairing.chosen, prompts[pairing.chosen]))
    return Pairing(pairing.chosen[order], pairing.rejected[order], pairing.ties, pairing.small_gaps, pairing.over_limit)


def _prompts_of_several(ranking: Ranking) -> NDArray[np.int64]:
    """Places of the best rollouts of the prompts that have two or more."""
    ends = np.flatnonzero(ranking.last == np.arange(len(ranking.last)))
    return ends[ranking.first[ends] < ends]


def _pairing(
    ranking: Ranking,
    chosen: NDArray[np.int64],
    rejected: NDArray[np.int64],
    *,
    ties: int,
    small_gaps: int,
    over_limit: int = 0,
) -> Pairing:
    return Pairing(ranking.rollouts[chosen], ranking.rollouts[rejected], ties, small_gaps, over_limit)
