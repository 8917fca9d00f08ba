"""What an algorithm declares about itself: mutable hyperparameters, network groups, optimizers."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

import numpy as np

from agiledpo.algorithms.core.domains import Choice, Domain, LogUniform, RLParameter
from agiledpo.losses.checks import check_number

__all__ = [
    "Choice",
    "Domain",
    "HyperparameterConfig",
    "LogUniform",
    "NetworkGroup",
    "OptimizerConfig",
    "RLParameter",
    "make_default_hp_config",
]


# Most combinations of more than two hyperparameters that are tried when an agent is made.
_MOST_CORNERS = 4096


class HyperparameterConfig(Mapping[str, Domain]):
    """The hyperparameters that evolution may change, by attribute name, and where each may move.

    It holds no value, so that agents can share it.

    Args:
        **parameters: ``lr=RLParameter(min=1e-7, max=1e-4)``, ``beta=LogUniform(min=0.01, max=1.0)``,
            ``loss_type=Choice("sigmoid", "ipo")`` and so on.

    Raises:
        TypeError: A value is none of these.
    """

    def __init__(self, **parameters: Domain) -> None:
        for name, parameter in parameters.items():
            if not isinstance(parameter, Domain):
                raise TypeError(
                    f"{name}={parameter!r} is not an RLParameter, LogUniform or Choice; write "
                    f"{name}=RLParameter(min=..., max=...), {name}=LogUniform(min=..., max=...) or {name}=Choice(...)."
                )
        self._parameters = parameters

    def __getitem__(self, name: str) -> Domain:
        return self._parameters[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    def __len__(self) -> int:
        return len(self._parameters)

    def __repr__(self) -> str:
        return f"HyperparameterConfig({', '.join(f'{name}={domain}' for name, domain in self.items())})"

    def sample(self, rng: np.random.Generator) -> str:
        """Draw the name of a hyperparameter, each with equal probability.

        Args:
            rng: Source of the draw.
        """
        return list(self)[rng.integers(len(self))]

    def corners(self, kinds: Mapping[str, type]) -> Iterator[dict[str, Any]]:
        """Combinations of the ends of the ranges and of the options, the fewest hyperparameters first.

        Each hyperparameter by itself, then every two, then all together if these are at most 4096 combinations.

        Args:
            kinds: Types of the hyperparameters by name.

        Yields:
            Values by name; a hyperparameter that is not named keeps the value it has.
        """
        ends = {name: domain.ends(kinds[name]) for name, domain in self.items()}
        groups: list[tuple[str, ...]] = [*combinations(ends, 1), *combinations(ends, 2)]
        if len(ends) > 2 and math.prod(map(len, ends.values())) <= _MOST_CORNERS:
            groups.append(tuple(ends))
        for names in groups:
            for values in product(*(ends[name] for name in names)):
                yield dict(zip(names, values, strict=True))

    def check(self, values: Mapping[str, object], kinds: Mapping[str, type]) -> None:
        """Check against the live values of an agent.

        Args:
            values: The agent's hyperparameters by name.
            kinds: Their types.

        Raises:
            ValueError: A name is unknown, or a value cannot move or is outside its range; the parameter is named.
        """
        for name, domain in self.items():
            if name not in values:
                raise ValueError(
                    f"hp_config names {name!r}, which is no hyperparameter; there are {', '.join(values)}."
                )
            domain.check(name, values[name], kinds[name])


def make_default_hp_config(**values: float) -> HyperparameterConfig:
    """Make ranges around present values, as AgileRL does.

    A float may move between a tenth and ten times its value; a whole number between a quarter (at least 1) and four
    times, in steps of 0.75 and 1.5.

    Args:
        **values: Present values by name, above 0.

    Raises:
        ValueError: A value is not a number above 0.
    """
    parameters = {}
    for name, value in values.items():
        check_number(name, value, minimum=0.0, exclusive=True)
        if isinstance(value, int):
            parameters[name] = RLParameter(
                min=max(1, value // 4), max=4 * value, shrink_factor=0.75, grow_factor=1.5, dtype=int
            )
        else:
            parameters[name] = RLParameter(min=value / 10, max=10 * value)
    return HyperparameterConfig(**parameters)


@dataclass(frozen=True)
class NetworkGroup:
    """A group of networks that belong together.

    Args:
        eval_network: Name of the attribute that holds the network that acts.
        shared_networks: Names of networks that follow it.
        policy: Whether this is the group of the policy.
    """

    eval_network: str
    shared_networks: tuple[str, ...] = ()
    policy: bool = False


@dataclass(frozen=True)
class OptimizerConfig:
    """An optimizer of an algorithm.

    Args:
        name: Attribute that holds the optimizer.
        networks: Attributes whose parameters it steps.
        lr: Attribute that holds its learning rate.
    """

    name: str = "optimizer"
    networks: tuple[str, ...] = ("actor",)
    lr: str = "lr"
