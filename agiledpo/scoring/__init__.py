"""Batch layouts and log-probabilities of completions."""

from agiledpo.scoring.batch import PreferenceBatch
from agiledpo.scoring.causal_lm import CausalLM
from agiledpo.scoring.engine import PairScores, PrefixSharing, Scorer, check_prefix_sharing

__all__ = ["CausalLM", "PairScores", "PreferenceBatch", "PrefixSharing", "Scorer", "check_prefix_sharing"]
