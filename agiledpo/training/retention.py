"""Which checkpoints of a run are kept."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from agiledpo.losses.checks import check_whole_number


class Saved(NamedTuple):
    """A checkpoint of a run.

    Attributes:
        path: Its directory.
        rows: Rows that each agent had learned from.
        metric: What it is judged by; NaN if that is not known.
    """

    path: Path
    rows: int
    metric: float


@dataclass(frozen=True)
class Retention:
    """Which checkpoints of a run are kept: the latest, and the best.

    Args:
        keep_last: How many of the latest; None keeps all.
        keep_best: How many of the best beside them.
        metric_name: What they are judged by: ``"fitness"``, or a metric that the algorithm measures on the test split,
            such as ``"loss"`` or ``"rewards/margins"``, or on a validation set, such as ``"validation-helpful_loss"``;
            that of the fittest agent counts. A prefix ``"val:"``, as NeMo RL writes it, is left out.
        higher_is_better: Whether a larger value of it is better.

    Raises:
        ValueError: A number is below its least.
    """

    keep_last: int | None = 2
    keep_best: int = 0
    metric_name: str = "fitness"
    higher_is_better: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "metric_name", self.metric_name.removeprefix("val:"))
        if self.keep_last is not None:
            # The newest is what a run is resumed from.
            check_whole_number("keep_last", self.keep_last)
        if isinstance(self.keep_best, bool) or not isinstance(self.keep_best, int) or self.keep_best < 0:
            raise ValueError(f"keep_best={self.keep_best!r} must be a whole number of at least 0.")

    def expendable(self, saved: Sequence[Saved]) -> list[Path]:
        """The checkpoints that may go.

        Args:
            saved: All there are, oldest first.
        """
        if self.keep_last is None:
            return []
        ranked = sorted(saved, key=lambda entry: (self._goodness(entry.metric), entry.rows), reverse=True)
        kept = {entry.path for entry in (*saved[-self.keep_last :], *ranked[: self.keep_best])}
        return [entry.path for entry in saved if entry.path not in kept]

    def _goodness(self, metric: float) -> float:
        if math.isnan(metric):
            return -math.inf
        return metric if self.higher_is_better else -metric
