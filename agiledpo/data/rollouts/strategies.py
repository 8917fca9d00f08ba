"""Which rollouts become pairs: pure functions of prompts, rewards and completions.

A gap is clear if it is at least `min_gap`; rounding is forgiven, and a tie is never clear. Where one of several
rollouts with equal rewards is needed, it is the earliest in the file with which the two completions of the pair differ.
Pairs come in the order of the file: by prompt, then chosen, then rejected.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Self

import numpy as np
from numpy.typing import NDArray

from agiledpo.data.rollouts.differing import Labelled
from agiledpo.data.rollouts.ranking import Ranking, rank

# Above this the pairs themselves, 16 bytes each, would fill the memory.
MOST_PAIRS = 100_000_000


class Strategy(StrEnum):
    """How pairs are chosen.

    SAME_PROMPT: The best against the worst of each prompt.
    ADJACENT: Neighbours in rank within each prompt; rollouts with equal rewards share a rank.
    MIN_GAP: Each rollout against the nearest that is clearly worse and differs: the hardest pairs that are still clear.
    ALL_PAIRS: Every two rollouts of a prompt with a clear gap and different completions.
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
        identical: Clear ones that cannot be made of different completions.
        over_limit: Clear and different ones beyond `max_pairs`.
    """

    chosen: NDArray[np.int64]
    rejected: NDArray[np.int64]
    ties: int
    small_gaps: int
    identical: int
    over_limit: int

    def at_most(self, max_pairs: int | None, rng: np.random.Generator) -> Self:
        """Keep a random choice of the pairs, in their order, if there are more than `max_pairs`."""
        if max_pairs is None or len(self.chosen) <= max_pairs:
            return self
        kept = np.sort(rng.choice(len(self.chosen), max_pairs, replace=False))
        over = self.over_limit + len(self.chosen) - max_pairs
        return replace(self, chosen=self.chosen[kept], rejected=self.rejected[kept], over_limit=over)


def same_prompt(ranking: Ranking) -> Pairing:
    """The best against the worst. Candidates are the prompts with two rollouts or more."""
    ends = _prompts_of_several(ranking)
    lower, clear = ranking.lower[ends], ranking.clear[ends]
    pairs = ends[clear > 0]
    chosen, rejected = _differing(ranking, pairs, ranking.first[pairs])
    return _pairing(
        ranking,
        chosen,
        rejected,
        identical=len(pairs) - len(chosen),
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
    chosen, rejected = _differing(ranking, upper[is_clear], below[is_clear])
    return _pairing(
        ranking,
        chosen,
        rejected,
        identical=int(is_clear.sum()) - len(chosen),
        ties=len(ranking.tied) - len(ranks) + int(is_tie.sum()),
        small_gaps=int((~is_clear & ~is_tie).sum()),
    )


def nearest_clear(ranking: Ranking) -> Pairing:
    """Each rollout against the nearest clearly worse that differs. Candidates are the rollouts that have a worse one.

    Ties are the prompts whose rollouts, two or more, all have the same reward.
    """
    partners = _Partners.of(ranking)
    chosen = np.flatnonzero(partners.counts > 0)
    nearest = partners.at(chosen, partners.counts[chosen] - 1)
    earliest = ranking.tied[nearest]
    same = ranking.completions[earliest] == ranking.completions[chosen]
    return _pairing(
        ranking,
        chosen,
        np.where(same, ranking.differing[nearest], earliest),
        identical=int((ranking.clear > 0).sum()) - len(chosen),
        ties=int((ranking.lower[_prompts_of_several(ranking)] == 0).sum()),
        small_gaps=int(((ranking.lower > 0) & (ranking.clear == 0)).sum()),
    )


def all_pairs(ranking: Ranking, max_pairs: int | None, rng: np.random.Generator) -> Pairing:
    """Every two different rollouts of a prompt with a clear gap. Candidates are every two rollouts of a prompt.

    Args:
        ranking: The rollouts.
        max_pairs: Choose so many of them at random, before they are listed; None for all.
        rng: Chooses.

    Raises:
        ValueError: There are too many to list and `max_pairs` is None.
    """
    partners = _Partners.of(ranking)
    total = int(partners.counts.sum())
    listed = total if max_pairs is None else min(total, max_pairs)
    if listed > MOST_PAIRS:
        raise ValueError(
            f"strategy='all_pairs' makes {total:,} pairs of these rollouts; set max_pairs (at most {MOST_PAIRS:,}), or "
            f"use strategy='adjacent' or 'min_gap', which make at most one per rollout."
        )
    numbers = np.arange(total) if listed == total else np.sort(rng.choice(total, listed, replace=False))
    ends = np.cumsum(partners.counts)
    chosen = np.searchsorted(ends, numbers, side="right")
    rejected = partners.at(chosen, numbers - (ends[chosen] - partners.counts[chosen]))
    # Each rollout meets those that come before it in the ranking.
    candidates = int((np.arange(len(ranking.first)) - ranking.first).sum())
    lower, clear = int(ranking.lower.sum()), int(ranking.clear.sum())
    return _pairing(
        ranking,
        chosen,
        rejected,
        ties=candidates - lower,
        small_gaps=lower - clear,
        identical=clear - total,
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
    completions: NDArray[np.uint64],
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
        completions: (N,) uint64, equal for the same completion.
        min_gap: Smallest gap that counts, at least 0.
        max_pairs: Keep at most so many, chosen at random; None for all.
        rng: Chooses.

    Raises:
        ValueError: There are too many to list.
    """
    ranking = rank(prompts, rewards, completions, min_gap)
    if strategy is Strategy.ALL_PAIRS:
        pairing = all_pairs(ranking, max_pairs, rng)
    else:
        pairing = _WITHIN_PROMPTS[strategy](ranking).at_most(max_pairs, rng)
    return in_file_order(pairing, prompts)


def in_file_order(pairing: Pairing, prompts: NDArray[np.int64]) -> Pairing:
    """The same pairs by the chosen's prompt, then chosen, then rejected."""
    order = np.lexsort((pairing.rejected, pairing.chosen, prompts[pairing.chosen]))
    return replace(pairing, chosen=pairing.chosen[order], rejected=pairing.rejected[order])


def _prompts_of_several(ranking: Ranking) -> NDArray[np.int64]:
    """Places of the best rollouts of the prompts that have two or more."""
    ends = np.flatnonzero(ranking.last == np.arange(len(ranking.last)))
    return ends[ranking.first[ends] < ends]


def _differing(
    ranking: Ranking, better: NDArray[np.int64], worse: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of rollouts that share the rewards of two, the first combination in the file whose completions differ.

    Args:
        ranking: The rollouts.
        better: (P,) places.
        worse: (P,) places.

    Returns:
        The places of those couples for which there is such a combination.
    """
    chosen, rejected = ranking.tied[better], ranking.tied[worse]
    same = ranking.completions[chosen] == ranking.completions[rejected]
    none = len(ranking.rollouts)
    other_better, other_worse = ranking.differing[better], ranking.differing[worse]
    # The earliest better one first: only if all worse ones equal it, another better one.
    take_worse = same & (other_worse < none)
    take_better = same & ~take_worse & (other_better < none)
    rejected = np.where(take_worse, other_worse, rejected)
    chosen = np.where(take_better, other_better, chosen)
    found = ~same | take_worse | take_better
    return chosen[found], rejected[found]


@dataclass(frozen=True)
class _Partners:
    """The clearly worse rollouts with another completion, of every rollout, from the worst on.

    Attributes:
        ranking: The rollouts.
        labelled: Its completions.
        counts: (N,) int64, how many each has.
    """

    ranking: Ranking
    labelled: Labelled
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, ranking: Ranking) -> Self:
        """Count them."""
        labelled = Labelled.of(ranking.completions)
        same = labelled.same(ranking.completions, ranking.first, ranking.first + ranking.clear)
        return cls(ranking, labelled, ranking.clear - same)

    def at(self, places: NDArray[np.int64], turn: NDArray[np.int64]) -> NDArray[np.int64]:
        """Place of partner number `turn`, less than `counts`, of those at some places."""
        return self.labelled.nth_other(self.ranking.completions[places], self.ranking.first[places], turn)


def _pairing(
    ranking: Ranking,
    chosen: NDArray[np.int64],
    rejected: NDArray[np.int64],
    *,
    ties: int,
    small_gaps: int,
    identical: int,
    over_limit: int = 0,
) -> Pairing:
    return Pairing(ranking.rollouts[chosen], ranking.rollouts[rejected], ties, small_gaps, identical, over_limit)
