"""What an evaluation finds, whatever the algorithm learns from."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Estimate:
    """A mean over pairs.

    Attributes:
        value: The mean.
        error: Its standard error, s / sqrt(n) with s the standard deviation over the n pairs; NaN for one pair.
    """

    value: float
    error: float = math.nan

    @staticmethod
    def of(values: Tensor) -> "Estimate":
        """Estimate the mean of per-pair values, (pairs,)."""
        values = values.double()
        return Estimate(float(values.mean()), float(values.std() / math.sqrt(len(values))))

    def __str__(self) -> str:
        return f"{self.value:.3f}" if math.isnan(self.error) else f"{self.value:.3f} ± {self.error:.3f}"


class Measured(Protocol):
    """What an agent does with a held-out split, whatever it learns from."""

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics of the algorithm's ``learn``, over the whole split."""
        ...

    @property
    def tie_break(self) -> float:
        """Decides between agents of equal fitness, higher is better."""
        ...

    def fitness(self, name: str) -> Estimate:
        """One of the algorithm's measures, higher is better."""
        ...

    def __len__(self) -> int:
        """Rows of the split."""
        ...


def check_fitness_name(name: object, known: Sequence[str]) -> None:
    """Check the name of a fitness.

    Args:
        name: The name.
        known: Those that there are.

    Raises:
        ValueError: It is none of them.
    """
    if name not in known:
        raise ValueError(
            f"fitness={name!r}; use one of {', '.join(known)}, or a function of agent and environment that returns a "
            "number, higher is better."
        )
