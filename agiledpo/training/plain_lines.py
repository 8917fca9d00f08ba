"""What a run prints where no terminal is: a line now and then, each of which can be read by itself."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TextIO

from typing_extensions import override

from agiledpo.algorithms.core.llm import LLMAlgorithm
from agiledpo.llm_envs.validation import validation_split
from agiledpo.training.observer import Observer, Outline
from agiledpo.training.pace import Pace, clock_face
from agiledpo.training.population import Population
from agiledpo.training.printable import printable
from agiledpo.training.standings import Standing, Standings, by_rank, of_interest, value_text

_MOST_AGENTS = 8


class PlainLines(Observer):
    """A line for each evaluation, generation and whatever else happens, and between them one now and then.

    Args:
        stream: Where to; None for standard output as it is by then.
        interval: Seconds of training between two lines.
        clock: Seconds that only grow.
    """

    def __init__(
        self, stream: TextIO | None = None, *, interval: float = 10.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream = stream
        self._interval = interval
        self._clock = clock
        self._pace = Pace(0, clock)
        self._outline: Outline
        self._standings: Standings
        self._held_out: dict[str, str] = {}
        self._next = 0.0

    @override
    def begins(self, outline: Outline, agents: Sequence[LLMAlgorithm]) -> None:
        self._outline = outline
        self._pace = Pace(outline.total_rows, self._clock)
        self._standings = Standings(outline, agents)
        self._next = self._clock()  # the first batch is told, so that one sees the run moving

    @override
    def resumed(self, rows_done: int) -> None:
        self._pace.resumed(rows_done)

    @override
    def said(self, text: str) -> None:
        stream = sys.stdout if self._stream is None else self._stream
        print(printable(text, stream.encoding or "utf-8"), file=stream, flush=True)

    @override
    def learned(self, agent: LLMAlgorithm, metrics: Mapping[str, float]) -> None:
        self._standings.learned(agent, metrics)

    @override
    def advanced(self, rows_done: int) -> None:
        self._pace.advanced(rows_done)
        self._standings.advanced()
        if self._clock() >= self._next:
            self._tell()

    @override
    def evaluated(self, population: Population[Any], rows_done: int) -> None:
        self._standings.evaluated(population)
        standings = self._standings.now()
        elite = next((standing for standing in standings if standing.is_elite), None)
        self._held_out = {} if elite is None else {_held_out_label(self._outline.fitness): str(elite.fitness)}
        for split, loss, accuracy in validation_lines(population, self._outline.validation_names):
            self._held_out[split] = f"{loss:.4f} ({accuracy:.2f})"
        self._tell(_comparison(standings) if len(standings) > 1 else "")

    @override
    def evolved(self, generation: int, population: Population[Any], rows_done: int) -> None:
        self._standings.evolved(population)
        self.said(f"{self._place()}: {describe(generation, population)}")

    @override
    def ended(self, population: Population[Any], rows_done: int) -> None:
        for split, loss, accuracy in validation_lines(population, self._outline.validation_names):
            self.said(f"{split}: loss {loss:.4f}, accuracy {accuracy:.3f}")

    def _tell(self, more: str = "") -> None:
        pace, figures = self._pace, self._figures()
        # Until somebody has learned, rows were only handed out.
        rate = "" if pace.rate is None or not figures else f"{pace.rate:.3g} {self._outline.unit}s/s, "
        times = f"{rate}{clock_face(pace.elapsed)} elapsed, {clock_face(pace.remaining)} left"
        agents = len(self._standings.now())
        whose = f", mean of {agents} agents" if agents > 1 else ""
        where = f"{self._place()}{whose}: {figures}" if figures else self._place()
        self.said("; ".join(filter(None, (where, more, times))))
        self._next = self._clock() + self._interval

    def _place(self) -> str:
        return f"{self._pace.done}/{self._pace.total} {self._outline.unit}s ({self._pace.share:.0%})"

    def _figures(self) -> str:
        """Means over the agents that have learned and are well, then how the fittest did on held-out rows."""
        learned = [s.figures for s in self._standings.now() if s.figures and not s.has_diverged]
        shown = dict(self._held_out)
        for label, (_, form) in reversed(list(self._outline.shown.items())):
            values = [figures[label] for figures in learned if label in figures]
            if values:
                shown = {label: format(sum(values) / len(values), form), **shown}
        return ", ".join(f"{name}={value}" for name, value in shown.items())


def validation_lines(population: Population[Any], names: Sequence[str]) -> Iterator[tuple[str, float, float]]:
    """Split, loss and accuracy for each validation set that has been measured.

    Args:
        population: With its last figures.
        names: Of the validation sets.
    """
    figures = population.validation
    for split in map(validation_split, names):
        if f"{split}_loss" in figures:
            yield split, figures[f"{split}_loss"], figures[f"{split}_accuracy"]


def _held_out_label(fitness: str) -> str:
    """What the fitness of the elite is called: a loss is compared with its sign turned, so that more is better."""
    return f"held-out {({'loss': '-loss', 'a function': 'fitness'}).get(fitness, fitness)}".rstrip()


def describe(generation: int, population: Population[Any]) -> str:
    """A generation in a line: who descends from whom, with which hyperparameters."""
    agents, more = list(population), ""
    if len(agents) > _MOST_AGENTS:
        more = f"; and {len(agents) - _MOST_AGENTS} more"
        agents = agents[:_MOST_AGENTS]
    return f"generation {generation}: " + "; ".join(map(_describe, agents)) + more


def _describe(agent: LLMAlgorithm) -> str:
    origin = "" if agent.parent is None else f" from {agent.parent}"
    evolving = () if agent.hp_config is None else agent.hp_config
    values = ", ".join(f"{name}={value_text(value)}" for name, value in of_interest(agent).items() if name in evolving)
    return f"agent {agent.index}{origin} ({values})" if values else f"agent {agent.index}{origin}"


def _comparison(standings: Sequence[Standing]) -> str:
    """What each agent was measured at; of many, the best and the worst."""

    def text(standing: Standing) -> str:
        what = "diverged" if standing.has_diverged else "-" if standing.fitness is None else str(standing.fitness)
        return f"agent {standing.index}{'*' if standing.is_elite else ''} {what}"

    ranked = by_rank(standings)
    if len(ranked) <= _MOST_AGENTS:
        return ", ".join(map(text, ranked))
    between = len(ranked) - _MOST_AGENTS + 1
    return ", ".join([*map(text, ranked[: _MOST_AGENTS - 3]), f"{between} between", *map(text, ranked[-2:])])
