"""Preference losses between distributions: the sorted values of a batch are compared, quantile by quantile.

The i-th smallest value of one side is matched with the i-th smallest of the other, which is optimal transport in one
dimension. So the loss of a pair depends on the other pairs of the batch, and the batch must not be split.

AOT: Melnyk et al. 2024, "Distributional Preference Alignment of LLMs via Optimal Transport", arXiv:2406.05882.
"""

import torch.nn.functional as F
from torch import Tensor

from agiledpo.losses.inputs import PairLogProbs


def _same_rank(values: Tensor, others: Tensor) -> Tensor:
    """(B,) the element of `others` that has the same rank as each element of `values`."""
    ranks = values.argsort().argsort()
    return others.sort().values[ranks]


def _smoothed_logistic(logits: Tensor, label_smoothing: float) -> Tensor:
    """(B,) cross-entropy of sigma(logits) against the label 1 - label_smoothing."""
    return -(1 - label_smoothing) * F.logsigmoid(logits) - label_smoothing * F.logsigmoid(-logits)


def aot(pairs: PairLogProbs, *, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """AOT, paired: the policy's margins should dominate the reference's margins as a distribution.

    Formula: with m and n the sorted values of log p(chosen) - log p(rejected) under the policy and the reference,
    d = beta * (m_i - n_i) and e = label_smoothing, -(1 - e) * log sigma(d) - e * log sigma(-d).

    Melnyk et al. 2024, arXiv:2406.05882.

    Args:
        pairs: Log-probabilities, each (B,).
        beta: Scale of the difference of quantiles, > 0.
        label_smoothing: Weight of the opposite label, in [0, 0.5).

    Returns:
        (B,) loss. Entry i belongs to the policy margin of pair i.
    """
    policy_margins = pairs.policy_chosen - pairs.policy_rejected
    reference_margins = pairs.reference_chosen - pairs.reference_rejected
    deltas = policy_margins - _same_rank(policy_margins, reference_margins)
    return _smoothed_logistic(beta * deltas, label_smoothing)


def aot_unpaired(pairs: PairLogProbs, *, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """AOT, unpaired: the log-ratios of chosen should dominate those of rejected as a distribution.

    Formula: with c and r the sorted log-ratios of chosen and rejected, d = beta * (c_i - r_i) and e = label_smoothing,
    -(1 - e) * log sigma(d) - e * log sigma(-d).

    Melnyk et al. 2024, arXiv:2406.05882.

    Args:
        pairs: Log-probabilities, each (B,).
        beta: Scale of the difference of quantiles, > 0.
        label_smoothing: Weight of the opposite label, in [0, 0.5).

    Returns:
        (B,) loss. Entry i belongs to the chosen completion of pair i.
    """
    chosen, rejected = pairs.chosen_logratios, pairs.rejected_logratios
    return _smoothed_logistic(beta * (chosen - _same_rank(chosen, rejected)), label_smoothing)
