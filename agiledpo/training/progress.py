"""What a run shows while it goes on."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

from tqdm.auto import tqdm

from agiledpo.algorithms.core.llm import LLMAlgorithm
from agiledpo.llm_envs.validation import validation_split
from agiledpo.training.population import Population


class TrainingProgress:
    """A progress bar over rows with the latest metrics and the estimated time left.

    Args:
        total: Rows that each agent will learn from.
        unit: What a row is called.
        shown: For each figure beside the bar, the metric that it is the mean of over the agents, and its format.
        visible: Show it.
    """

    def __init__(self, total: int, *, unit: str, shown: Mapping[str, tuple[str, str]], visible: bool) -> None:
        self._bar = tqdm(total=total, unit=unit, disable=not visible, dynamic_ncols=True)
        self._shown = shown
        self._latest: dict[int, dict[str, float]] = {}
        self._held_out: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        if not self._bar.disable:
            self._bar.write(text)

    def advance(self, rows: int) -> None:
        """Count rows and redraw."""
        self._bar.set_postfix_str(self._summary(), refresh=False)
        self._bar.update(rows)

    def resumed(self, rows: int) -> None:
        """Begin where an earlier process stopped, so that its rows do not count for the speed."""
        self._bar.initial = rows
        self._bar.n = rows
        self._bar.refresh()

    def learned(self, index: int, metrics: dict[str, float]) -> None:
        """Note the metrics of an agent's last step; means over the agents are shown."""
        self._latest[index] = metrics

    def evaluated(self, population: Population[Any], validation_names: Sequence[str] = ()) -> None:
        """Show the best held-out fitness, and that agent's loss and accuracy on each validation set.

        Args:
            population: The agents.
            validation_names: Names of the validation sets.
        """
        if population.elite is not None:
            self._held_out = {"held-out": f"{population.elite.fitness[-1]:.3f}"}
            for split, loss, accuracy in _validation(population, validation_names):
                self._held_out[split] = f"{loss:.4f} ({accuracy:.2f})"
        self._bar.set_postfix_str(self._summary())

    def say_validation(self, population: Population[Any], validation_names: Sequence[str]) -> None:
        """Print the loss and accuracy of the fittest agent on each validation set, a line for each."""
        for split, loss, accuracy in _validation(population, validation_names):
            self.say(f"{split}: loss {loss:.4f}, accuracy {accuracy:.3f}")

    def evolved(self, generation: int, population: Population[Any]) -> None:
        """Say what the next generation is made of."""
        living = {agent.index for agent in population}
        self._latest = {index: metrics for index, metrics in self._latest.items() if index in living}
        self.say(f"generation {generation}: " + "; ".join(_describe(agent) for agent in population))

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
