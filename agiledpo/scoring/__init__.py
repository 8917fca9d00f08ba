"""Batch layouts and log-probabilities of completions."""

from agiledpo.scoring.batch import PreferenceBatch
from agiledpo.scoring.causal_lm import CausalLM
from agiledpo.scoring.engine import PairScores, PrefixSharing, Scorer, check_prefix_sharing
from agiledpo.scoring.reference_cache import ReferenceCache

__all__ = [
    "CausalLM",
    "PairScores",
    "PreferenceBatch",
    "PrefixSharing",
    "ReferenceCache",
    "Scorer",
    "check_prefix_sharing",
]
