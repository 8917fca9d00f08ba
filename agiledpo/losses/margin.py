"""Preference losses of the margin: how much more the policy moved towards chosen than towards rejected.

All of them see log-ratios only through h(chosen) - h(rejected), with h the transform of an f-divergence (the identity
for the reverse KL). That is what makes an f-divergence admissible: the term that depends on the prompt cancels.

In the formulas, c and r are the transformed log-ratios log pi / pi_ref of chosen and rejected, sigma is the logistic
function, and |y| is the length of a completion in tokens.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from agiledpo.losses.divergences import Divergence, bounded_exp, reverse_kl
from agiledpo.losses.inputs import PairLogProbs


def _margins(pairs: PairLogProbs, divergence: Divergence) -> Tensor:
    """(B,) c - r."""
    return divergence(pairs.chosen_logratios) - divergence(pairs.rejected_logratios)


def _per_token_margins(pairs: PairLogProbs, divergence: Divergence) -> Tensor:
    """(B,) c / |chosen| - r / |rejected|."""
    chosen = divergence(pairs.chosen_logratios) / pairs.chosen_tokens.clamp(min=1)
    rejected = divergence(pairs.rejected_logratios) / pairs.rejected_tokens.clamp(min=1)
    return chosen - rejected


def sigmoid(pairs: PairLogProbs, *, beta: float, divergence: Divergence = reverse_kl) -> Tensor:
    """DPO: logistic regression on the margin.

    Formula: -log sigma(beta * (c - r)).

    Rafailov et al. 2023, "Direct Preference Optimization", arXiv:2305.18290, Eq. 7.

    Args:
        pairs: Log-probabilities, each (B,).
        beta: Strength of the pull towards the reference, > 0.
        divergence: Transform of the log-ratios.

    Returns:
        (B,) loss of each pair.
    """
    return -F.logsigmoid(beta * _margins(pairs, divergence))


def sigmoid_norm(pairs: PairLogProbs, *, beta: float, divergence: Divergence = reverse_kl) -> Tensor:
    """Length-normalised DPO: the log-ratios are per token, so long completions carry no larger margin.

    Formula: -log sigma(beta * (c / |chosen| - r / |rejected|)).

    Lambert et al. 2024, "Tulu 3", arXiv:2411.15124, section on preference finetuning. Unlike SimPO (arXiv:2405.14734)
    it keeps the reference. Typical beta is much larger than for `sigmoid`.

    Args:
        pairs: Log-probabilities, each (B,), as sums over tokens.
        beta: Strength of the pull towards the reference, > 0.
        divergence: Transform of the log-ratios.

    Returns:
        (B,) loss of each pair.
    """
    return -F.logsigmoid(beta * _per_token_margins(pairs, divergence))


def hinge(pairs: PairLogProbs, *, beta: float, divergence: Divergence = reverse_kl) -> Tensor:
    """Hinge on the margin: pairs that are right by at least 1 / beta give no gradient.

    Formula: max(0, 1 - beta * (c - r)).

    The normalised SLiC loss (Zhao et al. 2023, arXiv:2305.10425) as Liu et al. 2023, "Statistical Rejection Sampling
    Improves Preference Optimization", arXiv:2309.06657, write it; there beta is the inverse of the margin.

    Args:
        pairs: Log-probabilities, each (B,).
        beta: Inverse of the margin that is enough, > 0.
        divergence: Transform of the log-ratios.

    Returns:
        (B,) loss of each pair.
    """
    return torch.relu(1 - beta * _margins(pairs, divergence))


def ipo(pairs: PairLogProbs, *, beta: float, divergence: Divergence = reverse_kl) -> Tensor:
    """IPO: regression of the per-token margin on a fixed target, so that it cannot grow without bound.

    Formula: (c / |chosen| - r / |rejected| - 1 / (2 * beta))^2.

    Azar et al. 2023, "A General Theoretical Paradigm to Understand Learning from Human Preferences",
    arXiv:2310.12036, Eq. 17, where beta is called tau. The paper writes sequence log-ratios; dividing by the length is
    TRL's form. A huge log-ratio under `forward_kl` or `alpha_divergence` can overflow the square in float32.

    Args:
        pairs: Log-probabilities, each (B,), as sums over tokens.
        beta: The target margin is 1 / (2 * beta), > 0.
        divergence: Transform of the log-ratios.

    Returns:
        (B,) loss of each pair.
    """
    return (_per_token_margins(pairs, divergence) - 1 / (2 * beta)) ** 2


def robust(
    pairs: PairLogProbs, *, beta: float, label_smoothing: float = 0.0, divergence: Divergence = reverse_kl
) -> Tensor:
    """Robust DPO: an unbiased estimate of the DPO loss when labels are flipped with known probability.

    Formula: with m = beta * (c - r) and e = label_smoothing,
    [-(1 - e) * log sigma(m) + e * log sigma(-m)] / (1 - 2 * e). It can be negative.

    Chowdhury et al. 2024, "Provably Robust DPO: Aligning Language Models with Noisy Feedback", arXiv:2403.00409.

    Args:
        pairs: Log-probabilities, each (B,).
        beta: Strength of the pull towards the reference, > 0.
        label_smoothing: Probability that a label is flipped, in [0, 0.5).
        divergence: Transform of the log-ratios.

    Returns:
        (B,) loss of each pair.
    """
    logits = beta * _margins(pairs, divergence)
    expected = (1 - label_smoothing) * F.logsigmoid(logits) - label_smoothing * F.logsigmoid(-logits)
    return -expected / (1 - 2 * label_smoothing)


def exo_pair(
    pairs: PairLogProbs, *, beta: float, label_smoothing: float, divergence: Divergence = reverse_kl
) -> Tensor:
    """EXO for pairs: reverse KL from the policy's preference to a smoothed label.

    Formula: with m = beta * (c - r) and e = label_smoothing,
    sigma(m) * log(sigma(m) / (1 - e)) + sigma(-m) * log(sigma(-m) / e). It is 0 where sigma(m) = 1 - e.

    Ji et al. 2024, "Towards Efficient Exact Optimization of Language Model Alignment", arXiv:2402.00856, Eq. 16.

    Args:
        pairs: Log-probabilities, each (B,).
        beta: Strength of the pull towards the reference, > 0.
        label_smoothing: Probability given to the rejected side, in (0, 0.5); the paper uses 1e-3.
        divergence: Transform of the log-ratios.

    Returns:
        (B,) loss of each pair.
    """
    logits = beta * _margins(pairs, divergence)
    chosen_term = torch.sigmoid(logits) * (F.logsigmoid(logits) - math.log1p(-label_smoothing))
    rejected_term = torch.sigmoid(-logits) * (F.logsigmoid(-logits) - math.log(label_smoothing))
    return chosen_term + rejected_term


def discopop(pairs: PairLogProbs, *, beta: float, tau: float = 0.05, divergence: Divergence = reverse_kl) -> Tensor:
    """DiscoPOP: a blend of logistic and exponential loss that depends on the margin itself.

    Formula: with m = beta * (c - r) and g = sigma(m / tau), -(1 - g) * log sigma(m) + g * exp(-m). Not convex: it has
    a local minimum on the side of wrongly ordered pairs.

    Lu et al. 2024, "Discovering Preference Optimization Algorithms with and for Large Language Models",
    arXiv:2406.08414, Eq. 5.

    Args:
        pairs: Log-probabilities, each (B,).
        beta: Strength of the pull towards the reference, > 0.
        tau: Temperature of the blend, > 0.
        divergence: Transform of the log-ratios.

    Returns:
        (B,) loss of each pair.
    """
    logits = beta * _margins(pairs, divergence)
    logistic = -torch.sigmoid(-logits / tau) * F.logsigmoid(logits)
    # One exponent for both factors: exp(-m) alone overflows where sigma(m / tau) makes the product vanish.
    exponential = bounded_exp(F.logsigmoid(logits / tau) - logits)
    return logistic + exponential
