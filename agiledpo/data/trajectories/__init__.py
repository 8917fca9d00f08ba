"""Strict preference pairs from groups of trajectories, and the objective that decides where groups go."""

from agiledpo.data.trajectories.advantages import OwnAdvantages, own_advantages
from agiledpo.data.trajectories.objective import DPOObjective, Objective, ObjectiveConfig
from agiledpo.data.trajectories.pairing import build_preference_pairs
from agiledpo.data.trajectories.routing import RoutedGroups, route_groups
from agiledpo.data.trajectories.rows import pairs_to_dataset, pairs_to_rows
from agiledpo.data.trajectories.types import PreferencePair, Step, Trajectory, TrajectoryGroup

__all__ = [
    "DPOObjective",
    "Objective",
    "ObjectiveConfig",
    "OwnAdvantages",
    "PreferencePair",
    "RoutedGroups",
    "Step",
    "Trajectory",
    "TrajectoryGroup",
    "build_preference_pairs",
    "own_advantages",
    "pairs_to_dataset",
    "pairs_to_rows",
    "route_groups",
]
