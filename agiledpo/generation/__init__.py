"""Sampling completions from the current policy."""

from agiledpo.generation.rollout import Rollout, roll_out
from agiledpo.generation.sampling import Completions, Generator, SamplingSettings
from agiledpo.generation.transformers_generator import TransformersGenerator

__all__ = ["Completions", "Generator", "Rollout", "SamplingSettings", "TransformersGenerator", "roll_out"]
