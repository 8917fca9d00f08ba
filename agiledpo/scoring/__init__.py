"""Batch layouts and log-probabilities of completions."""

from agiledpo.scoring.batch import PreferenceBatch
from agiledpo.scoring.causal_lm import CausalLM
from agiledpo.scoring.completion_batch import CompletionBatch
from agiledpo.scoring.engine import PairScores, PrefixSharing, Scorer, check_prefix_sharing
from agiledpo.scoring.prompt_batch import PromptBatch
from agiledpo.scoring.reference_cache import ReferenceCache

__all__ = [
    "CausalLM",
    "CompletionBatch",
    "PairScores",
    "PreferenceBatch",
    "PrefixSharing",
    "PromptBatch",
    "ReferenceCache",
    "Scorer",
    "check_prefix_sharing",
]
