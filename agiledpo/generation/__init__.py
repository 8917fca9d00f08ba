"""Sampling completions from the current policy."""

from agiledpo.generation.rollout import Rollout, roll_out
from agiledpo.generation.sampling import Completions, Generator, SamplingSettings
from agiledpo.generation.transformers_generator import TransformersGenerator
from agiledpo.generation.vllm import VLLMGenerator
from agiledpo.generation.vllm_server import VLLMError

__all__ = [
    "Completions",
    "Generator",
    "Rollout",
    "SamplingSettings",
    "TransformersGenerator",
    "VLLMError",
    "VLLMGenerator",
    "roll_out",
]
