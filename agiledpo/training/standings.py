"""How the agents of a run stand, for those who show it."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agiledpo.algorithms.core.llm import LLMAlgorithm
from agiledpo.algorithms.core.measured import Estimate
from agiledpo.training.observer import Outline
from agiledpo.training.population import Population
from agiledpo.training.recorder import means_of_steps

_ALWAYS = ("beta", "lr")  # of the hyperparameters, also where none evolves


@dataclass(frozen=True)
class Standing:
    """An agent at one moment.

    Attributes:
        index: The agent's.
        figures: What it learned last: by label, the mean over its optimizer steps on the last batch.
        hyperparameters: Those that evolve, and beta and the learning rate.
        fitness: In the last evaluation; None where it was not measured yet, or was born since.
        is_elite: Whether it was the fittest then.
        has_diverged: Whether it was set aside.
    """

    index: int
    figures: Mapping[str, float]
    hyperparameters: Mapping[str, Any]
    fitness: Estimate | None = None
    is_elite: bool = False
    has_diverged: bool = False


class Standings:
    """Follows the agents of a run.

    Args:
        outline: Which figures are of interest.
        agents: The agents; the live ones.
    """

    def __init__(self, outline: Outline, agents: Sequence[LLMAlgorithm]) -> None:
        self._shown = outline.shown
        self._agents = agents
        self._steps: dict[int, list[Mapping[str, float]]] = defaultdict(list)
        self._figures: dict[int, dict[str, float]] = {}
        self._fitness: dict[int, Estimate] = {}
        self._elite: int | None = None

    def learned(self, agent: LLMAlgorithm, metrics: Mapping[str, float]) -> None:
        """An agent made an optimizer step."""
        self._steps[agent.index].append(metrics)

    def advanced(self) -> None:
        """All agents are through with a batch."""
        for index, steps in self._steps.items():
            means = dict(means_of_steps(steps))
            self._figures[index] = {
                label: means[metric] for label, (metric, _) in self._shown.items() if metric in means
            }
        self._steps.clear()

    def evaluated(self, population: Population[Any]) -> None:
        """The agents were measured."""
        self.advanced()  # of agents at home in other processes it is told only now
        self._fitness = {
            agent.index: Estimate(agent.fitness[-1], agent.fitness_errors[-1]) for agent in population.well
        }
        self._elite = None if population.elite is None else population.elite.index

    def evolved(self, population: Population[Any]) -> None:
        """Some agents have given way to others, who have neither learned nor been measured yet."""
        living = {agent.index for agent in population}
        self._figures = {index: figures for index, figures in self._figures.items() if index in living}
        self._fitness = {index: fitness for index, fitness in self._fitness.items() if index in living}
        self._elite = self._elite if self._elite in living else None

    def now(self) -> list[Standing]:
        """Every agent, in the population's order."""
        return [
            Standing(
                index=agent.index,
                figures=self._figures.get(agent.index, {}),
                hyperparameters=of_interest(agent),
                fitness=self._fitness.get(agent.index),
                is_elite=agent.index == self._elite,
                has_diverged=agent.diverged is not None,
            )
            for agent in self._agents
        ]


def of_interest(agent: LLMAlgorithm) -> dict[str, Any]:
    """An agent's beta and learning rate, and whatever else of it evolves."""
    evolving = () if agent.hp_config is None else tuple(agent.hp_config)
    values = agent.hyperparameters
    return {name: values[name] for name in dict.fromkeys((*_ALWAYS, *evolving)) if name in values}


def value_text(value: Any) -> str:
    """A hyperparameter in few characters."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def by_rank(standings: Sequence[Standing]) -> list[Standing]:
    """The elite first, then by fitness; who was not measured, or has diverged, comes last."""

    def key(standing: Standing) -> tuple[bool, bool, float]:
        value = math.nan if standing.fitness is None else standing.fitness.value
        unknown = math.isnan(value)
        return standing.has_diverged, not standing.is_elite, math.inf if unknown else -value

    return sorted(standings, key=key)
