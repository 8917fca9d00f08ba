"""One generation's end: the fittest survive, their copies explore."""

from collections.abc import Mapping
from typing import Any

from agiledpo.hpo.mutation import Mutations
from agiledpo.hpo.records import Born, Mutated, Selected
from agiledpo.hpo.selection import Selection
from agiledpo.training.population import Population


class Evolution:
    """Selection and mutation of a population.

    Args:
        selection: Who survives and who is copied.
        mutation: How hyperparameters change; None for selection only.

    Attributes:
        generation: Generations that have ended.
    """

    def __init__(self, selection: Selection, mutation: Mutations | None) -> None:
        self.selection = selection
        self.mutation = mutation
        self.generation = 0

    def evolve(self, population: Population[Any], pairs: int) -> None:
        """End a generation.

        Args:
            population: The evaluated agents; changed in place. A child takes the place of an agent that it replaces.
            pairs: Pairs that each agent has learned from, for the lineage.

        Raises:
            PopulationDivergedError: There is no agent to copy.
        """
        before = {agent.index for agent in population}
        places = {agent.index: place for place, agent in enumerate(population)}
        elite, selected = self.selection.select(population)
        # Survivors stay where they are, because an agent may have an environment of its own.
        vacant = iter([place for index, place in places.items() if index not in {agent.index for agent in selected}])
        for agent in selected:
            population[places[agent.index] if agent.index in places else next(vacant)] = agent
        self.generation += 1
        self._record_selection(population, before, elite.index, pairs)
        if self.mutation is not None:
            explorers = [
                agent
                for agent in population
                if agent.index in self.selection.explorers or (agent is elite and self.mutation.mutate_elite)
            ]
            for change in self.mutation.explore(explorers):
                population.lineage.record(
                    Mutated(
                        agent=change.agent,
                        generation=self.generation,
                        pairs=pairs,
                        parameter=change.parameter,
                        old=change.old,
                        new=change.new,
                    )
                )

    def _record_selection(self, population: Population[Any], before: set[int], elite: int, pairs: int) -> None:
        survivors = [agent.index for agent in population if agent.index in before]
        replaced = sorted(before.difference(survivors))
        population.lineage.record(
            Selected(generation=self.generation, pairs=pairs, elite=elite, survivors=survivors, replaced=replaced)
        )
        for agent in population:
            if agent.index not in before:
                population.lineage.record(
                    Born(
                        agent=agent.index,
                        parent=agent.parent,
                        generation=self.generation,
                        pairs=pairs,
                        hyperparameters=agent.hyperparameters,
                    )
                )

    def settings(self) -> dict[str, Any]:
        """Numbers that the strategies were made with, whatever strategies they are."""
        strategies = {"selection": self.selection, **({} if self.mutation is None else {"mutation": self.mutation})}
        return {
            f"{title}'s {name}": value
            for title, strategy in strategies.items()
            for name, value in vars(strategy).items()
            if not name.startswith("_") and isinstance(value, (bool, int, float, str))
        }

    def state_dict(self) -> dict[str, Any]:
        """What the next generations depend on; JSON can hold it."""
        return {
            "generation": self.generation,
            "selection": self.selection.state_dict(),
            "mutation": None if self.mutation is None else self.mutation.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken."""
        if (state["mutation"] is None) is not (self.mutation is None):
            raise ValueError("The state was taken with a mutation and this run has none, or the other way round.")
        self.generation = state["generation"]
        self.selection.load_state_dict(state["selection"])
        if self.mutation is not None:
            self.mutation.load_state_dict(state["mutation"])
