"""The training loops."""

from agiledpo.training.interruption import TrainingInterrupted
from agiledpo.training.retention import Retention
from agiledpo.training.train_llm import (
    finetune_llm_online_preference,
    finetune_llm_preference,
    finetune_llm_reasoning,
    finetune_llm_sft,
)

__all__ = [
    "Retention",
    "TrainingInterrupted",
    "finetune_llm_online_preference",
    "finetune_llm_preference",
    "finetune_llm_reasoning",
    "finetune_llm_sft",
]
