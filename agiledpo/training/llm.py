"""The training loops under their name in AgileRL 2.8; the code lives in :mod:`agiledpo.training.train_llm`."""

from agiledpo.training.train_llm import finetune_llm_preference, finetune_llm_reasoning, finetune_llm_sft

__all__ = ["finetune_llm_preference", "finetune_llm_reasoning", "finetune_llm_sft"]
