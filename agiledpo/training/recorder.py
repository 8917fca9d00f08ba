"""The figures of a run, under names that its log and all trackers share."""

import math
import time
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from typing_extensions import override

from agiledpo.algorithms.core.llm import LLMAlgorithm
from agiledpo.surroundings import peak_memory_mb
from agiledpo.training.observer import Observer, Outline
from agiledpo.training.population import Population

Number = int | float


class Recorder(Observer):
    """Makes figures of what happens, one set for each batch of the environment, and hands them on.

    - ``train/agent_<i>/<metric>``: the mean over the optimizer steps that the agent made on the batch, of each figure
      of its ``learn``; ``train/agent_<i>/<hyperparameter>``: what is a number among its hyperparameters, and
      switches as 0 and 1. Of agents at home in other processes these come when processes hear of each other.
    - ``eval/agent_<i>/<metric>`` of the test split, with ``fitness`` and ``fitness_error``; ``eval/best_fitness`` and
      ``eval/mean_fitness`` over the agents that are well and whose fitness is a number.
    - ``validation-<name>_<metric>`` of the fittest agent, as NeMo RL names them.
    - ``final/fitness`` and ``final/fitness_error``, at the end.
    - ``train/global_step``: rows that each agent has been handed; ``train/generation``.
    - ``time/elapsed_seconds`` since the process began with the run; ``time/rows_per_second``, rows that each agent was
      handed since the batch before, by the seconds since then, evaluations included.
    - ``system/peak_memory_mb``, 10^6 bytes: the most that the process has held so far, of its GPU where it has one,
      otherwise resident.

    A step is a number of rows. Names and steps only grow, as trackers want it.
    """

    def __init__(self) -> None:
        self._steps: dict[int, list[Mapping[str, float]]] = defaultdict(list)
        # As they were when the agent learned: its place may be another's by the time that they are told.
        self._values: dict[int, dict[str, Number]] = {}
        self._generation = 0
        self._began = self._last = time.perf_counter()
        self._rows_done = 0
        self._device = torch.device("cpu")

    @abstractmethod
    def record(self, step: int, figures: Mapping[str, Number]) -> None:
        """Take the figures of a step. The same step may come several times, with other names.

        Args:
            step: Rows that each agent has been handed by then.
            figures: Finite numbers, or NaN and infinities where a metric is.
        """

    @override
    def begins(self, outline: Outline, agents: Sequence[LLMAlgorithm]) -> None:
        self._began = self._last = time.perf_counter()
        self._device = agents[0].device

    @override
    def resumed(self, rows_done: int) -> None:
        self._last, self._rows_done = time.perf_counter(), rows_done

    @override
    def learned(self, agent: LLMAlgorithm, metrics: Mapping[str, float]) -> None:
        self._steps[agent.index].append(metrics)
        self._values[agent.index] = {
            name: int(value) if isinstance(value, bool) else value
            for name, value in agent.hyperparameters.items()
            if isinstance(value, (int, float))
        }

    @override
    def advanced(self, rows_done: int) -> None:
        figures: dict[str, Number] = {
            "train/global_step": rows_done,
            "train/generation": self._generation,
            **self._lessons(),
        }
        now = time.perf_counter()
        figures["time/elapsed_seconds"] = now - self._began
        figures["time/rows_per_second"] = (rows_done - self._rows_done) / (now - self._last)
        figures["system/peak_memory_mb"] = peak_memory_mb(self._device)
        self._last, self._rows_done = now, rows_done
        self.record(rows_done, figures)

    @override
    def evaluated(self, population: Population[Any], rows_done: int) -> None:
        self._tell_late_lessons()
        figures: dict[str, Number] = {}
        fitness = []
        for agent in population.well:
            place = f"eval/agent_{agent.index}"
            figures |= {f"{place}/{name}": value for name, value in agent.held_out.items()}
            figures |= {f"{place}/fitness": agent.fitness[-1], f"{place}/fitness_error": agent.fitness_errors[-1]}
            fitness.append(agent.fitness[-1])
        if fitness:
            known = [value for value in fitness if not math.isnan(value)] or [math.nan]
            figures |= {"eval/best_fitness": max(known), "eval/mean_fitness": sum(known) / len(known)}
        self.record(rows_done, {**figures, **population.validation})

    @override
    def evolved(self, generation: int, population: Population[Any], rows_done: int) -> None:
        self._generation = generation

    @override
    def ended(self, population: Population[Any], rows_done: int) -> None:
        if population.final is not None:
            final = population.final
            self.record(rows_done, {"final/fitness": final.value, "final/fitness_error": final.error})

    @override
    def state_dict(self) -> dict[str, Any]:
        self._tell_late_lessons()
        return {"generation": self._generation}

    @override
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._generation = state.get("generation", 0)

    def _tell_late_lessons(self) -> None:
        """Of agents at home in other processes it is told after the batch, when processes hear of each other."""
        if lessons := self._lessons():
            self.record(self._rows_done, lessons)

    def _lessons(self) -> dict[str, Number]:
        """What agents have learned since this was asked last, with their hyperparameters."""
        figures: dict[str, Number] = {}
        for index, steps in sorted(self._steps.items()):
            figures |= {f"train/agent_{index}/{name}": value for name, value in means_of_steps(steps)}
            figures |= {f"train/agent_{index}/{name}": value for name, value in self._values[index].items()}
        self._steps.clear()
        self._values.clear()
        return figures


def means_of_steps(steps: Sequence[Mapping[str, float]]) -> Iterator[tuple[str, float]]:
    """The mean of each metric over the steps that have it; a metric that is not a number there does not count."""
    for name in dict.fromkeys(name for step in steps for name in step):
        values = [step[name] for step in steps if name in step and not math.isnan(step[name])]
        yield name, sum(values) / len(values) if values else math.nan
