"""Distillation on the student's own samples, as advantages of its tokens.

The student's reverse KL from its teacher is the expectation, over what the student samples, of its log-probability
minus the teacher's. Minus that difference is the reward of a token (Lu and Thinking Machines Lab 2025, On-Policy
Distillation, https://thinkingmachines.ai/blog/on-policy-distillation). Clipping it token by token keeps a few words of
style, which differ most, from outweighing the rest (https://github.com/siyan-zhao/OPSD).
"""

from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from agiledpo.losses.checks import check_number


@dataclass(frozen=True, kw_only=True)
class DistillationObjective:
    """How the log-probabilities of student and teacher become advantages.

    Attributes:
        kl_coef: Factor of the advantages, larger than 0.
        discount: Weight g in [0, 1] of the future, ``A_t = sum_k g^k r_{t+k}``. 0 judges each token by itself, which
            is how the sources train; 1 also holds it responsible for all that comes after.
        clip: Largest difference of log-probabilities that counts, nats, larger than 0; None for no limit.

    Raises:
        ValueError: A number is none or out of range.
    """

    kl_coef: float = 1.0
    discount: float = 0.0
    clip: float | None = None

    def __post_init__(self) -> None:
        check_number("kl_coef", self.kl_coef, minimum=0.0, exclusive=True)
        check_number("discount", self.discount, minimum=0.0)
        if self.discount > 1:
            raise ValueError(f"discount={self.discount} must be at most 1.")
        if self.clip is not None:
            check_number("clip", self.clip, minimum=0.0, exclusive=True)

    def advantages(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The advantage of each token of a completion that the student sampled.

        Args:
            student: Its log-probabilities, (tokens,).
            teacher: The teacher's, of the same tokens, (tokens,).

        Returns:
            float32 (tokens,), without gradient.

        Raises:
            ValueError: The shapes differ.
        """
        if student.shape != teacher.shape:
            raise ValueError(
                f"student has {tuple(student.shape)} log-probabilities and teacher {tuple(teacher.shape)}; both are of "
                "the same tokens."
            )
        rewards = teacher.detach().double() - student.detach().double()
        if self.clip is not None:
            rewards = rewards.clamp(-self.clip, self.clip)
        rewards = self.kl_coef * rewards
        if self.discount:
            backwards = accumulate(rewards.flip(0).tolist(), lambda future, own: own + self.discount * future)
            rewards = torch.tensor(list(backwards), dtype=torch.float64).flip(0)
        return rewards.float()
