"""Send every group of trajectories down the path that its objective names."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from agiledpo.data.trajectories.objective import Objective, ObjectiveConfig
from agiledpo.data.trajectories.pairing import build_preference_pairs
from agiledpo.data.trajectories.types import PreferencePair, TrajectoryGroup


@dataclass(frozen=True)
class RoutedGroups:
    """Where the groups of a batch went.

    Attributes:
        rl: Groups to compute advantages for, unchanged and in their order.
        preference_pairs: Pairs made of the others.
        metrics: `objective/groups_rl` and `objective/groups_dpo`, which are all groups together; and those of
            :func:`build_preference_pairs` if any role is trained with DPO.
    """

    rl: Sequence[TrajectoryGroup]
    preference_pairs: Sequence[PreferencePair]
    metrics: Mapping[str, float]


def route_groups(groups: Iterable[TrajectoryGroup], config: ObjectiveConfig) -> RoutedGroups:
    """Take each group to its path.

    Args:
        groups: Of one batch.
        config: Which role takes which path, and how pairs are made.

    Raises:
        ValueError: See :func:`build_preference_pairs`.
    """
    paths: dict[Objective, list[TrajectoryGroup]] = {Objective.RL: [], Objective.DPO: []}
    for group in groups:
        paths[config.of(group.role)].append(group)
    metrics: dict[str, float] = {f"objective/groups_{path}": len(taken) for path, taken in paths.items()}
    pairs: list[PreferencePair] = []
    if Objective.DPO in (config.objective, *config.roles.values()):
        pairs, of_pairs = build_preference_pairs(paths[Objective.DPO], config.dpo)
        metrics |= of_pairs
    return RoutedGroups(paths[Objective.RL], pairs, metrics)
