"""The training loops."""

from agiledpo.training.train_llm import finetune_llm_preference

__all__ = ["finetune_llm_preference"]
