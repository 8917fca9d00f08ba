"""Group-relative advantages: how much better a completion was than the others of its prompt."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from agiledpo.losses.checks import check_name, check_number

ADV_NORMS = ("mean_std", "mean_only")

# Spread of a group over its largest reward that is rounding: sums of the same parts in another order differ by as much.
_NOISE = 1e-12


def group_advantages(
    rewards: Sequence[Sequence[float]],
    *,
    adv_norm: str = "mean_std",
    eps: float = 1e-8,
    labels: Sequence[str] | None = None,
) -> list[Tensor]:
    """Hold each reward of a group against the mean of the group, which stands in for a value function.

    Formula: A_i = (r_i - mean(r)) / (std(r) + eps), with the standard deviation of a sample (over G - 1). A group whose
    rewards are all equal, or differ by no more than rounding (1e-12 of the largest), has advantages of exactly 0.

    GRPO: Shao et al. 2024, "DeepSeekMath", arXiv:2402.03300, section 4.1.2. Without the division by std(r), which gives
    nearly equal rewards as much say as widely different ones, Dr. GRPO: Liu et al. 2025, "Understanding R1-Zero-Like
    Training", arXiv:2503.20783.

    Args:
        rewards: Rewards of each group, G of them, which may differ from group to group.
        adv_norm: ``"mean_std"`` as above; ``"mean_only"`` leaves the division out.
        eps: Keeps differences that are only noise from becoming advantages of order 1, in the unit of the rewards.
        labels: What the groups are called, for messages.

    Returns:
        For each group its advantages, float32 (G,).

    Raises:
        ValueError: A group has fewer than two rewards, or one that is not finite; it is named.
    """
    check_name("adv_norm", adv_norm, ADV_NORMS)
    check_number("eps", eps, minimum=0.0)
    names = [f"group {number}" for number in range(len(rewards))] if labels is None else labels
    return [_advantages(group, name, adv_norm, eps) for group, name in zip(rewards, names, strict=True)]


def _advantages(group: Sequence[float], name: str, adv_norm: str, eps: float) -> Tensor:
    if len(group) < 2:
        raise ValueError(
            f"{name} has {len(group)} completion(s): nothing to compare its reward with, so no advantage. Sample with "
            "group_size of at least 2, or give advantages."
        )
    if not all(map(math.isfinite, group)):
        raise ValueError(
            f"{name} has the rewards {', '.join(f'{reward:g}' for reward in group)}; each must be a finite number. "
            "Look at the reward function, or give this row advantages."
        )
    values = torch.tensor(group, dtype=torch.float64)
    if bool(values.max() - values.min() <= _NOISE * values.abs().max()):
        return torch.zeros(len(group))
    advantages = values - values.mean()
    return (advantages / (values.std() + eps) if adv_norm == "mean_std" else advantages).float()
