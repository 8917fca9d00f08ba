"""What a run shows while it goes on."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tqdm.auto import tqdm
from typing_extensions import override

from agiledpo.algorithms.core.llm import LLMAlgorithm
from agiledpo.llm_envs.validation import validation_split
from agiledpo.training.observer import Observer, Outline
from agiledpo.training.population import Population


class TrainingProgress(Observer):
    """A progress bar over rows with the latest metrics and the estimated time left."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] = tqdm(disable=True)
        self._shown: Mapping[str, tuple[str, str]] = {}
        self._names: Sequence[str] = ()
        self._latest: dict[int, Mapping[str, float]] = {}
        self._held_out: dict[str, str] = {}

    @override
    def __exit__(self, *_: object) -> None:
        self._bar.close()

    @override
    def begins(self, outline: Outline, agents: Sequence[LLMAlgorithm]) -> None:
        self._bar = tqdm(total=outline.total_rows, unit=outline.unit, dynamic_ncols=True)
        self._shown, self._names = outline.shown, outline.validation_names

    @override
    def said(self, text: str) -> None:
        self._bar.write(text)

    @override
    def resumed(self, rows_done: int) -> None:
        # What an earlier process learned does not count for the speed.
        self._bar.initial = rows_done
        self._bar.n = rows_done
        self._bar.refresh()

    @override
    def learned(self, agent: LLMAlgorithm, metrics: Mapping[str, float]) -> None:
        self._latest[agent.index] = metrics

    @override
    def advanced(self, rows_done: int) -> None:
        self._bar.set_postfix_str(self._summary(), refresh=False)
        self._bar.update(rows_done - self._bar.n)

    @override
    def evaluated(self, population: Population[Any], rows_done: int) -> None:
        if population.elite is not None:
            self._held_out = {"held-out": f"{population.elite.fitness[-1]:.3f}"}
            for split, loss, accuracy in _validation(population, self._names):
                self._held_out[split] = f"{loss:.4f} ({accuracy:.2f})"
        self._bar.set_postfix_str(self._summary())

    @override
    def evolved(self, generation: int, population: Population[Any], rows_done: int) -> None:
        living = {agent.index for agent in population}
        self._latest = {index: metrics for index, metrics in self._latest.items() if index in living}
        self.said(f"generation {generation}: " + "; ".join(_describe(agent) for agent in population))

    @override
    def ended(self, population: Population[Any], rows_done: int) -> None:
        for split, loss, accuracy in _validation(population, self._names):
            self.said(f"{split}: loss {loss:.4f}, accuracy {accuracy:.3f}")

    def _summary(self) -> str:
        if not self._latest:
            return ""

        def mean(name: str) -> float:
            return sum(metrics[name] for metrics in self._latest.values()) / len(self._latest)

        shown = {label: format(mean(metric), form) for label, (metric, form) in self._shown.items()}
        shown |= self._held_out
        return ", ".join(f"{name}={value}" for name, value in shown.items())


def _validation(population: Population[Any], names: Sequence[str]) -> Iterator[tuple[str, float, float]]:
    """Split, loss and accuracy for each validation set that has been measured."""
    figures = population.validation
    for split in map(validation_split, names):
        if f"{split}_loss" in figures:
            yield split, figures[f"{split}_loss"], figures[f"{split}_accuracy"]


def _describe(agent: LLMAlgorithm) -> str:
    origin = "" if agent.parent is None else f" from {agent.parent}"
    values = ", ".join(
        f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in agent.hyperparameters.items()
        if agent.hp_config is not None and name in agent.hp_config
    )
    return f"agent {agent.index}{origin} ({values})" if values else f"agent {agent.index}{origin}"
