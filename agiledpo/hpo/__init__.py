"""How a population evolves, and the record of it."""

from agiledpo.hpo.lineage import Lineage
from agiledpo.hpo.multi_frequency import MultiFrequencySelection
from agiledpo.hpo.mutation import Mutation, Mutations
from agiledpo.hpo.selection import Selection
from agiledpo.hpo.tournament import TournamentSelection
from agiledpo.hpo.truncation import TruncationSelection

__all__ = [
    "Lineage",
    "MultiFrequencySelection",
    "Mutation",
    "Mutations",
    "Selection",
    "TournamentSelection",
    "TruncationSelection",
]
