"""Learning-rate schedule: linear warm-up, then a cosine down to nothing."""

from dataclasses import dataclass

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR


@dataclass(frozen=True)
class CosineLRScheduleConfig:
    """A warm-up and cosine schedule.

    Args:
        num_epochs: Length of the schedule in optimizer steps (AgileRL's name).
        warmup_proportion: Share of it, in [0, 1), during which the rate rises linearly.

    Raises:
        ValueError: A value is outside its range.
    """

    num_epochs: int
    warmup_proportion: float

    def __post_init__(self) -> None:
        if self.num_epochs < 2:
            raise ValueError(f"num_epochs={self.num_epochs}; a schedule needs at least 2 steps.")
        if not 0 <= self.warmup_proportion < 1:
            raise ValueError(f"warmup_proportion={self.warmup_proportion} is outside [0, 1).")


def cosine_schedule(optimizer: Optimizer, config: CosineLRScheduleConfig) -> SequentialLR:
    """Attach a warm-up and cosine schedule to an optimizer; call its ``step`` after each optimizer step.

    Args:
        optimizer: Its present learning rates are the peak of the schedule.
        config: Length and warm-up.
    """
    warmup = max(1, round(config.num_epochs * config.warmup_proportion))
    rise = LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup)
    fall = CosineAnnealingLR(optimizer, T_max=max(1, config.num_epochs - warmup))
    return SequentialLR(optimizer, [rise, fall], milestones=[warmup])
