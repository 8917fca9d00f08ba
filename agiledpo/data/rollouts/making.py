"""Make preference pairs of the rollouts that NeMo Gym wrote."""

import math
import warnings
from dataclasses import dataclass
from enum import StrEnum
from numbers import Integral, Real
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from agiledpo.data.rollouts.index import RolloutIndex, index_rollouts
from agiledpo.data.rollouts.reading import MultiStep
from agiledpo.data.rollouts.rows import PairFormat
from agiledpo.data.rollouts.source import check_unchanged, opened, state
from agiledpo.data.rollouts.statistics import Distribution, PairStatistics
from agiledpo.data.rollouts.strategies import Pairing, Strategy, pair_within_prompts
from agiledpo.data.rollouts.stratified import stratified
from agiledpo.data.rollouts.writing import check_output, drafted, write_pairs

_Option = TypeVar("_Option", bound=StrEnum)


def make_pairs(
    input: str | Path,
    output: str | Path,
    *,
    strategy: Strategy | str = Strategy.SAME_PROMPT,
    min_gap: float = 0.2,
    high_threshold: float = 0.7,
    low_threshold: float = 0.4,
    max_pairs: int | None = None,
    seed: int = 42,
    format: PairFormat | str = PairFormat.MESSAGES,
    multi_step: MultiStep | str = MultiStep.SKIP,
    on_invalid: str = "raise",
    overwrite: bool = False,
) -> PairStatistics:
    """Make preference pairs of rollouts.

    Two rollouts are of the same prompt if the whole request is the same: all messages, the instructions and the tools.
    The file is read once from beginning to end, and then the lines that became pairs once more; what is in memory is
    some fifty bytes per rollout, and for a moment some two hundred while they are ranked, however long the texts are.

    Args:
        input: File with one rollout per line: `responses_create_params.input`, `output` (or `response.output`) and
            `reward`. It may be compressed with gzip: it is then decompressed into a temporary file.
        output: File to write, one pair per line, complete or not at all. Without pairs none is written, and one that is
            there is left as it is.
        strategy: Which rollouts become pairs; see :class:`Strategy`.
        min_gap: Smallest difference of rewards, at least 0. Rounding is forgiven; a tie is never a pair.
        high_threshold: For "stratified": smallest reward of a chosen rollout.
        low_threshold: For "stratified": largest reward of a rejected rollout; less than `high_threshold`.
        max_pairs: Most pairs, chosen at random; None for all, but with "stratified" as many as there are chosen ones.
        seed: Of that choice; not negative.
        format: "messages", "text" (only prompts of a single user message) or "ranked" (NeMo RL); see
            :class:`PairFormat`.
        multi_step: "skip" rollouts whose output is more than one message, or use their "final" one: the pair then lacks
            what led to it.
        on_invalid: "raise" at the first invalid line, or "skip" such lines and count them.
        overwrite: Replace an output that exists, if there are pairs.

    Returns:
        What became of the rollouts. `pairs` is 0 if there are none.

    Raises:
        DatasetError: The file or one of its lines is not what it should be.
        FileExistsError: The output exists.
        OSError: The input cannot be read, or the output not be written.
        TypeError: An argument is no number where it should be one.
        ValueError: An argument is out of range, or the output is the input.

    Warns:
        UserWarning: There are no pairs, or an earlier file is left in their place, prompts of pairs differ, or lines were left out.
    """
    choice = Choice(
        strategy=_member(Strategy, "strategy", strategy),
        min_gap=min_gap,
        high_threshold=high_threshold,
        low_threshold=low_threshold,
        max_pairs=max_pairs,
        seed=seed,
    )
    pair_format = _member(PairFormat, "format", format)
    steps = _member(MultiStep, "multi_step", multi_step)
    if on_invalid not in ("raise", "skip"):
        raise ValueError(f"on_invalid must be 'raise' or 'skip', got {on_invalid!r}.")
    source, target = Path(input), Path(output)
    if source.is_dir():
        raise IsADirectoryError(f"input ({source}) is a directory; name one file of rollouts.")
    if not source.exists():
        raise FileNotFoundError(f"input ({source}) does not exist; check the path.")
    check_output(target, source, overwrite=overwrite)
    with opened(source) as file:
        before = state(source)
        index = index_rollouts(
            file,
            name=str(source),
            multi_step=steps,
            pair_format=pair_format,
            skip_invalid=on_invalid == "skip",
        )
        pairing = choice.pairing(index)
        chosen, rejected = pairing.chosen, pairing.rejected
        # All figures come before the file does: what fails here leaves nothing behind.
        rollouts_of_prompts = np.bincount(index.prompts)
        gaps = index.rewards[chosen] - index.rewards[rejected]
        statistics = PairStatistics(
            input=str(source),
            output=str(target) if len(chosen) else None,
            left_in_place=str(target) if not len(chosen) and target.exists() else None,
            strategy=choice.strategy.value,
            min_gap=float(min_gap),
            lines=index.lines,
            blank_lines=index.blank_lines,
            left_out=index.left_out,
            rollouts=len(index.rewards),
            final_only=index.final_only,
            prompts=len(rollouts_of_prompts),
            single_rollout_prompts=int((rollouts_of_prompts == 1).sum()),
            ties=pairing.ties,
            small_gaps=pairing.small_gaps,
            identical_completions=pairing.identical,
            over_limit=pairing.over_limit,
            pairs=len(chosen),
            prompts_differ=int((index.prompts[chosen] != index.prompts[rejected]).sum()),
            gaps=Distribution.of(gaps),
            chosen_rewards=Distribution.of(index.rewards[chosen]),
            rejected_rewards=Distribution.of(index.rewards[rejected]),
            rewards=Distribution.of(index.rewards),
            spreads=Distribution.of(_spreads(index, rollouts_of_prompts)),
        )
        if len(chosen):
            with drafted(target, overwrite=overwrite) as draft:
                try:
                    write_pairs(
                        file,
                        index,
                        chosen,
                        rejected,
                        draft,
                        name=str(source),
                        pair_format=pair_format,
                        multi_step=steps,
                        across_prompts=choice.strategy is Strategy.STRATIFIED,
                    )
                except ValueError:
                    # A file that was written to holds anything: that it was is what the user should know.
                    check_unchanged(source, before)
                    raise
                check_unchanged(source, before)
    for sentence in statistics.warnings():
        warnings.warn(sentence, UserWarning, stacklevel=2)
    return statistics


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


def _spreads(index: RolloutIndex, rollouts_of_prompts: NDArray[np.int64]) -> NDArray[np.float64]:
    best = np.full(len(rollouts_of_prompts), -np.inf)
    worst = np.full(len(rollouts_of_prompts), np.inf)
    np.maximum.at(best, index.prompts, index.rewards)
    np.minimum.at(worst, index.prompts, index.rewards)
    return (best - worst)[rollouts_of_prompts > 1]


def _member(kind: type[_Option], name: str, value: str) -> _Option:
    try:
        return kind(value)
    except ValueError:
        raise ValueError(f"{name} must be one of {', '.join(kind)}, got {value!r}.") from None
