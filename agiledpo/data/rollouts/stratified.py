"""Rollouts with a high reward against rollouts with a low one, also where their prompts differ."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from agiledpo.data.rollouts.differing import Labelled
from agiledpo.data.rollouts.ranking import ROUNDING, clearly_worse, rank
from agiledpo.data.rollouts.strategies import Pairing, in_file_order


def stratified(
    prompts: NDArray[np.int64],
    rewards: NDArray[np.float64],
    completions: NDArray[np.uint64],
    *,
    high_threshold: float,
    low_threshold: float,
    min_gap: float,
    max_pairs: int | None,
    rng: np.random.Generator,
) -> Pairing:
    """Make pairs across prompts, those of the same prompt first.

    All combinations of high and low grow with the square of the file. Of the candidates, those with a clear gap and
    different completions, only `max_pairs` are made: round by round, every high rollout in turn with another low one,
    so that all are used about equally often. Combinations of different prompts begin when those of the same prompt are
    exhausted. With `max_pairs` as large as the number of candidates all of them are made.

    Args:
        prompts: (N,) int64, equal for the same prompt.
        rewards: (N,) float64, finite.
        completions: (N,) uint64, equal for the same completion.
        high_threshold: Rewards from here on, up to rounding, are high.
        low_threshold: Rewards up to here, up to rounding, are low; less than `high_threshold`.
        min_gap: Smallest gap that counts, at least 0.
        max_pairs: At most so many pairs; None for as many as there are high rollouts.
        rng: Chooses.
    """
    is_low = rewards <= low_threshold + ROUNDING * abs(low_threshold)
    is_high = (rewards >= high_threshold - ROUNDING * abs(high_threshold)) & ~is_low
    ranking = rank(prompts, rewards, completions, min_gap)
    places = np.flatnonzero(is_high[ranking.rollouts])
    highs = ranking.rollouts[places]
    # The low rollouts of a prompt are its first ones.
    low_counts = np.bincount(prompts[is_low], minlength=int(prompts.max(initial=-1)) + 1)
    first, labels = ranking.first[places], ranking.completions[places]
    ranked = Labelled.of(ranking.completions)
    own = np.minimum(ranking.clear[places], low_counts[prompts[highs]])
    own -= ranked.same(labels, first, first + own)
    lows = np.flatnonzero(is_low)
    lows = lows[np.argsort(rewards[lows], kind="stable")]
    label_of = np.empty(len(rewards), dtype=np.int64)
    label_of[ranking.rollouts] = ranking.completions
    low_labels = Labelled.of(label_of[lows])
    clear = np.searchsorted(rewards[lows], clearly_worse(rewards[highs], min_gap), side="right")
    every = clear - low_labels.same(labels, 0, clear)

    candidates = int(every.sum())
    wanted = min(candidates, len(highs) if max_pairs is None else max_pairs)
    of_same = min(wanted, int(own.sum()))
    chosen, rejected = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
    missing = of_same
    for high, turn in _rounds(own, rng):
        if missing == 0:
            break
        high, turn = high[:missing], turn[:missing]
        chosen.append(highs[high])
        rejected.append(ranking.rollouts[ranked.nth_other(labels[high], first[high], turn)])
        missing -= len(high)
    missing = wanted - of_same
    for high, turn in _rounds(every, rng):
        if missing == 0:
            break
        partner = lows[low_labels.nth_other(labels[high], 0, turn)]
        differs = np.flatnonzero(prompts[partner] != prompts[highs[high]])[:missing]
        chosen.append(highs[high[differs]])
        rejected.append(partner[differs])
        missing -= len(differs)
    pairing = Pairing(
        np.concatenate(chosen),
        np.concatenate(rejected),
        ties=0,
        small_gaps=len(highs) * len(lows) - int(clear.sum()),
        identical=int((clear - every).sum()),
        over_limit=candidates - wanted,
    )
    return in_file_order(pairing, prompts)


def _rounds(
    counts: NDArray[np.int64], rng: np.random.Generator
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Let everyone meet each of its partners once, one in every round, beginning at a random one.

    Args:
        counts: (H,), numbers of partners.
        rng: Chooses who is first, and where each begins.

    Yields:
        Who still has a partner in this round, and which one, from 0.
    """
    order = rng.permutation(len(counts))
    begin = (rng.random(len(counts)) * counts).astype(np.int64)
    for turn in range(int(counts.max(initial=0))):
        order = order[counts[order] > turn]
        yield order, (begin[order] + turn) % counts[order]
