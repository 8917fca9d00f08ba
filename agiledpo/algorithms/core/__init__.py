"""What every algorithm shares: identity, registry, evolution contract."""

from agiledpo.algorithms.core.evolvable import EvolvableAlgorithm
from agiledpo.algorithms.core.llm import LLMAlgorithm

__all__ = ["EvolvableAlgorithm", "LLMAlgorithm"]
