"""Where a hyperparameter may move, and how a mutation moves it.

A domain holds no value and no state, so agents can share it. Whether values are whole numbers follows from the type of
the hyperparameter, which is handed in as ``kind``.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np


class Domain(ABC):
    """The values that one hyperparameter may take."""

    @abstractmethod
    def check(self, name: str, value: Any, kind: type) -> None:
        """Check that the hyperparameter can live here and starts inside.

        Args:
            name: The hyperparameter.
            value: Its present value.
            kind: Its type.

        Raises:
            ValueError: It cannot, or does not; parameter and value are named, with the way out.
        """

    @abstractmethod
    def ends(self, kind: type) -> tuple[Any, ...]:
        """Values that stand for all others when combinations of hyperparameters are tried.

        Args:
            kind: Type of the hyperparameter.
        """

    @abstractmethod
    def mutate(self, value: Any, rng: np.random.Generator, kind: type) -> Any:
        """Draw another value.

        Args:
            value: The present value; one outside the domain, set by hand, comes back into it.
            rng: Source of all that is random.
            kind: Type of the hyperparameter, which is the type of the result.
        """


@dataclass(frozen=True)
class RLParameter(Domain):
    """A number that shrinks or grows by a factor, with equal probability, and is clipped to a range.

    A whole number moves by at least 1. At a border half of the draws would leave the range and change nothing, as in
    AgileRL and PBT (Jaderberg et al. 2017, https://arxiv.org/abs/1711.09846).

    Args:
        min: Smallest value.
        max: Largest value.
        shrink_factor: Factor of a step down, in (0, 1).
        grow_factor: Factor of a step up, above 1.
        dtype: ``float`` or ``int``. A hyperparameter of whole numbers stays whole with either; ``int`` says that it is
            one, and is refused for others.

    Raises:
        ValueError: The range is empty or infinite, a factor would not move the value, or ``dtype`` is another type.
    """

    min: float
    max: float
    shrink_factor: float = 0.8
    grow_factor: float = 1.2
    dtype: type[float] | type[int] = float

    def __post_init__(self) -> None:
        _check_range(self, self.min, self.max)
        if not 0 < self.shrink_factor < 1 < self.grow_factor < math.inf:
            raise ValueError(
                "RLParameter needs 0 < shrink_factor < 1 < grow_factor; "
                f"got shrink_factor={self.shrink_factor}, grow_factor={self.grow_factor}."
            )
        if self.dtype not in (float, int):
            raise ValueError(f"RLParameter(dtype={self.dtype!r}): numbers are float or int.")

    def check(self, name: str, value: Any, kind: type) -> None:
        """As :meth:`Domain.check`; 0 is refused for a float, which no factor moves."""
        _check_number(self, name, value, kind, self.min, self.max)
        if self.dtype is int and kind is not int:
            raise ValueError(
                f"{name}=RLParameter(dtype=int) would keep whole numbers only, but {name} is a {kind.__name__}. "
                "Leave dtype out."
            )
        if kind is float and value == 0:
            raise ValueError(
                f"{name}={value} would stay 0 for ever: RLParameter multiplies. Start above 0, or list the values: "
                f"{name}=Choice(0.0, ...)."
            )

    def ends(self, kind: type) -> tuple[Any, ...]:
        """As :meth:`Domain.ends`."""
        return _ends(self.min, self.max, kind)

    def mutate(self, value: Any, rng: np.random.Generator, kind: type) -> Any:
        """As :meth:`Domain.mutate`: the value shrunk or grown, clipped to the range."""
        grow = rng.random() < 0.5
        moved = value * (self.grow_factor if grow else self.shrink_factor)
        if kind is int:
            away_from_zero = 1 if value >= 0 else -1
            step = max(1, abs(round(moved) - value))
            moved = value + (step if grow else -step) * away_from_zero
        return kind(min(max(moved, self.min), self.max))


@dataclass(frozen=True)
class LogUniform(Domain):
    """A number that is drawn anew, uniformly in its logarithm.

    Of whole numbers, n has a probability proportional to ``log((n + 1/2) / (n - 1/2))``, and the present one is not
    drawn again.

    Args:
        min: Smallest value, above 0.
        max: Largest value.

    Raises:
        ValueError: The range is empty, infinite, or not above 0.
    """

    min: float
    max: float

    def __post_init__(self) -> None:
        _check_range(self, self.min, self.max)
        if self.min <= 0:
            raise ValueError(f"LogUniform needs min > 0, since 0 has no logarithm; got min={self.min}.")

    def check(self, name: str, value: Any, kind: type) -> None:
        """As :meth:`Domain.check`."""
        _check_number(self, name, value, kind, self.min, self.max)

    def ends(self, kind: type) -> tuple[Any, ...]:
        """As :meth:`Domain.ends`."""
        return _ends(self.min, self.max, kind)

    def mutate(self, value: Any, rng: np.random.Generator, kind: type) -> Any:
        """As :meth:`Domain.mutate`."""
        if kind is not int:
            return self._draw(rng, 0.0)
        drawn = value
        while drawn == value:  # there is another one, since min < max
            drawn = round(self._draw(rng, 0.5))
            drawn = min(max(drawn, int(self.min)), int(self.max))
        return drawn

    def _draw(self, rng: np.random.Generator, margin: float) -> float:
        low, high = self.min - margin, self.max + margin
        return float(min(max(math.exp(rng.uniform(math.log(low), math.log(high))), low), high))


@dataclass(frozen=True, init=False)
class Choice(Domain):
    """A hyperparameter that takes one of several values; a mutation draws another one, each with equal probability.

    Args:
        *options: At least two. For ``loss_type`` an option is a name or a tuple of names. None stands for itself, where
            the hyperparameter allows it.

    Raises:
        ValueError: There is nothing to choose.
    """

    options: tuple[Any, ...]

    def __init__(self, *options: Any) -> None:
        if len(options) < 2:
            raise ValueError(f"{type(self).__name__}{options!r} leaves nothing to choose; list at least two options.")
        object.__setattr__(self, "options", options)

    def __repr__(self) -> str:
        return f"Choice({', '.join(map(repr, self.options))})"

    def check(self, name: str, value: Any, kind: type) -> None:
        """As :meth:`Domain.check`."""
        for option in self.options:
            if not _is(option, kind):
                raise ValueError(f"{name}={self} has the option {option!r}, but {name} is a {kind.__name__}.")
        options = self.ends(kind)
        for number, option in enumerate(options):
            if option in options[:number]:
                raise ValueError(f"{name}={self} lists {self.options[number]!r} twice.")
        if value not in options:
            raise ValueError(
                f"{name}={value!r} is not among the options of hp_config, {self}. Add it or start with one."
            )

    def ends(self, kind: type) -> tuple[Any, ...]:
        """All options, in the type of the hyperparameter."""
        return tuple(_as(option, kind) for option in self.options)

    def mutate(self, value: Any, rng: np.random.Generator, kind: type) -> Any:
        """As :meth:`Domain.mutate`."""
        others = [option for option in self.ends(kind) if option != value]
        return others[rng.integers(len(others))]


def _check_range(domain: Domain, low: float, high: float) -> None:
    if not -math.inf < low < high < math.inf:
        raise ValueError(f"{type(domain).__name__} needs min < max, both finite; got min={low}, max={high}.")


def _check_number(domain: Domain, name: str, value: Any, kind: type, low: float, high: float) -> None:
    if kind not in (int, float) or value is None or not _is(value, float):
        raise ValueError(
            f"hp_config gives {name!r} a range, but its value {value!r} is not a number. List the values that it may "
            f"take: {name}=Choice(...)."
        )
    if kind is int and not (float(low).is_integer() and float(high).is_integer()):
        raise ValueError(f"{name}={domain}: {name} is a whole number, so min and max must be.")
    if not low <= value <= high:
        raise ValueError(
            f"{name}={value} is outside the range of hp_config, {low} to {high}. Widen the range or start inside it."
        )


def _ends(low: float, high: float, kind: type) -> tuple[Any, ...]:
    if kind is not int:
        return float(low), float(high)
    # Neighbours have no divisor but 1 in common: a setting that wants multiples shows itself at one of them.
    return tuple(dict.fromkeys((int(low), int(low) + 1, int(high))))


def _is(option: Any, kind: type) -> bool:
    """Whether an option can be written for a hyperparameter of that type."""
    if option is None:
        return True
    if kind is float:
        return isinstance(option, (int, float)) and not isinstance(option, bool)
    if kind is int:
        return isinstance(option, int) and not isinstance(option, bool)
    return isinstance(option, (str, tuple, list)) if kind is tuple else isinstance(option, kind)


def _as(option: Any, kind: type) -> Any:
    if option is None:
        return None
    return (option,) if kind is tuple and isinstance(option, str) else kind(option)
