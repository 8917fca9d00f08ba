"""Trajectories as rLLM groups them, reduced to what preferences and advantages are made of."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class Step:
    """One call of the model.

    Attributes:
        prompt_ids: Token ids that it was given.
        response_ids: Token ids that it answered.
        logprobs: Log-probability of each of these where it was sampled; None if that is not known.
        advantage: How much better each of them was than expected, computed beforehand: one number for all, or one for
            each. None if it follows from the rewards of the group.
    """

    prompt_ids: Sequence[int]
    response_ids: Sequence[int]
    logprobs: Sequence[float] | None = None
    advantage: float | Sequence[float] | None = None


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One attempt at a task.

    Attributes:
        steps: The calls of the model, in order.
        reward: Of the whole attempt; None if it was not judged.
    """

    steps: Sequence[Step]
    reward: float | None = None


@dataclass(frozen=True, slots=True)
class TrajectoryGroup:
    """Attempts that are compared with one another.

    Attributes:
        group_id: Its name, in rLLM "task:role".
        task_id: The task.
        role: Who attempted it, where several agents work together, such as "solver".
        trajectories: The attempts.
    """

    group_id: str
    task_id: str
    role: str
    trajectories: Sequence[Trajectory]

    @classmethod
    def named(cls, group_id: str, trajectories: Sequence[Trajectory]) -> Self:
        """A group that rLLM named "task:role".

        Raises:
            ValueError: The name has no such two parts.
        """
        task_id, colon, role = group_id.rpartition(":")
        if not (task_id and colon and role):
            raise ValueError(f"group_id must be 'task:role', got {group_id!r}; or give task_id and role themselves.")
        return cls(group_id, task_id, role, trajectories)


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """Two attempts of one group, each a single step from the same prompt.

    Attributes:
        group_id: The group's.
        task_id: The group's.
        role: The group's.
        chosen: The better one.
        rejected: The worse one.
        reward_gap: By how much, positive.
    """

    group_id: str
    task_id: str
    role: str
    chosen: Trajectory
    rejected: Trajectory
    reward_gap: float
