"""A population spread over processes: each agent is at home in one of them, where it learns and is measured."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from agiledpo.adapters.contents import content_digest
from agiledpo.algorithms.core.evolvable import HISTORY
from agiledpo.algorithms.core.llm import LLMAlgorithm
from agiledpo.distributed.parcels import hand_over
from agiledpo.distributed.team import Team

T = TypeVar("T")


class Homes:
    """Where the agents of a population are at home: the one at place p in process p modulo their number.

    Every process has all agents. Of those that are at home elsewhere it knows hyperparameters and history, as of the
    last :meth:`share`; their weights are stale and they have no optimizer state. So selection and mutation, which look
    at nothing else, do the same everywhere. A child is made from what is its parent in earnest where that is at home,
    and :meth:`move_in` brings it to its own home, at the place of whom it replaces.

    Among one process everything is at home, and nothing is sent.

    Args:
        team: The processes.
    """

    def __init__(self, team: Team) -> None:
        self.team = team

    @property
    def is_one(self) -> bool:
        """Whether all agents are at home here."""
        return self.team.is_alone

    def rank_of(self, place: int) -> int:
        """The process in which the agent at a place of the population is at home."""
        return place % self.team.size

    def has(self, place: int) -> bool:
        """Whether the agent at a place is at home here."""
        return self.rank_of(place) == self.team.rank

    # Talking --------------------------------------------------------------------------------------------------------

    def share(self, values: Mapping[int, T]) -> dict[int, T]:
        """What all processes say of agents at home, by place.

        Args:
            values: What this one says, by place; plain values.
        """
        everybody = [entry for told in self.team.gather(dict(values)) for entry in told.items()]
        return dict(sorted(everybody, key=lambda entry: entry[0]))

    def ask(self, place: int, act: Callable[[], T]) -> T:
        """What comes of doing something where the agent at a place is at home.

        Args:
            place: The place.
            act: What only that process does; its result has plain values.

        Raises:
            Exception: What it raised there, in every process.
        """
        return self.team.leader_does(act, of=self.rank_of(place))

    # Moving agents --------------------------------------------------------------------------------------------------

    @contextmanager
    def living_apart(self, population: Sequence[LLMAlgorithm]) -> Iterator[None]:
        """Have each agent work alone at home inside; afterwards with the processes that it was made for again.

        Args:
            population: The agents; who is in it at the end may be others.
        """
        if self.is_one:
            yield
            return
        self._part(population)
        try:
            yield
        finally:
            for agent in population:
                agent.join(Team.of(agent.accelerator, agent.device))

    @contextmanager
    def at_hand(self, population: Sequence[LLMAlgorithm], agent: LLMAlgorithm) -> Iterator[None]:
        """Have the first process know an agent as it is inside, to save it.

        Args:
            population: The agents.
            agent: One of them.
        """
        if self.is_one:
            yield
            return
        home = self.rank_of(population.index(agent))
        self._move(agent, giver=home, receiver=0)
        try:
            yield
        finally:
            if self.team.rank != home:
                agent.stepper.forget()

    def move_in(self, population: Sequence[LLMAlgorithm], parents: Mapping[int, int]) -> None:
        """Bring the children that selection has made from their parents' homes to their own.

        Args:
            population: The new population.
            parents: Place of each agent of the old one, by index.
        """
        if self.is_one:
            return
        for place, agent in enumerate(population):
            if agent.index not in parents and agent.parent is not None:
                self._move(agent, giver=self.rank_of(parents[agent.parent]), receiver=self.rank_of(place))
        self._part(population)

    def spread(self, population: Sequence[LLMAlgorithm]) -> None:
        """Give every process all agents as they are, one after the other.

        Args:
            population: The agents.
        """
        if not self.is_one:
            for place, agent in enumerate(population):
                self._move(agent, giver=self.rank_of(place))

    def _part(self, population: Sequence[LLMAlgorithm]) -> None:
        """Keep of agents that are at home elsewhere what is needed for them to come here."""
        for place, agent in enumerate(population):
            agent.join(Team.alone(agent.device))
            if not self.has(place):
                agent.stepper.forget()

    def _move(self, agent: LLMAlgorithm, *, giver: int, receiver: int | None = None) -> None:
        """Make an agent in one process (None: in all) what it is in another."""
        if giver == receiver:
            return
        involved = receiver is None or self.team.rank in (giver, receiver)
        references = self.team.gather(_reference(agent) if involved else None)
        known = all(
            reference == references[giver]
            for rank, reference in enumerate(references)
            if receiver is None or rank == receiver
        )
        state = agent.state_dict()
        own = state["adapters"]
        if known:  # references seldom move, and most agents have the same
            state["adapters"] = {role: tensors for role, tensors in own.items() if role != "reference"}
        state = hand_over(state, self.team, giver=giver, receiver=receiver)
        if involved and self.team.rank != giver:
            agent.load_state_dict({**state, "adapters": {**own, **state["adapters"]}})
            agent.adapters.share_reference()


def history_of(agent: LLMAlgorithm) -> dict[str, Any]:
    """What selection, and whoever watches, has to know of an agent; plain values, which ``vars(agent)`` can take.

    Args:
        agent: The agent, at home.
    """
    names = (*HISTORY, *agent.HYPERPARAMETERS, "optimizer_steps", "reference_update_tracker")
    return {name: vars(agent)[name] for name in names}


def _reference(agent: LLMAlgorithm) -> str | None:
    """Name of an agent's reference weights; None where it is the bare base."""
    name = agent.adapters.name("reference")
    return None if name is None else content_digest(agent.base.parameters(name))
