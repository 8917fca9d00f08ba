"""Sampling completions from the current policy."""

from agiledpo.generation.rollout import Rollout, roll_out
from agiledpo.generation.sampling import Completions, Generator, SamplingSettings

__all__ = ["Completions", "Generator", "Rollout", "SamplingSettings", "roll_out"]
