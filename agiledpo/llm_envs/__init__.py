"""Environments that hand data to agents."""

from agiledpo.llm_envs.dataset_gym import DatasetGym
from agiledpo.llm_envs.preference import PreferenceGym
from agiledpo.llm_envs.sft import SFTGym
from agiledpo.llm_envs.types import PreferenceExperiences, SFTExperiences

__all__ = ["DatasetGym", "PreferenceExperiences", "PreferenceGym", "SFTExperiences", "SFTGym"]
