"""The agents that a training loop returns, with their history."""

from collections.abc import Iterable

from agiledpo.algorithms import DPO
from agiledpo.algorithms.fitness import Estimate
from agiledpo.hpo.lineage import Lineage


class Population(list[DPO]):
    """A list of agents that knows where they come from.

    Args:
        agents: The agents.
        lineage: What has happened to them and to those before them.

    Attributes:
        lineage: As given.
        elite: The fittest agent of the last evaluation; None before the first.
        final: The elite's preference accuracy on the environment's final split, which no selection ever saw; None
            before the end of the run, or without such a split.
    """

    def __init__(self, agents: Iterable[DPO], lineage: Lineage) -> None:
        super().__init__(agents)
        self.lineage = lineage
        self.elite: DPO | None = None
        self.final: Estimate | None = None

    @property
    def well(self) -> list[DPO]:
        """The agents that have not diverged."""
        return [agent for agent in self if agent.diverged is None]
