"""What makes one agent fitter than another on held-out pairs.

Each measure is a function of the margins of the pairs, (log pi - log pi_ref)(chosen) - (log pi - log pi_ref)(rejected)
in nats, and of beta. Agents of a population differ in beta and in their losses, so a fair measure contains neither:
a reward is beta times a log-ratio, so that selection by rewards is selection for a large beta.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from agiledpo.algorithms.core.measured import Estimate
from agiledpo.losses import preference_accuracy

# The beta of every agent in the loss as a fitness; DPO's default.
LOSS_BETA = 0.1


def _accuracy(margins: Tensor, beta: float) -> Tensor:
    return preference_accuracy(margins, torch.zeros_like(margins))


def _margin(margins: Tensor, beta: float) -> Tensor:
    return margins


def _loss(margins: Tensor, beta: float) -> Tensor:
    return F.logsigmoid(LOSS_BETA * margins)


def _reward_margin(margins: Tensor, beta: float) -> Tensor:
    return beta * margins


FITNESS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "accuracy": _accuracy,  # share of pairs that are ranked correctly, a tie counts one half
    "margin": _margin,  # mean margin, nats
    "loss": _loss,  # minus the DPO loss at LOSS_BETA, the same for all agents
    "reward_margin": _reward_margin,  # AgileRL's: grows with beta
}


@dataclass(frozen=True)
class HeldOut:
    """What an agent does with the pairs of a held-out split.

    Attributes:
        metrics: The metrics of ``DPO.learn``, means over the pairs.
        margins: Margin of each pair, in nats, without beta; float64 (pairs,).
        beta: The agent's.
    """

    metrics: dict[str, float]
    margins: Tensor
    beta: float

    def fitness(self, name: str) -> Estimate:
        """A measure of ``FITNESS``, higher is better."""
        return Estimate.of(FITNESS[name](self.margins, self.beta))

    @property
    def tie_break(self) -> float:
        """Mean margin, in nats; it decides between agents that rank equally many pairs correctly."""
        return float(self.margins.mean())

    def __len__(self) -> int:
        """Pairs."""
        return len(self.margins)
