"""Send every group of trajectories down the path that its objective names."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

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

    Warns:
        UserWarning: A role that `config.roles` names has no group, while groups of other roles have no setting of their
            own: one may be misspelt.
    """
    groups = list(groups)
    _warn_of_missing_roles({group.role for group in groups}, config)
    paths: dict[Objective, list[TrajectoryGroup]] = {Objective.RL: [], Objective.DPO: []}
    for group in groups:
        paths[config.of(group.role)].append(group)
    metrics: dict[str, float] = {f"objective/groups_{path}": len(taken) for path, taken in paths.items()}
    pairs: list[PreferencePair] = []
    if Objective.DPO in (config.objective, *config.roles.values()):
        pairs, of_pairs = build_preference_pairs(paths[Objective.DPO], config.dpo)
        metrics |= of_pairs
    return RoutedGroups(paths[Objective.RL], pairs, metrics)


def _warn_of_missing_roles(seen: set[str], config: ObjectiveConfig) -> None:
    unnamed = sorted(seen - set(config.roles))
    missing = [role for role in config.roles if role not in seen]
    # Where all groups have a setting of their own, the batch merely lacks a role.
    if not (unnamed and missing):
        return
    nearest = (get_close_matches(role, unnamed, n=1, cutoff=0.0)[0] for role in missing)
    hints = ", ".join(f"{role!r} (nearest: {near!r})" for role, near in zip(missing, nearest, strict=True))
    warnings.warn(
        f"no group has the role {hints}; groups of {', '.join(map(repr, unnamed))} take the path of "
        f"objective={str(config.objective)!r}. Check the names in roles.",
        UserWarning,
        stacklevel=3,
    )
