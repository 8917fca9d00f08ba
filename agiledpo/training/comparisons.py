"""From judged rollouts to strict preference pairs: the best of each group against its worst."""

import math

import torch

from agiledpo.data.trajectories import (
    DPOObjective,
    PreferencePair,
    Step,
    Trajectory,
    TrajectoryGroup,
    build_preference_pairs,
)
from agiledpo.scoring import PreferenceBatch, RolloutBatch


def compare(
    rollouts: RolloutBatch, objective: DPOObjective, *, mask_truncated: bool = False
) -> tuple[PreferenceBatch, dict[str, float]]:
    """Make at most one pair of each group.

    Ties and equal completions make none, see :func:`agiledpo.data.trajectories.build_preference_pairs`.

    Args:
        rollouts: B groups.
        objective: How large a difference of rewards has to be.
        mask_truncated: Leave completions that did not end themselves out of the pairs.

    Returns:
        The pairs, 0 to B, in the order of their groups; and the metrics of the rollouts: ``mean_reward``,
        ``completion_length`` (mean tokens), ``finished_rate``, ``pair_rate`` (share of groups that made a pair),
        ``reward_gap`` (mean over the pairs; NaN without any) and ``masked_completions`` (how many were left out).

    Raises:
        ValueError: A reward is NaN or infinite.
    """
    pairs, counts = build_preference_pairs(
        (_group(rollouts, place, mask_truncated) for place in range(len(rollouts))),
        objective,
    )
    rewards = [reward for group in rollouts.rewards for reward in group]
    finished = [ended for group in rollouts.finished for ended in group]
    metrics = {
        "mean_reward": math.fsum(rewards) / len(rewards),
        "completion_length": rollouts.completion_tokens / rollouts.completion_count,
        "finished_rate": sum(finished) / len(finished),
        "pair_rate": len(pairs) / len(rollouts),
        "reward_gap": counts.get("dpo/reward_gap_mean", math.nan),
        "masked_completions": float(finished.count(False)) if mask_truncated else 0.0,
    }
    return _batch(pairs), metrics


def _group(rollouts: RolloutBatch, place: int, mask_truncated: bool) -> TrajectoryGroup:
    label, prompt = rollouts.labels[place], rollouts.prompts[place].tolist()
    attempts = [
        Trajectory([Step(prompt, ids.tolist())], reward)
        for ids, reward, ended in zip(
            rollouts.completions[place], rollouts.rewards[place], rollouts.finished[place], strict=True
        )
        if ended or not mask_truncated
    ]
    return TrajectoryGroup(group_id=label, task_id=label, role="policy", trajectories=attempts)


def _batch(pairs: list[PreferencePair]) -> PreferenceBatch:
    return PreferenceBatch(
        prompts=[torch.tensor(pair.chosen.steps[0].prompt_ids) for pair in pairs],
        chosen=[torch.tensor(pair.chosen.steps[0].response_ids) for pair in pairs],
        rejected=[torch.tensor(pair.rejected.steps[0].response_ids) for pair in pairs],
        labels=[pair.group_id for pair in pairs],
    )
