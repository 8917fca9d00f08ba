"""Tournament selection."""

from collections.abc import Sequence
from typing import ClassVar

from agiledpo.hpo.selection import AgentT, DrawnSelection
from agiledpo.losses.checks import check_whole_number


class TournamentSelection(DrawnSelection):
    r"""Each place of the new population is won in a tournament.

    The contestants of a tournament are drawn without replacement among the agents that are well, and the best of them
    wins; so the agent of rank r (0 is the best) of n wins one of size k with probability
    :math:`\binom{n-r-1}{k-1} / \binom{n}{k}`.

    Args:
        tournament_size: Contestants of a tournament; all agents that are well where there are fewer.
        elitism: The first place goes to the best agent without a tournament.
        population_size: Number of agents in each new population.
        eval_loop: Number of each agent's last fitnesses that are averaged.
        rand_seed: Seed of the draws; None takes fresh entropy.

    Raises:
        ValueError: A size is not a whole number of at least 1, or ``elitism`` is not a bool.
    """

    mutates_survivors: ClassVar[bool] = True

    def __init__(
        self,
        tournament_size: int,
        elitism: bool,
        population_size: int,
        eval_loop: int = 1,
        *,
        rand_seed: int | None = None,
    ) -> None:
        check_whole_number("tournament_size", tournament_size)
        if not isinstance(elitism, bool):
            raise ValueError(f"elitism={elitism!r} must be True or False.")
        super().__init__(population_size, eval_loop, rand_seed)
        self.tournament_size = tournament_size
        self.elitism = elitism

    def choose(self, well: Sequence[AgentT], ill: Sequence[AgentT]) -> list[AgentT]:
        """Hold the tournaments.

        Args:
            well: Agents that may have children, best first.
            ill: Agents that may not.
        """
        parents = [well[0]] if self.elitism else []
        contestants = min(self.tournament_size, len(well))
        while len(parents) < self.population_size:
            # The agents stand in the order of their rank, so the lowest number wins.
            parents.append(well[self.rng.choice(len(well), contestants, replace=False).min()])
        return parents
