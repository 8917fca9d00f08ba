"""How a population evolves, and the record of it."""

from agiledpo.hpo.lineage import Lineage

__all__ = ["Lineage"]
