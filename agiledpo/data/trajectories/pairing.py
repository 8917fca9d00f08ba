"""Strict preference pairs from groups of trajectories, after rLLM's pull request 477."""

import math
from collections.abc import Iterable, Sequence
from itertools import product

import numpy as np

from agiledpo.data.rollouts.ranking import LARGEST_REWARD, clearly_worse
from agiledpo.data.trajectories.objective import DPOObjective
from agiledpo.data.trajectories.types import PreferencePair, Trajectory, TrajectoryGroup

_SKIPPED = (
    "insufficient_size",
    "multistep",
    "prompt_mismatch",
    "empty_prompt",
    "tie",
    "small_gap",
    "empty_completion",
    "identical_completions",
)


def build_preference_pairs(
    groups: Iterable[TrajectoryGroup], config: DPOObjective
) -> tuple[list[PreferencePair], dict[str, float]]:
    """Make at most one pair of each group: its best trajectory against its worst.

    A group makes a pair only if all of its trajectories, at least two, are a single step from the same prompt tokens,
    and if best and worst have clearly different rewards and different completions that are not empty. Where several
    trajectories share the best or the worst reward, the pair is their first combination, in the order of the group,
    whose completions are so. Every other group is counted under the first cause that applies.

    Args:
        groups: The groups.
        config: What a clear difference is; rounding is forgiven.

    Returns:
        The pairs in the order of their groups, and the metrics: `dpo/groups_seen`, `dpo/pairs_built`,
        `dpo/groups_skipped_<cause>` for each of insufficient_size, multistep (not exactly one step), prompt_mismatch,
        empty_prompt, tie, small_gap, empty_completion and identical_completions, and, if there are pairs, their
        `dpo/reward_gap_mean`, `dpo/chosen_reward_mean` and `dpo/rejected_reward_mean`.

    Raises:
        ValueError: A trajectory that would be compared has no reward, or none that is a finite number of at most 1e290.
    """
    pairs: list[PreferencePair] = []
    chosen_rewards, rejected_rewards = [], []
    skipped = dict.fromkeys(_SKIPPED, 0)
    seen = 0
    for group in groups:
        seen += 1
        cause = _shape_problem(group)
        if cause is not None:
            skipped[cause] += 1
            continue
        rewards = [_reward(group, number, trajectory) for number, trajectory in enumerate(group.trajectories)]
        high, low = max(rewards), min(rewards)
        cause = _gap_problem(high, low, config)
        if cause is not None:
            skipped[cause] += 1
            continue
        found = _differing(
            [trajectory for trajectory, reward in zip(group.trajectories, rewards, strict=True) if reward == high],
            [trajectory for trajectory, reward in zip(group.trajectories, rewards, strict=True) if reward == low],
        )
        if isinstance(found, str):
            skipped[found] += 1
            continue
        pairs.append(PreferencePair(group.group_id, group.task_id, group.role, *found, high - low))
        chosen_rewards.append(high)
        rejected_rewards.append(low)
    metrics: dict[str, float] = {"dpo/groups_seen": seen, "dpo/pairs_built": len(pairs)}
    metrics |= {f"dpo/groups_skipped_{cause}": count for cause, count in skipped.items()}
    if pairs:
        metrics["dpo/reward_gap_mean"] = math.fsum(pair.reward_gap for pair in pairs) / len(pairs)
        metrics["dpo/chosen_reward_mean"] = math.fsum(chosen_rewards) / len(pairs)
        metrics["dpo/rejected_reward_mean"] = math.fsum(rejected_rewards) / len(pairs)
    return pairs, metrics


def _shape_problem(group: TrajectoryGroup) -> str | None:
    trajectories = group.trajectories
    if len(trajectories) < 2:
        return "insufficient_size"
    if any(len(trajectory.steps) != 1 for trajectory in trajectories):
        return "multistep"
    prompt = list(trajectories[0].steps[0].prompt_ids)
    if any(list(trajectory.steps[0].prompt_ids) != prompt for trajectory in trajectories[1:]):
        return "prompt_mismatch"
    return None if prompt else "empty_prompt"


def _reward(group: TrajectoryGroup, number: int, trajectory: Trajectory) -> float:
    reward = trajectory.reward
    # Compared as float: a float32 cannot hold the bound.
    if reward is None or isinstance(reward, str) or not abs(float(reward)) <= LARGEST_REWARD:
        state = "has no reward" if reward is None else f"has the reward {reward!r}"
        raise ValueError(
            f"group {group.group_id!r}, trajectory {number} {state}; give every trajectory a finite number, at most "
            f"{LARGEST_REWARD:g}, before pairs are made, or take those that were not judged out of their group."
        )
    return float(reward)


def _gap_problem(high: float, low: float, config: DPOObjective) -> str | None:
    better = np.asarray(high, dtype=np.float64)
    if low > clearly_worse(better, 0.0):
        return "tie"
    return "small_gap" if low > clearly_worse(better, config.min_reward_gap) else None


def _differing(best: Sequence[Trajectory], worst: Sequence[Trajectory]) -> tuple[Trajectory, Trajectory] | str:
    """The first combination of different completions that are not empty, or the cause why there is none."""
    better, worse = (
        [(trajectory, ids) for trajectory in end if (ids := list(trajectory.steps[0].response_ids))]
        for end in (best, worst)
    )
    if not (better and worse):
        return "empty_completion"
    for (chosen, ids), (rejected, others) in product(better, worse):
        if ids != others:
            return chosen, rejected
    return "identical_completions"
