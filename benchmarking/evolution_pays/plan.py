"""What all methods have in common: the budget, where they start, and where hyperparameters may go."""

import math
from dataclasses import dataclass
from typing import Self

import numpy as np

from agiledpo.algorithms.core.registry import HyperparameterConfig, RLParameter

BETA = 0.1
# Factors on learning rate and beta.
STARTS = {"good": (1.0, 1.0), "bad": (1 / 30, 10.0)}


@dataclass(frozen=True)
class Plan:
    """Sizes of a comparison.

    Attributes:
        agents: Agents of a population, or of a random search.
        pairs_per_agent: Pairs that each of them learns from.
        generations: Equal parts of that, after each of which agents are compared.
        selection: Held-out pairs that methods choose by.
        final: Pairs that no choice depends on, for the figures.
        batch_size: Pairs of an optimizer step.

    Raises:
        ValueError: A generation is not a whole number of steps, or a number is below 1.
    """

    agents: int
    pairs_per_agent: int
    generations: int
    selection: int
    final: int
    batch_size: int = 8

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")
        step = self.generations * self.batch_size
        if self.pairs_per_agent % step:
            raise ValueError(
                f"pairs_per_agent={self.pairs_per_agent} is not a multiple of generations={self.generations} times the "
                f"batch size {self.batch_size}, so steps would be of different sizes; take "
                f"{max(1, round(self.pairs_per_agent / step)) * step}."
            )

    @property
    def budget(self) -> int:
        """Pairs that a method learns from in total, over all its agents."""
        return self.agents * self.pairs_per_agent

    @property
    def steps(self) -> int:
        """Optimizer steps of an agent in a generation."""
        return self.pairs_per_agent // self.generations // self.batch_size


@dataclass(frozen=True)
class Point:
    """The hyperparameters that are searched.

    Attributes:
        lr: Learning rate.
        beta: Strength of the pull towards the reference.
    """

    lr: float
    beta: float


@dataclass(frozen=True)
class Space:
    """The ranges around a start, the same for every method.

    Attributes:
        start: Where they begin.
        spread: Both hyperparameters lie between the start's over and times this factor.
        factor: A mutation multiplies or divides by it.
    """

    start: Point
    spread: float
    factor: float

    @classmethod
    def around(cls, start: str, good_lr: float, *, spread: float, factor: float) -> Self:
        """The space of a name in ``STARTS``.

        Args:
            start: The name.
            good_lr: The good start's learning rate.
            spread: As the attribute.
            factor: As the attribute.
        """
        lr, beta = STARTS[start]
        return cls(Point(good_lr * lr, BETA * beta), spread, factor)

    @property
    def lr(self) -> tuple[float, float]:
        """Smallest and largest learning rate."""
        return self.start.lr / self.spread, self.start.lr * self.spread

    @property
    def beta(self) -> tuple[float, float]:
        """Smallest and largest beta."""
        return self.start.beta / self.spread, self.start.beta * self.spread

    def draw(self, rng: np.random.Generator) -> Point:
        """A point, uniform in both logarithms."""
        lr, beta = (math.exp(rng.uniform(math.log(low), math.log(high))) for low, high in (self.lr, self.beta))
        return Point(lr, beta)

    def hp_config(self) -> HyperparameterConfig:
        """The ranges, for mutations."""
        step = {"shrink_factor": 1 / self.factor, "grow_factor": self.factor}
        return HyperparameterConfig(lr=RLParameter(*self.lr, **step), beta=RLParameter(*self.beta, **step))
