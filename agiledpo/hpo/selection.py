"""Which agents go on, and which give their place to copies of others: what all strategies of selection share."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

import numpy as np

from agiledpo.algorithms.core.errors import PopulationDivergedError
from agiledpo.algorithms.core.evolvable import EvolvableAlgorithm
from agiledpo.losses.checks import check_whole_number

AgentT = TypeVar("AgentT", bound=EvolvableAlgorithm)


class Selection(Protocol):
    """A strategy of selection.

    Attributes:
        population_size: Number of agents in each new population.
        eval_loop: Number of each agent's last fitnesses that are averaged.
        explorers: Indices of the agents of the last new population that are offered to mutation; never the elite's.
    """

    population_size: int
    eval_loop: int
    explorers: tuple[int, ...]

    def check(self, population: Sequence[EvolvableAlgorithm]) -> None:
        """Check, before training, that the population can be selected from.

        Args:
            population: The agents.

        Raises:
            ValueError: It cannot.
        """
        ...

    def select(self, population: Sequence[AgentT]) -> tuple[AgentT, list[AgentT]]:
        """Return the best agent and the new population, whose first agent it is.

        Args:
            population: Agents that have been evaluated; the list itself stays as it is.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything that later selections depend on, as JSON can hold it."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken.

        Args:
            state: The state.
        """
        ...


# Ranking ------------------------------------------------------------------------------------------------------------


class Rank(NamedTuple):
    """A sort key of which the greatest is that of the best agent.

    Attributes:
        fit: Whether the agent may have children: it has not diverged, and its fitness is finite.
        fitness: Mean of its last fitnesses.
        tie_break: Decides between equal fitness.
        age: The index, negative, so that of equal agents the older one is better.
    """

    fit: bool
    fitness: float
    tie_break: float
    age: int


def rank(agent: EvolvableAlgorithm, eval_loop: int = 1) -> Rank:
    """Return a sort key of which the greatest is that of the best agent.

    The mean of the last fitnesses decides, then the tie-break, then the lower index. An agent that has diverged, or
    whose mean is NaN or infinite, comes after all others, whatever its numbers are.

    Args:
        agent: The agent.
        eval_loop: Number of its last fitnesses that count.

    Raises:
        ValueError: The agent has not been evaluated.
    """
    if agent.diverged is None and not agent.fitness:
        raise ValueError(
            f"Agent {agent.index} has no fitness yet. Evaluate every agent (agent.test(env)) before selection."
        )
    fitness = _mean(agent.fitness[-eval_loop:])
    if agent.diverged is not None or not math.isfinite(fitness):
        return Rank(False, -math.inf, -math.inf, -agent.index)
    # NaN compares false with everything, which would make the order depend on where the agent stands.
    tie_break = -math.inf if math.isnan(agent.tie_break) else agent.tie_break
    return Rank(True, fitness, tie_break, -agent.index)


def check_indices(population: Sequence[EvolvableAlgorithm]) -> None:
    """Require at least one agent, and an index of its own for each.

    Args:
        population: The agents.

    Raises:
        ValueError: There is none, or two have the same.
    """
    if not population:
        raise ValueError("The population is empty; selection needs at least one agent.")
    indices = [agent.index for agent in population]
    if len(set(indices)) < len(indices):
        raise ValueError(f"Agents share an index: {indices}. Give each its own, DPO(..., index=...).")


def ranked(population: Sequence[AgentT], eval_loop: int) -> tuple[list[AgentT], list[AgentT]]:
    """Order a population, best agent first.

    Args:
        population: The agents.
        eval_loop: Number of last fitnesses that count.

    Returns:
        The agents that may have children, and those that have diverged or whose fitness is not finite.

    Raises:
        ValueError: There is no agent, two have the same index, or one has not been evaluated.
        PopulationDivergedError: No agent may have children.
    """
    check_indices(population)
    ranks = {agent.index: rank(agent, eval_loop) for agent in population}
    order = sorted(population, key=lambda agent: ranks[agent.index], reverse=True)
    well = [agent for agent in order if ranks[agent.index].fit]
    if not well:
        reasons = "; ".join(
            f"agent {agent.index}: {agent.diverged or f'fitness {_mean(agent.fitness[-eval_loop:])}'}"
            for agent in order
        )
        raise PopulationDivergedError(
            f"No agent is left to copy, all have diverged or have a fitness that is not finite ({reasons}). "
            "Go back to the last checkpoint, with lower learning rates."
        )
    return well, order[len(well) :]


def _mean(values: Sequence[float]) -> float:
    return float(sum(values)) / len(values) if values else math.nan


# Places -------------------------------------------------------------------------------------------------------------


def arrange(population: Sequence[AgentT], parents: Sequence[AgentT], first_index: int) -> list[AgentT]:
    """Make a new population of chosen agents.

    An agent that was chosen stays as it is; being chosen again gives it a child. Children take the places of agents
    that were not chosen, in place where both are built alike, so that memory does not grow. Places that are left over
    are cleaned up; children that are left over are cloned. What is copied from is never overwritten.

    Args:
        population: The present agents.
        parents: The choice, with repetitions, as many as the new population is to have.
        first_index: Index of the first child; the others count up from it.

    Returns:
        The chosen agents in the order of ``population``, then the children by index.
    """
    chosen: set[int] = set()
    copied: list[AgentT] = []
    for parent in parents:
        if parent.index in chosen:
            copied.append(parent)
        chosen.add(parent.index)
    losers = [agent for agent in population if agent.index not in chosen]
    survivors = [agent for agent in population if agent.index in chosen]
    # Before anything is cloned, so that the old and the new are never in memory together.
    for surplus in losers[len(copied) :]:
        surplus.clean_up()
    children = []
    for number, parent in enumerate(copied):
        if number < len(losers):
            child = losers[number].replaced_by(parent, first_index + number)
        else:
            child = parent.child(first_index + number)
        children.append(child)
    return [*survivors, *children]


def elite_first(elite: AgentT, agents: Sequence[AgentT]) -> list[AgentT]:
    """Return the agents with the elite in front, the others in their order.

    Args:
        elite: One of the agents.
        agents: The agents.
    """
    return [elite, *(agent for agent in agents if agent is not elite)]


# Strategies ---------------------------------------------------------------------------------------------------------


class RankedSelection(ABC):
    """A strategy that looks at nothing but the agents' ranks.

    Args:
        population_size: Number of agents in each new population.
        eval_loop: Number of each agent's last fitnesses that are averaged.

    Attributes:
        explorers: Indices of the agents of the last new population that are offered to mutation.

    Raises:
        ValueError: A number is not whole or below 1.
    """

    def __init__(self, population_size: int, eval_loop: int) -> None:
        check_whole_number("population_size", population_size)
        check_whole_number("eval_loop", eval_loop)
        self.population_size = population_size
        self.eval_loop = eval_loop
        self.explorers: tuple[int, ...] = ()
        self._next_index = 0

    def check(self, population: Sequence[EvolvableAlgorithm]) -> None:
        """Check, before training, that the population can be selected from.

        Args:
            population: The agents.

        Raises:
            ValueError: There is no agent, or two have the same index.
        """
        check_indices(population)

    @abstractmethod
    def select(self, population: Sequence[AgentT]) -> tuple[AgentT, list[AgentT]]:
        """Return the best agent and the new population, whose first agent it is.

        Args:
            population: Agents that have been evaluated; the list itself stays as it is.

        Raises:
            ValueError: An agent has not been evaluated, or two have the same index.
            PopulationDivergedError: Every agent has diverged or has a fitness that is not finite.
        """

    def state_dict(self) -> dict[str, Any]:
        """Everything that later selections depend on, as JSON can hold it."""
        return {
            "strategy": type(self).__name__,
            "next_index": self._next_index,
            "explorers": list(self.explorers),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken.

        Args:
            state: The state.

        Raises:
            ValueError: It is of another strategy.
        """
        if state["strategy"] != type(self).__name__:
            raise ValueError(
                f"The state is of a {state['strategy']}, not of a {type(self).__name__}. "
                "Continue with the strategy that the run was started with."
            )
        self._next_index = state["next_index"]
        self.explorers = tuple(state["explorers"])

    def _unused_index(self, population: Sequence[EvolvableAlgorithm]) -> int:
        """The lowest index above all that are, or were ever, in the population."""
        self._next_index = max(self._next_index, 1 + max(agent.index for agent in population))
        return self._next_index


class DrawnSelection(RankedSelection):
    """A strategy that draws parents from the whole population.

    Args:
        population_size: Number of agents in each new population.
        eval_loop: Number of each agent's last fitnesses that are averaged.
        rand_seed: Seed of the draws; None takes fresh entropy.

    Attributes:
        mutates_survivors: Whether agents that go on are offered to mutation as copies are.
    """

    mutates_survivors: ClassVar[bool]

    def __init__(self, population_size: int, eval_loop: int, rand_seed: int | None) -> None:
        super().__init__(population_size, eval_loop)
        self.rng = np.random.default_rng(rand_seed)

    @abstractmethod
    def choose(self, well: Sequence[AgentT], ill: Sequence[AgentT]) -> list[AgentT]:
        """Draw who goes on; who is drawn again has a child.

        Args:
            well: Agents that may have children, best first.
            ill: Agents that may not.

        Returns:
            ``population_size`` agents of ``well``, with repetitions.
        """

    def select(self, population: Sequence[AgentT]) -> tuple[AgentT, list[AgentT]]:
        """Return the best agent and the new population, whose first agent it is.

        Args:
            population: Agents that have been evaluated; the list itself stays as it is.

        Returns:
            The best agent that goes on, and a list of it, the other agents that go on in their order, and the children
            by index.

        Raises:
            ValueError: An agent has not been evaluated, or two have the same index.
            PopulationDivergedError: Every agent has diverged or has a fitness that is not finite.
        """
        well, ill = ranked(population, self.eval_loop)
        parents = self.choose(well, ill)
        chosen = {agent.index for agent in parents}
        elite = next(agent for agent in well if agent.index in chosen)
        first_index = self._unused_index(population)
        new = elite_first(elite, arrange(population, parents, first_index))
        self._unused_index(new)
        self.explorers = tuple(a.index for a in new[1:] if self.mutates_survivors or a.index >= first_index)
        return elite, new

    def state_dict(self) -> dict[str, Any]:
        """Everything that later selections depend on, as JSON can hold it."""
        return {**super().state_dict(), "rng": dict(self.rng.bit_generator.state)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken.

        Args:
            state: The state.

        Raises:
            ValueError: It is of another strategy.
        """
        super().load_state_dict(state)
        self.rng.bit_generator.state = dict(state["rng"])
