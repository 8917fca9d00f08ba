"""Rollouts from groups of trajectories, whose steps may bring their advantages with them.

The rule is that of rLLM's pull request 398, per group: if every step has a valid advantage they are used as they are;
if none has one they follow from the rewards; if only some do, a warning says so and all follow from the rewards.
Nothing is filled in and nothing is cut.
"""

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agiledpo.data.trajectories import Step, Trajectory, TrajectoryGroup, own_advantages
from agiledpo.losses.advantages import group_advantages
from agiledpo.scoring import RolloutBatch

# Differences up to here are finite in single precision, and their squares in double.
_LARGEST_REWARD = 1e38
# Problems that a warning names; the others are counted.
_NAMED = 3


@dataclass(frozen=True)
class _Attempt:
    """A step as a completion of its prompt."""

    where: str
    prompt: Tensor
    completion: Tensor
    reward: float
    advantages: Tensor
    logps: Tensor | None

    @property
    def row(self) -> tuple[tuple[int, ...], bool]:
        """Equal for those that are completions of one prompt; what is known of one must be known of all."""
        return tuple(self.prompt.tolist()), self.logps is None


def rollouts_from_groups(
    groups: Iterable[TrajectoryGroup],
    *,
    adv_norm: str = "mean_std",
    stepwise_mode: str = "broadcast",
    use_precomputed_advantage: bool = True,
) -> RolloutBatch:
    """Make rollouts of groups of trajectories, with the advantage of every token.

    Where they follow from the rewards, the trajectories of a group are compared with each other, and the advantage of a
    trajectory is that of every token of all its steps. Steps of a group that were given the same prompt become one row,
    whose prompt is computed once; which steps share a row has no influence on advantages. Each step's logprobs become
    `sampling_logps`. Trajectories without steps take part in the comparison only.

    Args:
        groups: The groups.
        adv_norm: How rewards become advantages; see :func:`agiledpo.losses.advantages.group_advantages`.
        stepwise_mode: "broadcast". rLLM's "per_step" is deprecated there and means the same.
        use_precomputed_advantage: Use what the steps bring; False always takes the rewards, with a warning if there was
            something to use. `ObjectiveConfig.use_precomputed_advantage` says which for a run.

    Returns:
        One row for each prompt of each group, in order of appearance. A reward is that of the trajectory, NaN if it has
        none.

    Raises:
        ValueError: `stepwise_mode` is unknown; there is no step; a step has no tokens, ids that are none, or logprobs
            that are not finite or not one per response token; a reward is no number or above 1e38; or advantages have
            to be made of rewards, and one is missing or there is only one. Group, trajectory and step are named.

    Warns:
        UserWarning: Only some steps of a group have a valid advantage; the places are named. Or all are ignored.
        DeprecationWarning: `stepwise_mode` is "per_step".
    """
    _check_stepwise_mode(stepwise_mode)
    groups = [group for group in groups if group.trajectories]
    own: list[Sequence[Sequence[Any]] | None] = []
    rewards: list[list[float]] = []
    labels: list[str] = []
    for group in groups:
        found, reasons = _read(group) if use_precomputed_advantage else (None, "")
        own.append(found)
        if found is None:
            labels.append(f"group {group.group_id!r}")
            rewards.append([_comparable(group, number, reasons) for number in range(len(group.trajectories))])
        if reasons:
            warnings.warn(
                f"group {group.group_id!r}: {reasons}. The advantages of the whole group are computed from its rewards "
                "instead; give every step an advantage, a finite number or one per response token, or none.",
                UserWarning,
                stacklevel=2,
            )
    if not use_precomputed_advantage:
        _warn_of_ignored(groups)
    compared = iter(group_advantages(rewards, adv_norm=adv_norm, labels=labels))
    attempts = []
    for group, found in zip(groups, own, strict=True):
        if found is None:
            found = _broadcast(group, next(compared))
        attempts.append(list(_attempts(group, found)))
    return _batch(attempts)


def _check_stepwise_mode(mode: str) -> None:
    if mode == "per_step":
        warnings.warn(
            "stepwise_mode='per_step' is deprecated and means 'broadcast': the advantage of a trajectory is that of "
            "all its steps. Give steps advantages of their own instead.",
            DeprecationWarning,
            stacklevel=3,
        )
    elif mode != "broadcast":
        raise ValueError(f"stepwise_mode={mode!r}; use 'broadcast'.")


def _read(group: TrajectoryGroup) -> tuple[Sequence[Sequence[Any]] | None, str]:
    """The advantages that the steps bring, or None and, if some do, why they are not used."""
    own = own_advantages(group)
    rest = len(own.problems) - _NAMED
    return own.steps, "; ".join(own.problems[:_NAMED]) + (f"; and {rest} more" if rest > 0 else "")


def _warn_of_ignored(groups: Sequence[TrajectoryGroup]) -> None:
    for group in groups:
        for number, trajectory in enumerate(group.trajectories):
            for place, step in enumerate(trajectory.steps):
                if step.advantage is not None:
                    warnings.warn(
                        f"{_where(group, number, place)} and maybe others have an advantage, which is ignored because "
                        "of use_precomputed_advantage=False: all advantages are computed from rewards.",
                        UserWarning,
                        stacklevel=3,
                    )
                    return


def _where(group: TrajectoryGroup, number: int, place: int | None = None) -> str:
    step = "" if place is None else f", step {place}"
    return f"group {group.group_id!r}, trajectory {number}{step}"


def _reward(group: TrajectoryGroup, number: int) -> float:
    """The reward of a trajectory; NaN if it has none."""
    reward = group.trajectories[number].reward
    if reward is None:
        return math.nan
    if isinstance(reward, str) or abs(float(reward)) > _LARGEST_REWARD:
        raise ValueError(
            f"{_where(group, number)} has the reward {reward!r}; a number of at most {_LARGEST_REWARD:g}, or None, is "
            "needed."
        )
    return float(reward)


def _comparable(group: TrajectoryGroup, number: int, reasons: str) -> float:
    """The reward of a trajectory that has to have one."""
    reward = _reward(group, number)
    if math.isnan(reward):
        because = f" ({reasons})" if reasons else ""
        raise ValueError(
            f"{_where(group, number)} has no reward, and the advantages of its group have to be computed from "
            f"rewards{because}. Give every trajectory of the group a reward, or every step of it a valid advantage."
        )
    return reward


def _broadcast(group: TrajectoryGroup, advantages: Tensor) -> Sequence[Sequence[Any]]:
    """The advantage of each trajectory for every token of all its steps."""
    return [
        [np.full(len(step.response_ids), value, dtype=np.float32) for step in trajectory.steps]
        for trajectory, value in zip(group.trajectories, advantages.tolist(), strict=True)
    ]


def _attempts(group: TrajectoryGroup, advantages: Sequence[Sequence[Any]]) -> Iterator[_Attempt]:
    for number, (trajectory, values) in enumerate(zip(group.trajectories, advantages, strict=True)):
        yield from _attempts_of(group, number, trajectory, values)


def _attempts_of(
    group: TrajectoryGroup, number: int, trajectory: Trajectory, advantages: Sequence[Any]
) -> Iterator[_Attempt]:
    for place, (step, values) in enumerate(zip(trajectory.steps, advantages, strict=True)):
        where = _where(group, number, place)
        yield _Attempt(
            where=where,
            prompt=_tokens(step.prompt_ids, f"{where}: prompt_ids"),
            completion=_tokens(step.response_ids, f"{where}: response_ids"),
            reward=_reward(group, number),
            advantages=torch.tensor(values, dtype=torch.float32),
            logps=_logps(step, where),
        )


def _tokens(ids: Sequence[int], name: str) -> Tensor:
    values = np.asarray(ids)
    if values.ndim != 1 or not values.size or values.dtype.kind not in "iu" or values.min() < 0:
        raise ValueError(f"{name} must be a list of token ids that is not empty. Take the step out of its trajectory.")
    return torch.tensor(values, dtype=torch.int64)


def _logps(step: Step, where: str) -> Tensor | None:
    if step.logprobs is None:
        return None
    values = torch.as_tensor(step.logprobs, dtype=torch.float32).cpu()
    if values.shape != (len(step.response_ids),):
        raise ValueError(
            f"{where} has {len(values.reshape(-1))} logprobs for {len(step.response_ids)} response tokens; one per "
            "token is needed, or None."
        )
    if not bool(values.isfinite().all()):
        raise ValueError(f"{where} has logprobs that are not finite; a sampled token has a probability, or give None.")
    return values


def _batch(groups: Iterable[Sequence[_Attempt]]) -> RolloutBatch:
    """One row for each prompt of each group."""
    rows: list[list[_Attempt]] = []
    for group in groups:
        of_group: dict[Any, list[_Attempt]] = {}
        for attempt in group:
            of_group.setdefault(attempt.row, []).append(attempt)
        rows += of_group.values()
    if not rows:
        raise ValueError("The groups hold no step, so there is nothing to learn from.")
    return RolloutBatch(
        prompts=[row[0].prompt for row in rows],
        completions=[[attempt.completion for attempt in row] for row in rows],
        rewards=[[attempt.reward for attempt in row] for row in rows],
        advantages=[[attempt.advantages for attempt in row] for row in rows],
        sampling_logps=[_column(row) for row in rows],
        finished=[[True] * len(row) for row in rows],  # which trajectories do not say
        labels=[_label(row) for row in rows],
    )


def _column(row: Sequence[_Attempt]) -> list[Tensor] | None:
    logps = [attempt.logps for attempt in row if attempt.logps is not None]
    return logps or None


def _label(row: Sequence[_Attempt]) -> str:
    return row[0].where if len(row) == 1 else f"{row[0].where} (and {len(row) - 1} more of its prompt)"
