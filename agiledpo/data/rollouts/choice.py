"""Which rollouts of a file become pairs, as the user says it."""

import math
from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np

from agiledpo.data.rollouts.index import RolloutIndex
from agiledpo.data.rollouts.strategies import Pairing, Strategy, pair_within_prompts
from agiledpo.data.rollouts.stratified import stratified


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which rollouts become pairs; the arguments of :func:`make_pairs` that decide it, checked.

    Thresholds are read, and so checked, only where they apply.

    Raises:
        TypeError: One of them is no number.
        ValueError: One of them is out of range.
    """

    strategy: Strategy
    min_gap: float
    high_threshold: float
    low_threshold: float
    max_pairs: int | None
    seed: int

    def __post_init__(self) -> None:
        numbers = {"min_gap": self.min_gap}
        if self.strategy is Strategy.STRATIFIED:
            numbers |= {"high_threshold": self.high_threshold, "low_threshold": self.low_threshold}
        for name, value in numbers.items():
            if isinstance(value, bool) or not isinstance(value, Real):
                raise TypeError(f"{name} must be a number, got {value!r}.")
            if not math.isfinite(value):
                raise ValueError(f"{name} must be a finite number, got {value}.")
        for name, count in {"max_pairs": self.max_pairs, "seed": self.seed}.items():
            if (count is not None or name == "seed") and (isinstance(count, bool) or not isinstance(count, Integral)):
                raise TypeError(f"{name} must be an integer, got {count!r}.")
        if self.min_gap < 0:
            raise ValueError(f"min_gap must not be negative, got {self.min_gap}; 0 takes every pair that is no tie.")
        if self.strategy is Strategy.STRATIFIED and self.low_threshold >= self.high_threshold:
            raise ValueError(
                f"low_threshold ({self.low_threshold}) must be less than high_threshold ({self.high_threshold}): a "
                f"rollout cannot be both chosen and rejected."
            )
        if self.max_pairs is not None and self.max_pairs < 1:
            raise ValueError(f"max_pairs must be at least 1, got {self.max_pairs}; leave it away for the default.")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}.")

    def pairing(self, index: RolloutIndex) -> Pairing:
        """Choose the pairs of a file.

        Raises:
            ValueError: There are too many to list.
        """
        rng = np.random.default_rng(self.seed)
        if self.strategy is Strategy.STRATIFIED:
            return stratified(
                index.prompts,
                index.rewards,
                index.completions,
                high_threshold=self.high_threshold,
                low_threshold=self.low_threshold,
                min_gap=self.min_gap,
                max_pairs=self.max_pairs,
                rng=rng,
            )
        return pair_within_prompts(
            self.strategy,
            index.prompts,
            index.rewards,
            index.completions,
            min_gap=self.min_gap,
            max_pairs=self.max_pairs,
            rng=rng,
        )
