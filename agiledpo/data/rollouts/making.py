"""Make preference pairs of the rollouts that NeMo Gym wrote."""

import warnings
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from agiledpo.data.rollouts.choice import Choice
from agiledpo.data.rollouts.counting import count_pairs
from agiledpo.data.rollouts.index import index_rollouts
from agiledpo.data.rollouts.reading import MultiStep
from agiledpo.data.rollouts.rows import PairFormat
from agiledpo.data.rollouts.source import check_source, check_unchanged, opened, state
from agiledpo.data.rollouts.statistics import PairStatistics
from agiledpo.data.rollouts.strategies import Strategy
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
        UserWarning: There are no pairs, perhaps with an earlier file left in their place; prompts of pairs differ; or
            lines were left out.
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
    check_source(source)
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
        # All figures come before the file does: what fails here leaves nothing behind.
        statistics = count_pairs(index, pairing, source, target, strategy=choice.strategy, min_gap=min_gap)
        if statistics.pairs:
            with drafted(target, overwrite=overwrite) as draft:
                try:
                    write_pairs(
                        file,
                        index,
                        pairing,
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


def _member(kind: type[_Option], name: str, value: str) -> _Option:
    try:
        return kind(value)
    except ValueError:
        raise ValueError(f"{name} must be one of {', '.join(kind)}, got {value!r}.") from None
