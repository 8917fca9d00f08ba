"""Losses as pure functions of log-probabilities."""

from agiledpo.losses.advantages import group_advantages
from agiledpo.losses.completions import CompletionTerms
from agiledpo.losses.divergences import (
    F_DIVERGENCE_TYPES,
    Divergence,
    alpha_divergence,
    forward_kl,
    js_divergence,
    make_divergence,
    reverse_kl,
)
from agiledpo.losses.inputs import PairLogProbs, TokenLogProbs
from agiledpo.losses.margin import discopop, exo_pair, hinge, ipo, robust, sigmoid, sigmoid_norm
from agiledpo.losses.objective import ObjectiveTerms, PreferenceObjective, preference_accuracy
from agiledpo.losses.pointwise import apo_down, apo_zero, bco_pair, nca_pair, sft, sppo_hard
from agiledpo.losses.policy_gradient import PolicyObjective, PolicyTerms
from agiledpo.losses.registry import PREFERENCE_LOSSES, LabelSmoothing, LossSettings, PreferenceLoss
from agiledpo.losses.sequence import ld_sequence_logps, nll, sequence_logps, wpo_weights
from agiledpo.losses.transport import aot, aot_unpaired

__all__ = [
    "F_DIVERGENCE_TYPES",
    "PREFERENCE_LOSSES",
    "CompletionTerms",
    "Divergence",
    "LabelSmoothing",
    "LossSettings",
    "ObjectiveTerms",
    "PairLogProbs",
    "PolicyObjective",
    "PolicyTerms",
    "PreferenceLoss",
    "PreferenceObjective",
    "TokenLogProbs",
    "alpha_divergence",
    "aot",
    "aot_unpaired",
    "apo_down",
    "apo_zero",
    "bco_pair",
    "discopop",
    "exo_pair",
    "forward_kl",
    "group_advantages",
    "hinge",
    "ipo",
    "js_divergence",
    "ld_sequence_logps",
    "make_divergence",
    "nca_pair",
    "nll",
    "preference_accuracy",
    "reverse_kl",
    "robust",
    "sequence_logps",
    "sft",
    "sigmoid",
    "sigmoid_norm",
    "sppo_hard",
    "wpo_weights",
]
