"""The agents that a training loop returns, with their history."""

from collections.abc import Iterable
from typing import Generic, TypeVar

from agiledpo.algorithms.core.llm import LLMAlgorithm
from agiledpo.algorithms.core.measured import Estimate
from agiledpo.hpo.lineage import Lineage

Agent = TypeVar("Agent", bound=LLMAlgorithm)


class Population(list[Agent], Generic[Agent]):
    """A list of agents that knows where they come from.

    Args:
        agents: The agents.
        lineage: What has happened to them and to those before them.

    Attributes:
        lineage: As given.
        elite: The fittest agent of the last evaluation; None before the first.
        final: The elite's figure on the environment's final split, which no selection ever saw: preference accuracy
            for DPO, in general the algorithm's default fitness; None before the end of the run, or without such a
            split.
        validation: Latest figures of the fittest agent on the validation sets, ``validation-<name>_loss``,
            ``validation-<name>_accuracy`` and others, and ``timing/validation/total_validation_time`` in seconds; empty
            before the first evaluation, without such sets, or where nobody was fit.
    """

    def __init__(self, agents: Iterable[Agent], lineage: Lineage) -> None:
        super().__init__(agents)
        self.lineage = lineage
        self.elite: Agent | None = None
        self.final: Estimate | None = None
        self.validation: dict[str, float] = {}

    @property
    def well(self) -> list[Agent]:
        """The agents that have not diverged."""
        return [agent for agent in self if agent.diverged is None]
