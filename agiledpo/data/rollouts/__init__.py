"""Make preference pairs of scored rollouts."""

from agiledpo.data.rollouts.making import make_pairs
from agiledpo.data.rollouts.reading import MultiStep
from agiledpo.data.rollouts.rows import PairFormat
from agiledpo.data.rollouts.statistics import Distribution, PairStatistics
from agiledpo.data.rollouts.strategies import Strategy

__all__ = ["Distribution", "MultiStep", "PairFormat", "PairStatistics", "Strategy", "make_pairs"]
