"""What became of a file of rollouts."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from agiledpo.data.rollouts.index import LeftOut
from agiledpo.data.rollouts.ranking import ROUNDING

QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
_BINS = 10


@dataclass(frozen=True)
class Distribution:
    """How some numbers are distributed.

    Attributes:
        mean: Their mean.
        quantiles: The values at `QUANTILES`, from the smallest to the largest, interpolated linearly.
        edges: The ends of ten bins of equal width, eleven of them; two where all values are equal up to rounding.
        counts: Values in each bin; the last one holds its upper end too.
    """

    mean: float
    quantiles: tuple[float, ...]
    edges: tuple[float, ...]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> Self | None:
        """The distribution of values, or None if there are none."""
        if not len(values):
            return None
        low, high = values.min(), values.max()
        if high - low <= max(ROUNDING * max(abs(low), abs(high)), np.finfo(np.float64).tiny):
            edges, counts = np.array([low, high]), np.array([len(values)])
        else:
            counts, edges = np.histogram(values, bins=_BINS)
        quantiles = np.quantile(values, QUANTILES)
        return cls(float(values.mean()), _floats(quantiles), _floats(edges), tuple(int(count) for count in counts))


@dataclass(frozen=True)
class PairStatistics:
    """What became of a file of rollouts.

    Attributes:
        input: The file of rollouts.
        output: The file of pairs, or None if there is no pair and so nothing was written.
        left_in_place: A file at the place of the output that is of an earlier run, and was left because there is no
            pair; or None.
        strategy: How pairs were chosen.
        min_gap: Smallest gap that counted.
        lines: Lines of the input.
        blank_lines: Lines without anything.
        left_out: Lines that are no usable rollout, by reason, with the numbers of the first ones.
        rollouts: Usable rollouts.
        final_only: Rollouts of several steps, of which only the last message was used.
        prompts: Different prompts of the usable rollouts.
        single_rollout_prompts: Prompts with one usable rollout only.
        ties: Candidates for pairs with equal rewards. What a strategy's candidates are is said where it is defined.
        small_gaps: Candidates whose gap is smaller than `min_gap`.
        identical_completions: Candidates with a clear gap that cannot be made of two different completions.
        over_limit: Pairs left out because of `max_pairs`.
        pairs: Pairs written.
        prompts_differ: Pairs among them whose rejected completion answers another prompt.
        gaps: Of the pairs' rewards; None without pairs.
        chosen_rewards: The chosen ones'.
        rejected_rewards: The rejected ones'.
        rewards: Of all usable rollouts.
        spreads: Best minus worst reward of each prompt with two rollouts or more.
    """

    input: str
    output: str | None
    left_in_place: str | None
    strategy: str
    min_gap: float
    lines: int
    blank_lines: int
    left_out: Mapping[str, LeftOut]
    rollouts: int
    final_only: int
    prompts: int
    single_rollout_prompts: int
    ties: int
    small_gaps: int
    identical_completions: int
    over_limit: int
    pairs: int
    prompts_differ: int
    gaps: Distribution | None
    chosen_rewards: Distribution | None
    rejected_rewards: Distribution | None
    rewards: Distribution | None
    spreads: Distribution | None

    def to_dict(self) -> dict[str, Any]:
        """All figures as plain data, ready for JSON."""
        return asdict(self)

    def warnings(self) -> list[str]:
        """What a user should know before training on the pairs, one sentence or two each."""
        sentences = [] if self.pairs else [self.advice()]
        if self.left_in_place is not None:
            sentences.append(f"The file {self.left_in_place} was left as it was: it is not of these rollouts.")
        for reason, entry in self.left_out.items():
            lines = ", ".join(str(line) for line in entry.lines) + (
                " and others" if entry.count > len(entry.lines) else ""
            )
            sentences.append(f"{entry.count} of {self.lines} lines are left out ({reason}): {lines}.")
        if self.prompts_differ:
            sentences.append(
                f"In {self.prompts_differ} of {self.pairs} pairs the rejected completion answers another prompt than "
                f"the chosen one, whose prompt is used: they teach what good answers look like, not which one is right."
            )
        if self.final_only:
            sentences.append(
                f"Of {self.final_only} of {self.rollouts} rollouts only the last message is used: the prompts lack "
                f"the calls and results that led to it."
            )
        return sentences

    def advice(self) -> str:
        """Why there are no pairs, and what would make some."""
        if self.rollouts == 0:
            causes = ", ".join(f"{reason} {entry.count}" for reason, entry in self.left_out.items())
            remedy = (
                "Use multi_step='final' (--multi-step final) to use the last message of each, if that is what you want."
            )
            return f"{self.input} gives no pairs: none of its rollouts is usable ({causes}). " + (
                remedy if "multi_step" in self.left_out else "Check what wrote them."
            )
        assert self.rewards is not None
        facts = f"rewards lie between {self.rewards.quantiles[0]:.4g} and {self.rewards.quantiles[-1]:.4g}"
        if self.identical_completions:
            facts += f", and {self.identical_completions} pairs of clearly different reward have the same completion"
            remedy = "Check the rewards: they tell equal texts apart"
        elif self.strategy == "stratified":
            remedy = "Move high_threshold and low_threshold into that range, or lower min_gap"
        elif self.spreads is None:
            facts += " and no prompt has two rollouts"
            remedy = "Collect several rollouts per prompt, or use strategy='stratified'"
        elif self.spreads.quantiles[-1] == 0:
            facts += ", and all rollouts of a prompt have the same"
            remedy = "Collect more rollouts per prompt, or of harder or easier prompts"
        else:
            facts += f", and the largest gap within a prompt is {self.spreads.quantiles[-1]:.4g}"
            facts += f" (median {self.spreads.quantiles[QUANTILES.index(0.5)]:.4g})"
            remedy = "Lower min_gap"
        return f"{self.input} gives no pairs with min_gap={self.min_gap:g}: {facts}. {remedy}."


def _floats(values: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
