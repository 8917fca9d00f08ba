"""Batch layouts and log-probabilities of completions."""

from agiledpo.scoring.batch import PreferenceBatch
from agiledpo.scoring.causal_lm import CausalLM
from agiledpo.scoring.completion_batch import CompletionBatch
from agiledpo.scoring.engine import PairScores, PrefixSharing, Scorer, check_prefix_sharing
from agiledpo.scoring.prompt_batch import PromptBatch, SidedBatch
from agiledpo.scoring.question_batch import QuestionBatch
from agiledpo.scoring.reference_cache import ReferenceCache
from agiledpo.scoring.rollout_batch import RolloutBatch

__all__ = [
    "CausalLM",
    "CompletionBatch",
    "PairScores",
    "PreferenceBatch",
    "PrefixSharing",
    "PromptBatch",
    "QuestionBatch",
    "ReferenceCache",
    "RolloutBatch",
    "Scorer",
    "SidedBatch",
    "check_prefix_sharing",
]
