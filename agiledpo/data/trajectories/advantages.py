"""Which groups bring advantages of their own: rLLM's rule (pull request 398), which never fills in or cuts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agiledpo.data.trajectories.types import Step, TrajectoryGroup

# Advantages are trained with in single precision.
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class OwnAdvantages:
    """What the steps of a group say about their advantages.

    Attributes:
        steps: For each trajectory, for each of its steps, the advantage of each response token, float32 (tokens,); None
            unless every step has a valid one.
        problems: Where and why a step has none, if others do, or none that is valid. Empty if all have a valid one, and
            if none has any.
    """

    steps: Sequence[Sequence[NDArray[np.float32]]] | None
    problems: Sequence[str]


def own_advantages(group: TrajectoryGroup) -> OwnAdvantages:
    """Read the advantages of the steps of a group.

    A number is that of every token of the response. A list has one for each. All are finite, in single precision too.

    Args:
        group: The group; one without any step has all the advantages that it needs.
    """
    problems = []
    some = False
    found: list[list[NDArray[np.float32]]] = []
    for number, trajectory in enumerate(group.trajectories):
        found.append([])
        for place, step in enumerate(trajectory.steps):
            some = some or step.advantage is not None
            values = _token_advantages(step)
            if isinstance(values, str):
                problems.append(f"trajectory {number}, step {place} {values}")
            else:
                found[-1].append(values)
    if problems:
        return OwnAdvantages(None, problems if some else [])
    return OwnAdvantages(found, [])


def _token_advantages(step: Step) -> NDArray[np.float32] | str:
    """One advantage per token, or what is wrong."""
    if step.advantage is None:
        return "has no advantage"
    tokens = len(step.response_ids)
    try:
        values = np.asarray(step.advantage)
    except (TypeError, ValueError):  # lists of different lengths, or of what NumPy cannot hold
        return "has an advantage that is no number and no list of numbers"
    if values.ndim > 1 or (values.dtype.kind not in "iuf" and values.size):
        return "has an advantage that is no number and no list of numbers"
    if values.ndim == 1 and len(values) != tokens:
        return f"has {len(values)} advantages for {tokens} response tokens"
    for value in values.reshape(-1).tolist():
        if not math.isfinite(value) or abs(value) > _LARGEST:
            return f"has the advantage {value}, which is no finite number in single precision"
    return np.broadcast_to(values.astype(np.float32), (tokens,))
