"""The rollouts of every prompt from the worst to the best, and how many of them each one clearly beats."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Rewards that differ by less, relative to their size, differ by how they were rounded: 0.3 - 0.1 is a gap of 0.2.
ROUNDING = 1e-9
# Gaps and means of any number of rewards up to here are finite.
LARGEST_REWARD = 1e290


def clearly_worse(rewards: NDArray[np.float64], min_gap: float) -> NDArray[np.float64]:
    """The highest reward that each of some rewards clearly beats.

    A gap counts if it is at least `min_gap`, up to rounding, and more than rounding: a tie never does.

    Args:
        rewards: Any shape.
        min_gap: At least 0.
    """
    rounding = ROUNDING * np.maximum(np.abs(rewards), min_gap)
    return np.minimum(rewards - min_gap + rounding, np.nextafter(rewards - rounding, -np.inf))


@dataclass(frozen=True)
class Ranking:
    """N rollouts by prompt, and within a prompt from the lowest reward to the highest; equal ones as in the file.

    Attributes:
        rollouts: (N,) int64, numbers of the rollouts in this order; a place is an index into this array.
        first: (N,) int64, place of the first rollout of the same prompt.
        last: (N,) int64, place of the last rollout of the same prompt.
        completions: (N,) int64, labels of their completions, equal where these are.
        tied: (N,) int64, place of the first rollout of the same prompt and reward, the earliest in the file.
        differing: (N,) int64, place of the first rollout of the same prompt and reward whose completion is another
            than that of the one at `tied`; N if there is none.
        lower: (N,) int64, how many of the prompt have a lower reward. They begin at `first`.
        clear: (N,) int64, how many of these are at least the gap below. They begin at `first`.
    """

    rollouts: NDArray[np.int64]
    first: NDArray[np.int64]
    last: NDArray[np.int64]
    completions: NDArray[np.int64]
    tied: NDArray[np.int64]
    differing: NDArray[np.int64]
    lower: NDArray[np.int64]
    clear: NDArray[np.int64]


def rank(
    prompts: NDArray[np.int64], rewards: NDArray[np.float64], completions: NDArray[np.uint64], min_gap: float
) -> Ranking:
    """Rank the rollouts of every prompt.

    Args:
        prompts: (N,), equal for the same prompt.
        rewards: (N,), finite.
        completions: (N,), equal for the same completion.
        min_gap: What counts as a clear gap, at least 0.
    """
    order = np.lexsort((rewards, prompts))
    by_prompt, by_reward = prompts[order], rewards[order]
    new_prompt = by_prompt[1:] != by_prompt[:-1]
    first = _run_starts(new_prompt, len(order))
    last = len(order) - 1 - _run_starts(new_prompt[::-1], len(order))[::-1]
    tied = _run_starts(new_prompt | (by_reward[1:] != by_reward[:-1]), len(order))
    labels = np.unique(completions, return_inverse=True)[1][order]
    others = np.flatnonzero(labels != labels[tied])
    differing = np.full(len(order), len(order))
    np.minimum.at(differing, tied[others], others)
    return Ranking(
        rollouts=order.astype(np.int64),
        first=first,
        last=last,
        completions=labels,
        tied=tied,
        differing=differing[tied],
        lower=_count_up_to(by_prompt, by_reward, clearly_worse(by_reward, 0.0)) - first,
        clear=_count_up_to(by_prompt, by_reward, clearly_worse(by_reward, min_gap)) - first,
    )


def _run_starts(changes: NDArray[np.bool_], count: int) -> NDArray[np.int64]:
    """For each of `count` places the place where its run begins, given which of those after the first begin one."""
    starts = np.zeros(count, dtype=np.int64)
    starts[1:] = np.where(changes, np.arange(1, count), 0)
    return np.maximum.accumulate(starts)


def _count_up_to(
    prompts: NDArray[np.int64], rewards: NDArray[np.float64], bounds: NDArray[np.float64]
) -> NDArray[np.int64]:
    """For every place, how many rollouts come before its own prompt's first reward above its bound."""
    count = len(prompts)
    is_bound = np.repeat([False, True], count)
    merged = np.lexsort((is_bound, np.concatenate([rewards, bounds]), np.concatenate([prompts, prompts])))
    rollouts_before = np.cumsum(merged < count)
    counts = np.empty(2 * count, dtype=np.int64)
    counts[merged] = rollouts_before
    return counts[count:]
