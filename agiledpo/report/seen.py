"""A run as the charts see it."""

from collections.abc import Sequence
from dataclasses import dataclass

from agiledpo.hpo.family_tree import evolved_parameters
from agiledpo.report.lives import Lives
from agiledpo.report.record import RunRecord


@dataclass(frozen=True)
class Seen:
    """A run with what is known of its agents' lives.

    Attributes:
        run: The run.
        lives: Its agents.
        number: Its place in the report, which is its colour.
        prefix: Before the names of its lines; empty where there is one run only.
    """

    run: RunRecord
    lives: Lives
    number: int
    prefix: str

    @property
    def colour(self) -> str:
        """The colour of its best agent."""
        return f"@run{self.number}"

    def hover(self, what: str, *, extra: str = "") -> str:
        """What hovering says of a point of an agent."""
        return (
            f"{self.prefix}agent %{{customdata}}<br>%{{x:,}} {self.run.unit}<br>{what} %{{y:.5g}}{extra}<extra></extra>"
        )


def row_axis(runs: Sequence[Seen]) -> str:
    """What the horizontal axis counts."""
    units = list(dict.fromkeys(seen.run.unit for seen in runs))
    return f"{units[0] if len(units) == 1 else 'rows'} seen by each agent"


def changed_parameters(runs: Sequence[Seen]) -> list[str]:
    """Hyperparameters that differ between agents or mutated, by the lineage."""
    return [name for seen in runs if seen.run.lineage is not None for name in evolved_parameters(seen.run.lineage)]
