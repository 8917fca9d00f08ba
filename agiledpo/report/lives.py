"""Which agent lived when, and which of them lead to the best one."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from agiledpo.report.record import RunRecord
from agiledpo.report.series import Series


@dataclass(frozen=True)
class Lines:
    """The lines of one figure.

    Attributes:
        elite: Along the best agent's ancestors, each up to where the next one was copied from it, and along itself:
            the index, and its part of the line.
        living: What else belongs to agents that still learn, by index.
        gone: What else belongs to agents that were replaced or diverged, by index.
    """

    elite: list[tuple[int, Series]]
    living: dict[int, Series]
    gone: dict[int, Series]


@dataclass(frozen=True)
class Lives:
    """The agents of a run.

    Attributes:
        elite: Index of the best agent; None where nobody is known.
        shares: The best agent's ancestors from the founder down to itself, each with the rows after which its part of
            the story begins and ends.
        alive: Indices of the agents that still learn.
    """

    elite: int | None
    shares: Mapping[int, tuple[float, float]]
    alive: frozenset[int]

    @staticmethod
    def of(run: RunRecord) -> "Lives":
        """Read who lived when from the lineage, or as far as the log tells.

        Args:
            run: The run.
        """
        if run.lineage is None:
            elite = _best_by_log(run)
            shares = {} if elite is None else {elite: (-math.inf, math.inf)}
            return Lives(elite, shares, frozenset(run.indices))
        agents = run.lineage.agents
        elite = run.lineage.elite
        if elite is None and len(agents) == 1:
            elite = next(iter(agents))
        shares = {}
        if elite is not None:
            chain = run.lineage.ancestry(elite)
            births = [-math.inf, *(float(agents[index].birth.pairs) for index in chain[1:]), math.inf]
            shares = dict(zip(chain, pairwise(births), strict=True))
        return Lives(elite, shares, frozenset(index for index, agent in agents.items() if agent.alive))

    def lines(self, figures: Mapping[int, Series]) -> Lines:
        """Sort the lines of a figure by what becomes of their agents.

        Args:
            figures: A line for each agent by index.
        """
        elite = []
        for index, (start, stop) in self.shares.items():
            part = figures[index].between(start, stop) if index in figures else None
            if part:
                elite.append((index, part))
        rest = {}
        for index, series in figures.items():
            # What an ancestor did after the copy is its own story, which begins where they part.
            stop = self.shares[index][1] if index in self.shares else -math.inf
            before = series.between(-math.inf, stop)
            own = series.between(stop, math.inf)
            if own and before:
                own = Series([before.steps[-1], *own.steps], [before.values[-1], *own.values])
            if own:
                rest[index] = own
        return Lines(
            elite,
            {index: series for index, series in rest.items() if index in self.alive},
            {index: series for index, series in rest.items() if index not in self.alive},
        )


def _best_by_log(run: RunRecord) -> int | None:
    """The fittest by the last evaluation, or the only one there is."""
    fitness = run.agents.get(("eval", "fitness"), {})
    last = max((series.steps[-1] for series in fitness.values()), default=None)
    fit = {
        index: series.values[-1]
        for index, series in fitness.items()
        if series.steps[-1] == last and not math.isnan(series.values[-1])
    }
    if fit:
        return max(fit, key=lambda index: (fit[index], -index))
    return run.indices[0] if len(run.indices) == 1 else None
