"""Truncation selection, as population-based training uses it."""

from collections.abc import Sequence
from typing import ClassVar

from agiledpo.hpo.selection import AgentT, DrawnSelection
from agiledpo.losses.checks import check_number


class TruncationSelection(DrawnSelection):
    """The worst agents are replaced by copies of the best; everybody else goes on.

    Exploit step of population-based training by truncation (Jaderberg et al. 2017, arXiv 1711.09846, section 4.1.1).
    An agent that has diverged, or whose fitness is not finite, is replaced wherever it stands. Only the copies explore:
    the training loop mutates those alone, a loop of one's own calls ``mutation.explore`` with the agents whose index is
    in ``explorers``.

    Args:
        population_size: Number of agents in each new population.
        fraction: Share of the population, in (0, 0.5], that is replaced, and that has children; rounded to whole
            agents, at least one where there are two.
        eval_loop: Number of each agent's last fitnesses that are averaged.
        rand_seed: Seed of the draws; None takes fresh entropy.

    Raises:
        ValueError: A number is not whole or out of range.
    """

    mutates_survivors: ClassVar[bool] = False

    def __init__(
        self, population_size: int, fraction: float = 0.2, eval_loop: int = 1, *, rand_seed: int | None = None
    ) -> None:
        check_number("fraction", fraction, minimum=0.0, exclusive=True)
        if fraction > 0.5:
            raise ValueError(f"fraction={fraction} must be at most 0.5: who is replaced cannot have children as well.")
        super().__init__(population_size, eval_loop, rand_seed)
        self.fraction = fraction

    def choose(self, well: Sequence[AgentT], ill: Sequence[AgentT]) -> list[AgentT]:
        """Draw a parent among the best for each agent that is replaced.

        Args:
            well: Agents that may have children, best first.
            ill: Agents that may not.
        """
        total = len(well) + len(ill)
        cut = min(max(1, round(self.fraction * total)), total // 2)
        survivors = well[: min(total - cut, self.population_size)]
        best = well[: max(1, cut)]
        draws = self.rng.integers(len(best), size=self.population_size - len(survivors))
        return [*survivors, *(best[draw] for draw in draws)]
