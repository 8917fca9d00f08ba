"""What trajectories are trained with, checked before anything is loaded."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from numbers import Integral, Real
from typing import Any, Self


class Objective(StrEnum):
    """The path that a group of trajectories takes: advantages, or preference pairs."""

    RL = "rl"
    DPO = "dpo"


@dataclass(frozen=True)
class DPOObjective:
    """How preference pairs are made of a group.

    Attributes:
        beta: DPO's, larger than 0. Pairs do not depend on it: it is kept here, where rLLM's configuration has it, for
            the agents, ``DPO(..., beta=config.dpo.beta)``.
        pairing_strategy: "best_worst", the only one.
        min_reward_gap: Smallest difference of rewards, at least 0.
        drop_ties: Make no pair of equal rewards. With False rLLM makes an arbitrary one; here False needs a
            `min_reward_gap`, by which no tie becomes a pair either.

    Raises:
        TypeError: One of them is no number, or no bool.
        ValueError: One of them is out of range, or a tie could become a pair.
    """

    beta: float = 0.1
    pairing_strategy: str = "best_worst"
    min_reward_gap: float = 0.0
    drop_ties: bool = True

    def __post_init__(self) -> None:
        _check_number("beta", self.beta)
        _check_number("min_reward_gap", self.min_reward_gap)
        _check_bool("drop_ties", self.drop_ties)
        if not (math.isfinite(self.beta) and self.beta > 0):
            raise ValueError(f"beta must be a finite number larger than 0, got {self.beta}.")
        if self.pairing_strategy != "best_worst":
            raise ValueError(f"pairing_strategy must be 'best_worst', got {self.pairing_strategy!r}.")
        if not (math.isfinite(self.min_reward_gap) and self.min_reward_gap >= 0):
            raise ValueError(f"min_reward_gap must be a finite number, at least 0, got {self.min_reward_gap}.")
        if not self.drop_ties and self.min_reward_gap == 0:
            raise ValueError(
                "drop_ties=False with min_reward_gap=0 would call one of two equally good answers the better one; set "
                "drop_ties=True, or a positive min_reward_gap."
            )


@dataclass(frozen=True)
class ObjectiveConfig:
    """Which path groups take. What does not go together is refused here, before a model is loaded.

    Attributes:
        objective: "rl" or "dpo", for all roles that are not named.
        dpo: How pairs are made.
        roles: Objectives of single roles.
        rollouts_per_prompt: Attempts per task, at least 2 where pairs are made; None if that is not known beforehand.
        use_precomputed_advantage: Advantages come with the steps, for ``rollouts_from_groups``, which ignores them
            where this is False; True only without DPO, which reads rewards.
        asynchronous: Training runs while trajectories are collected; only without DPO, which needs whole groups.

    Raises:
        TypeError: A value is of the wrong type.
        ValueError: A value is unknown, or two settings contradict each other.
    """

    objective: Objective | str = Objective.RL
    dpo: DPOObjective = field(default_factory=DPOObjective)
    roles: Mapping[str, Objective | str] = field(default_factory=dict)
    rollouts_per_prompt: int | None = None
    use_precomputed_advantage: bool = False
    asynchronous: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "objective", _objective("objective", self.objective))
        if not isinstance(self.roles, Mapping):
            raise TypeError(
                f"roles must be a mapping from roles to 'rl' or 'dpo', got {self.roles!r}; leave it away for none."
            )
        if not isinstance(self.dpo, DPOObjective):
            raise TypeError(f"dpo must be a DPOObjective, got {self.dpo!r}; from_dict takes a mapping.")
        _check_bool("use_precomputed_advantage", self.use_precomputed_advantage)
        _check_bool("asynchronous", self.asynchronous)
        roles = {role: _objective(f"roles[{role!r}]", value) for role, value in self.roles.items()}
        object.__setattr__(self, "roles", roles)
        count = self.rollouts_per_prompt
        if count is not None and (isinstance(count, bool) or not isinstance(count, Integral)):
            raise TypeError(f"rollouts_per_prompt must be an integer or None, got {count!r}.")
        if count is not None and count < 1:
            raise ValueError(f"rollouts_per_prompt must be at least 1, got {self.rollouts_per_prompt}.")
        settings = {"objective": self.objective} | {f"roles[{role!r}]": value for role, value in roles.items()}
        for name, objective in settings.items():
            if objective is Objective.DPO:
                self._check_dpo(f"{name}='dpo'")

    def of(self, role: str) -> Objective:
        """The path of a role's groups."""
        return Objective(self.roles.get(role, self.objective))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read it from plain data, such as a YAML file, with `dpo` as a mapping.

        Raises:
            TypeError: See the class itself.
            ValueError: A key is unknown, or see the class itself.
        """
        _check_keys(cls, values, "")
        values = dict(values)
        if "dpo" in values:
            _check_keys(DPOObjective, values["dpo"], "dpo.")
            values["dpo"] = DPOObjective(**values["dpo"])
        return cls(**values)

    def _check_dpo(self, setting: str) -> None:
        if self.use_precomputed_advantage:
            raise ValueError(
                f"{setting} does not go with use_precomputed_advantage=True: pairs are made of rewards and have no "
                f"advantage; set use_precomputed_advantage=False, or the objective to 'rl'."
            )
        if self.asynchronous:
            raise ValueError(
                f"{setting} does not go with asynchronous=True: a pair needs its whole group; set asynchronous=False, "
                f"or the objective to 'rl'."
            )
        if self.rollouts_per_prompt is not None and self.rollouts_per_prompt < 2:
            raise ValueError(
                f"{setting} does not go with rollouts_per_prompt={self.rollouts_per_prompt}: a pair needs two attempts "
                f"at the same prompt; set rollouts_per_prompt to 2 or more, or the objective to 'rl'."
            )


def _objective(name: str, value: str) -> Objective:
    try:
        return Objective(value)
    except ValueError:
        raise ValueError(f"{name} must be 'rl' or 'dpo', got {value!r}.") from None


def _check_number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r}.")


def _check_bool(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}.")


def _check_keys(kind: type[DPOObjective] | type[ObjectiveConfig], values: Any, prefix: str) -> None:
    known = [entry.name for entry in fields(kind)]
    if not isinstance(values, Mapping):
        raise ValueError(f"{prefix.rstrip('.')} must be a mapping of {', '.join(known)}, got {values!r}.")
    for key in values:
        if key not in known:
            raise ValueError(f"unknown setting {prefix}{key}; the settings are {', '.join(known)}.")
