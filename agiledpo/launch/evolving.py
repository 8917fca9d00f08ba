"""The population's founders, and how it evolves."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from agiledpo.algorithms.core.domains import Choice, Domain, LogUniform, RLParameter
from agiledpo.algorithms.core.llm import LLMAlgorithm
from agiledpo.algorithms.core.registry import HyperparameterConfig
from agiledpo.hpo import MultiFrequencySelection, Mutations, Selection, TournamentSelection, TruncationSelection

SELECTIONS: Mapping[str, Callable[..., Selection]] = {
    "tournament": TournamentSelection,
    "truncation": TruncationSelection,
    "multi_frequency": MultiFrequencySelection,
}

_DOMAINS = (
    "{min: a, max: b} with shrink_factor and grow_factor if they shall not be 0.8 and 1.2, {log_uniform: [a, b]}, or "
    "{choice: [...]}"
)


@dataclass(frozen=True)
class Evolution:
    """How a population evolves.

    Attributes:
        selection: Who survives.
        mutation: How hyperparameters change; None if none does.
        evo_steps: Batches in a generation.
    """

    selection: Selection
    mutation: Mutations | None
    evo_steps: int


def make_evolution(settings: Mapping[str, Any] | None, size: int) -> Evolution | None:
    """What the section ``evolution`` asks for; None for nothing.

    Args:
        settings: The section.
        size: Agents in the population.

    Raises:
        ValueError: Something is out of range.
    """
    if settings is None:
        return None
    selection = dict(settings["selection"])
    strategy = SELECTIONS[selection.pop("strategy")]
    return Evolution(
        strategy(population_size=size, **selection),
        Mutations(**settings["mutation"]) if settings["hyperparameters"] else None,
        settings["evo_steps"],
    )


def hyperparameter_config(settings: Mapping[str, Any] | None) -> HyperparameterConfig | None:
    """Where the hyperparameters of ``evolution.hyperparameters`` may move; None if nothing evolves.

    Args:
        settings: The section ``evolution``.

    Raises:
        ValueError: A range is none.
    """
    if settings is None or not settings["hyperparameters"]:
        return None
    return HyperparameterConfig(**{name: _domain(name, given) for name, given in settings["hyperparameters"].items()})


def founders(sizes: Mapping[str, Any] | None, size: int, algorithm: type[LLMAlgorithm]) -> list[dict[str, Any]]:
    """The hyperparameters in which each founder differs.

    Args:
        sizes: By hyperparameter a value for each founder, or ``{min, max}`` for values spread evenly in logarithm.
        size: Number of founders.
        algorithm: Theirs.

    Raises:
        ValueError: There is no such hyperparameter, or not one value for each founder.
    """
    spread = {name: _spread(name, given, size, algorithm) for name, given in (sizes or {}).items()}
    return [{name: values[place] for name, values in spread.items()} for place in range(size)]


def _spread(name: str, given: Any, size: int, algorithm: type[LLMAlgorithm]) -> Sequence[Any]:
    where = f"population.founders.{name}"
    kind = algorithm.HYPERPARAMETERS.get(name)
    if kind is None:
        known = ", ".join(algorithm.HYPERPARAMETERS)
        raise ValueError(f"{where}: {name} is no hyperparameter of {algorithm.__name__}, which are {known}.")
    if isinstance(given, Mapping):
        if (
            given.keys() != {"min", "max"}
            or kind not in (int, float)
            or not all(_is_positive(v) for v in given.values())
        ):
            raise ValueError(f"{where}={dict(given)} must be {{min: a, max: b}}, two numbers above 0.")
        values = np.geomspace(given["min"], given["max"], size)
        return [round(value) if kind is int else float(value) for value in values]
    if not isinstance(given, list) or len(given) != size:
        raise ValueError(
            f"{where}={given!r} must be a list of {size} values, one for each agent of population.size={size}, or "
            "{min: a, max: b}, which spreads them."
        )
    return given


def _domain(name: str, given: Any) -> Domain:
    where = f"evolution.hyperparameters.{name}"
    try:
        domain = _made(given)
    except ValueError as error:
        raise ValueError(f"{where}={given!r}: {error}") from None
    if domain is None:
        raise ValueError(f"{where}={given!r} must be {_DOMAINS}; ends and factors are numbers.")
    return domain


def _made(given: Any) -> Domain | None:
    """The domain that a mapping describes; None if it describes none."""
    if isinstance(given, Mapping):
        if given.keys() == {"choice"} and isinstance(given["choice"], list):
            return Choice(*(tuple(option) if isinstance(option, list) else option for option in given["choice"]))
        if (
            given.keys() == {"log_uniform"}
            and isinstance(given["log_uniform"], list)
            and len(given["log_uniform"]) == 2
        ):
            low, high = given["log_uniform"]
            return LogUniform(low, high) if _is_number(low) and _is_number(high) else None
        if {"min", "max"} <= given.keys() <= {"min", "max", "shrink_factor", "grow_factor"}:
            return RLParameter(**given) if all(map(_is_number, given.values())) else None
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_positive(value: Any) -> bool:
    return _is_number(value) and bool(value > 0)
