"""Environments that hand preference pairs to agents."""

from agiledpo.llm_envs.preference import PreferenceGym
from agiledpo.llm_envs.types import PreferenceExperiences

__all__ = ["PreferenceExperiences", "PreferenceGym"]
