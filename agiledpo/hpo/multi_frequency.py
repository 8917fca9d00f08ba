"""Multiple-frequencies population-based training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic

from agiledpo.algorithms.core.evolvable import EvolvableAlgorithm
from agiledpo.hpo.selection import AgentT, RankedSelection, elite_first, ranked
from agiledpo.losses.checks import check_whole_number


@dataclass(frozen=True)
class _Copy(Generic[AgentT]):
    """Who takes a place.

    Args:
        parent: What is copied.
        settings: Whose evolving hyperparameters the copy gets; None for the parent's.
        explores: Whether the copy is offered to mutation.
    """

    parent: AgentT
    settings: AgentT | None = None
    explores: bool = False


class MultiFrequencySelection(RankedSelection):
    """Subpopulations that evolve at different frequencies, and exchange agents.

    Doulazmi et al. 2025, "Multiple-Frequencies Population-Based Training" (arXiv 2506.03225). Frequent selection is
    greedy: it prefers what helps at once. So only the first subpopulation evolves often, and the others keep what pays
    in the long run. Where a subpopulation evolves, its agents are ranked and divided into quarters:

    * the first two go on;
    * each agent of the third, best first, is replaced by the best agent of the other subpopulations that has not
      migrated yet, if that is better. From a slower subpopulation the migrant comes as it is; from a faster one it
      brings its weights and takes the evolving hyperparameters of the best agent here, because hyperparameters that
      were chosen greedily are what the slower one is to be protected from;
    * the agents of the fourth are replaced by copies of those of the first, and only these copies explore.

    An agent that has diverged, or whose fitness is not finite, is replaced at once, also while its subpopulation rests.
    The rule draws nothing at random. The training loop mutates the agents in ``explorers``; a loop of one's own calls
    ``mutation.explore`` with them.

    Args:
        population_size: Number of agents; a multiple of four for each subpopulation.
        evolution_frequency_ratios: For each subpopulation the number of selections from one of its evolutions to the
            next, increasing.
        eval_loop: Number of each agent's last fitnesses that are averaged.

    Raises:
        ValueError: A number is not whole, the ratios do not increase, or the population cannot be divided.
    """

    def __init__(
        self, population_size: int, evolution_frequency_ratios: Sequence[int] = (1, 5), eval_loop: int = 1
    ) -> None:
        super().__init__(population_size, eval_loop)
        ratios = tuple(evolution_frequency_ratios)
        for ratio in ratios:
            check_whole_number("evolution_frequency_ratios", ratio)
        if len(ratios) < 2 or sorted(set(ratios)) != list(ratios):
            raise ValueError(f"evolution_frequency_ratios={ratios} must be two or more increasing numbers.")
        if population_size % (4 * len(ratios)):
            raise ValueError(
                f"population_size={population_size} does not divide into {len(ratios)} subpopulations of four equal "
                f"parts; make it a multiple of {4 * len(ratios)}."
            )
        self.evolution_frequency_ratios = ratios
        self._calls = 0
        self._members: list[list[int]] = []

    def check(self, population: Sequence[EvolvableAlgorithm]) -> None:
        """Check, before training, that the population can be selected from.

        Args:
            population: The agents.

        Raises:
            ValueError: Two agents have the same index, or there are not ``population_size``, or they are not those of
                the last new population.
        """
        super().check(population)
        if len(population) != self.population_size:
            raise ValueError(f"The population has {len(population)} agents; population_size={self.population_size}.")
        strangers = {agent.index for agent in population}.difference(*self._members)
        if self._members and strangers:
            raise ValueError(
                f"Agents {sorted(strangers)} belong to no subpopulation. Pass the population that the last selection "
                "returned, or make a new MultiFrequencySelection."
            )

    def select(self, population: Sequence[AgentT]) -> tuple[AgentT, list[AgentT]]:
        """Return the best agent and the new population, whose first agent it is.

        Args:
            population: Agents that have been evaluated; the list itself stays as it is. At the first call the order
                decides about the subpopulations.

        Returns:
            The best agent, and a list of it, the other agents that go on in their order, and the copies by index.

        Raises:
            ValueError: An agent has not been evaluated, or the agents are not those of the last new population.
            PopulationDivergedError: Every agent has diverged or has a fitness that is not finite.
        """
        self.check(population)
        well, ill = ranked(population, self.eval_loop)
        if not self._members:
            size = self.population_size // len(self.evolution_frequency_ratios)
            indices = [agent.index for agent in population]
            self._members = [indices[start : start + size] for start in range(0, len(indices), size)]
        self._calls += 1
        copies = self._copies(well, ill)
        survivors = [agent for agent in population if agent.index not in copies]
        index = self._unused_index(population)
        taken: dict[int, AgentT] = {}
        explorers = []
        # Whoever is copied stays: migrants are the best of all others, hence in the first quarter where they are.
        for loser in population:
            if loser.index not in copies:
                continue
            copy, place = copies[loser.index], loser.index
            child = loser.replaced_by(copy.parent, index)
            if copy.settings is not None:
                _take_settings(child, copy.settings)
            if copy.explores:
                explorers.append(index)
            taken[place] = child
            index += 1
        self._members = [[taken[i].index if i in taken else i for i in members] for members in self._members]
        new = elite_first(well[0], [*survivors, *taken.values()])
        self._unused_index(new)
        self.explorers = tuple(explorers)
        return well[0], new

    def state_dict(self) -> dict[str, Any]:
        """Everything that later selections depend on, as JSON can hold it."""
        return {**super().state_dict(), "calls": self._calls, "members": [list(members) for members in self._members]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken.

        Args:
            state: The state.

        Raises:
            ValueError: It is of another strategy.
        """
        super().load_state_dict(state)
        self._calls = state["calls"]
        self._members = [list(members) for members in state["members"]]

    def _copies(self, well: list[AgentT], ill: list[AgentT]) -> dict[int, _Copy[AgentT]]:
        """Who is replaced, by index."""
        copies: dict[int, _Copy[AgentT]] = {}
        for number, members in enumerate(self._members):
            local = [agent for agent in well if agent.index in members]
            sick = [agent for agent in ill if agent.index in members]
            if self._calls % self.evolution_frequency_ratios[number] == 0:
                copies.update(self._migrants(number, local, sick, well))
                copies.update(_losers(local, sick, well))
            best = local[0] if local else well[0]
            copies.update({agent.index: _Copy(best, explores=True) for agent in sick if agent.index not in copies})
        return copies

    def _migrants(
        self, number: int, local: list[AgentT], sick: list[AgentT], well: list[AgentT]
    ) -> dict[int, _Copy[AgentT]]:
        standing = {agent.index: place for place, agent in enumerate(well)}
        quarter = len(self._members[number]) // 4
        outside = iter([agent for agent in well if agent not in local])
        migrant = next(outside, None)
        copies: dict[int, _Copy[AgentT]] = {}
        for agent in [*local, *sick][2 * quarter : 3 * quarter]:
            if migrant is None or standing[migrant.index] > standing.get(agent.index, len(well)):
                continue  # A worse agent follows, and the migrant may be better than that.
            faster = not any(migrant.index in members for members in self._members[number:])
            copies[agent.index] = _Copy(migrant, settings=local[0] if faster and local else None)
            migrant = next(outside, None)
        return copies


def _losers(local: list[AgentT], sick: list[AgentT], well: list[AgentT]) -> dict[int, _Copy[AgentT]]:
    order = [*local, *sick]
    quarter = len(order) // 4
    winners = local[:quarter] or well[:1]
    return {
        agent.index: _Copy(winners[place % len(winners)], explores=True) for place, agent in enumerate(order[-quarter:])
    }


def _take_settings(child: AgentT, source: AgentT) -> None:
    child.hp_config = source.hp_config
    for name in source.hp_config or ():
        setattr(child, name, source.hyperparameters[name])
    child.follow_hyperparameters()
    child.mutation_hook()
