"""Preference losses that judge each completion by its own reward, not only by the difference of the two.

In the formulas, c and r are the log-ratios log pi / pi_ref of chosen and rejected, and sigma is the logistic function.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from agiledpo.losses.inputs import PairLogProbs


def nca_pair(pairs: PairLogProbs, *, beta: float) -> Tensor:
    """NCA for pairs: chosen against noise, and both completions as noise with half weight.

    Formula: -log sigma(beta * c) - 0.5 * log sigma(-beta * c) - 0.5 * log sigma(-beta * r).

    Chen et al. 2024, "Noise Contrastive Alignment of Language Models with Explicit Rewards", arXiv:2402.05369.

    Args:
        pairs: Log-probabilities, each (B,).
        beta: Scale of the reward, > 0.

    Returns:
        (B,) loss of each pair.
    """
    chosen_rewards = beta * pairs.chosen_logratios
    rejected_rewards = beta * pairs.rejected_logratios
    as_noise = F.logsigmoid(-chosen_rewards) + F.logsigmoid(-rejected_rewards)
    return -F.logsigmoid(chosen_rewards) - 0.5 * as_noise


def bco_pair(pairs: PairLogProbs, *, beta: float) -> Tensor:
    """BCO for pairs: a binary classifier with label 1 for chosen and 0 for rejected.

    Formula: -log sigma(beta * c) - log sigma(-beta * r).

    Jung et al. 2024, "Binary Classifier Optimization for Large Language Model Alignment", arXiv:2404.04656, without
    the paper's reward shift (a running mean of the rewards, subtracted from both), as in TRL 1.16. So the loss of a
    pair does not depend on other pairs.

    Args:
        pairs: Log-probabilities, each (B,).
        beta: Scale of the reward, > 0.

    Returns:
        (B,) loss of each pair.
    """
    return -F.logsigmoid(beta * pairs.chosen_logratios) - F.logsigmoid(-beta * pairs.rejected_logratios)


def sppo_hard(pairs: PairLogProbs, *, beta: float) -> Tensor:
    """SPPO with hard labels: regression of each log-ratio on its own target.

    Formula: (c - 1 / (2 * beta))^2 + (r + 1 / (2 * beta))^2.

    Wu et al. 2024, "Self-Play Preference Optimization for Language Model Alignment", arXiv:2405.00675, Eq. 4.7 with
    win probability 1 for chosen and 0 for rejected, and eta = 1 / beta.

    Args:
        pairs: Log-probabilities, each (B,).
        beta: The targets are +-1 / (2 * beta), > 0.

    Returns:
        (B,) loss of each pair.
    """
    target = 1 / (2 * beta)
    return (pairs.chosen_logratios - target) ** 2 + (pairs.rejected_logratios + target) ** 2


def apo_zero(pairs: PairLogProbs, *, beta: float) -> Tensor:
    """APO-zero: chosen more likely, rejected less likely; for chosen completions better than the model's own.

    Formula: 1 - sigma(beta * c) + sigma(beta * r).

    D'Oosterlinck et al. 2024, "Anchored Preference Optimization and Contrastive Revisions", arXiv:2408.06266, Eq. 7.

    Args:
        pairs: Log-probabilities, each (B,).
        beta: Scale of the reward, > 0.

    Returns:
        (B,) loss of each pair.
    """
    return torch.sigmoid(-beta * pairs.chosen_logratios) + torch.sigmoid(beta * pairs.rejected_logratios)


def apo_down(pairs: PairLogProbs, *, beta: float) -> Tensor:
    """APO-down: both less likely, rejected more so; for chosen completions worse than the model's own.

    Formula: sigma(beta * c) + 1 - sigma(beta * (c - r)).

    D'Oosterlinck et al. 2024, "Anchored Preference Optimization and Contrastive Revisions", arXiv:2408.06266, Eq. 8.

    Args:
        pairs: Log-probabilities, each (B,).
        beta: Scale of the reward, > 0.

    Returns:
        (B,) loss of each pair.
    """
    margins = pairs.chosen_logratios - pairs.rejected_logratios
    return torch.sigmoid(beta * pairs.chosen_logratios) + torch.sigmoid(-beta * margins)


def sft(pairs: PairLogProbs, *, mean_chosen_tokens: Tensor | float) -> Tensor:
    """Negative log-likelihood of the chosen completions, averaged over all their tokens in the batch.

    Formula: -log pi(chosen) / n with n the mean length of the chosen completions of the whole optimizer batch. The
    mean over pairs is then the mean over tokens, however the batch is split. Reference and rejected play no part.

    The likelihood term of iterative RPO (Pang et al. 2024, arXiv:2404.19733) and of mixed preference optimization
    (Wang et al. 2024, arXiv:2411.10442), pooled over tokens.

    Args:
        pairs: Log-probabilities, each (B,), as plain sums over tokens.
        mean_chosen_tokens: Chosen tokens of the optimizer batch divided by its number of pairs; a scalar > 0.

    Returns:
        (B,) loss of each pair.
    """
    return -pairs.policy_chosen / mean_chosen_tokens
