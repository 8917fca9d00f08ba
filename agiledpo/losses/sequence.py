"""From log-probabilities of tokens to one number per sequence."""

import torch
from torch import Tensor

from agiledpo.losses.inputs import TokenLogProbs


def _masked(values: Tensor, mask: Tensor) -> Tensor:
    """`values` (B, T) in float32 or higher with 0 at the padding, whatever the padding held before."""
    return values.to(torch.promote_types(values.dtype, torch.float32)).masked_fill(~mask, 0.0)


def sequence_logps(tokens: TokenLogProbs, *, average: bool = False) -> Tensor:
    """Log-probability of each completion: the sum, or the mean, over its tokens.

    Args:
        tokens: Log-probabilities of shape (B, T).
        average: Divide each sum by the completion length.

    Returns:
        (B,) float32 or float64. An empty completion gives 0.
    """
    sums = _masked(tokens.logps, tokens.mask).sum(dim=1)
    return sums / tokens.lengths.clamp(min=1) if average else sums


def nll(tokens: TokenLogProbs, *, average: bool = False) -> Tensor:
    """Negative log-likelihood of each completion: -sum_t logp_t, or its mean over the tokens.

    Args:
        tokens: Log-probabilities of shape (B, T).
        average: Divide each sum by the completion length.

    Returns:
        (B,) float32 or float64.
    """
    return -sequence_logps(tokens, average=average)


def ld_sequence_logps(chosen: TokenLogProbs, rejected: TokenLogProbs, alpha: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities in which the tokens beyond the length shared by the two sides count alpha each.

    Formula: with n = min(len_chosen, len_rejected), sum_{t <= n} logp_t + alpha * sum_{t > n} logp_t, so alpha = 1 is
    the plain sum and alpha = 0 drops the excess of the longer side. Apply it to the policy and to the reference.

    LD-DPO: Liu et al. 2024, "Length Desensitization in Direct Preference Optimization", arXiv:2409.06411.

    Args:
        chosen: Log-probabilities of shape (B, T_chosen).
        rejected: Log-probabilities of shape (B, T_rejected).
        alpha: Weight of the excess tokens, in [0, 1].

    Returns:
        Chosen and rejected log-probabilities, each (B,).

    Raises:
        ValueError: If alpha lies outside [0, 1].
    """
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha={alpha} must lie in [0, 1].")
    shared_lengths = torch.minimum(chosen.lengths, rejected.lengths)
    return _tail_weighted_sum(chosen, shared_lengths, alpha), _tail_weighted_sum(rejected, shared_lengths, alpha)


def _tail_weighted_sum(tokens: TokenLogProbs, shared_lengths: Tensor, alpha: float) -> Tensor:
    """(B,) sum of token log-probabilities (B, T), those after the first `shared_lengths` (B,) times alpha."""
    logps = _masked(tokens.logps, tokens.mask)
    is_tail = tokens.mask.cumsum(dim=1) > shared_lengths.unsqueeze(1)
    return torch.where(is_tail, alpha * logps, logps).sum(dim=1)


def wpo_weights(chosen: TokenLogProbs, rejected: TokenLogProbs) -> Tensor:
    """Weight of each pair by how likely the current policy is to produce it.

    Formula: w(chosen) * w(rejected) with w(y) = exp(mean_t [logp_t - log sum_v p_t(v)^2]). The subtracted term is the
    expected token probability under the policy itself, so a completion sampled from the policy weighs about 1. There
    is no upper bound of 1, as in TRL 1.16.

    WPO: Zhou et al. 2024, "WPO: Enhancing RLHF with Weighted Preference Optimization", arXiv:2406.11827, Eq. 2.

    Args:
        chosen: Policy log-probabilities of shape (B, T_chosen), with `log_collision`.
        rejected: Policy log-probabilities of shape (B, T_rejected), with `log_collision`.

    Returns:
        (B,) weights, detached: the weight is not trained.

    Raises:
        ValueError: If `log_collision` is missing on a side.
    """
    return torch.exp(_mean_alignment(chosen, "chosen") + _mean_alignment(rejected, "rejected"))


def _mean_alignment(tokens: TokenLogProbs, side: str) -> Tensor:
    """(B,) mean over tokens of logp - log_collision, detached."""
    if tokens.log_collision is None:
        raise ValueError(f"WPO weights need log_collision, and it is None for {side}; pass log sum_v p(v)^2 per token.")
    aligned = _masked((tokens.logps - tokens.log_collision).detach(), tokens.mask)
    return aligned.sum(dim=1) / tokens.lengths.clamp(min=1)
