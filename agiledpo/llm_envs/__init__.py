"""Environments that hand data to agents."""

from agiledpo.llm_envs.dataset_gym import DatasetGym
from agiledpo.llm_envs.preference import PreferenceGym
from agiledpo.llm_envs.reasoning import ReasoningGym
from agiledpo.llm_envs.rewards import BatchedReward, RewardError
from agiledpo.llm_envs.sft import SFTGym
from agiledpo.llm_envs.types import PreferenceExperiences, ReasoningExperiences, SFTExperiences

__all__ = [
    "BatchedReward",
    "DatasetGym",
    "PreferenceExperiences",
    "PreferenceGym",
    "ReasoningExperiences",
    "ReasoningGym",
    "RewardError",
    "SFTExperiences",
    "SFTGym",
]
