"""What an algorithm declares about itself: mutable hyperparameters, network groups, optimizers."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np


@dataclass(frozen=True)
class RLParameter:
    """The range in which one numeric hyperparameter may move, and by how much.

    The object holds no value and no state, so agents can share it.

    Args:
        min: Smallest value.
        max: Largest value.
        shrink_factor: Factor of a step down, in (0, 1).
        grow_factor: Factor of a step up, above 1.
        dtype: ``float`` or ``int``.

    Raises:
        ValueError: The range is empty or a factor would not move the value.
    """

    min: float
    max: float
    shrink_factor: float = 0.8
    grow_factor: float = 1.2
    dtype: type[float] | type[int] = float

    def __post_init__(self) -> None:
        if not self.min < self.max:
            raise ValueError(f"RLParameter needs min < max; got min={self.min}, max={self.max}.")
        if not 0 < self.shrink_factor < 1 < self.grow_factor:
            raise ValueError(
                "RLParameter needs 0 < shrink_factor < 1 < grow_factor; "
                f"got shrink_factor={self.shrink_factor}, grow_factor={self.grow_factor}."
            )

    def mutate(self, value: float, rng: np.random.Generator) -> float:
        """Return ``value`` shrunk or grown with equal probability, kept in the range.

        An integer always moves by at least 1 unless the border of the range stops it.

        Args:
            value: The present value.
            rng: Source of the decision.
        """
        grow = rng.random() < 0.5
        moved = value * (self.grow_factor if grow else self.shrink_factor)
        if self.dtype is int:
            moved = max(round(moved), value + 1) if grow else min(round(moved), value - 1)
        return self.dtype(min(max(moved, self.min), self.max))


class HyperparameterConfig(Mapping[str, RLParameter]):
    """The hyperparameters that evolution may change, by attribute name.

    Args:
        **parameters: ``lr=RLParameter(min=1e-7, max=1e-4)`` and so on.

    Raises:
        TypeError: A value is not an ``RLParameter``.
    """

    def __init__(self, **parameters: RLParameter) -> None:
        for name, parameter in parameters.items():
            if not isinstance(parameter, RLParameter):
                raise TypeError(
                    f"{name}={parameter!r} is not an RLParameter; write {name}=RLParameter(min=..., max=...)."
                )
        self._parameters = parameters

    def __getitem__(self, name: str) -> RLParameter:
        return self._parameters[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    def __len__(self) -> int:
        return len(self._parameters)

    def corners(self) -> Iterator[dict[str, Any]]:
        """Every combination of the ends of the ranges."""
        names = list(self)
        for ends in product(*((self[name].min, self[name].max) for name in names)):
            yield dict(zip(names, ends, strict=True))

    def check(self, values: Mapping[str, object], kinds: Mapping[str, type]) -> None:
        """Check against the live values of an agent.

        Args:
            values: The agent's hyperparameters by name.
            kinds: Their types.

        Raises:
            ValueError: A name is unknown, not a number, or outside its range; the parameter is named.
        """
        for name, parameter in self.items():
            if name not in values:
                raise ValueError(
                    f"hp_config names {name!r}, which is no hyperparameter; there are {', '.join(values)}."
                )
            value = values[name]
            if not isinstance(value, (int, float)) or isinstance(value, bool):
                raise ValueError(f"hp_config names {name!r}, whose value {value!r} is not a number.")
            if not parameter.min <= value <= parameter.max:
                raise ValueError(
                    f"{name}={value} is outside the range of hp_config, {parameter.min} to {parameter.max}. "
                    "Widen the range or start inside it."
                )


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
