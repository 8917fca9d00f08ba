"""Write the pairs: the file is complete or absent."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from io import TextIOWrapper
from pathlib import Path
from typing import IO

from agiledpo.data.rollouts.errors import UnusableRolloutError
from agiledpo.data.rollouts.index import RolloutIndex
from agiledpo.data.rollouts.reading import (
    Answer,
    MultiStep,
    Prompt,
    read_answer,
    read_parameters,
    read_prompt,
    read_record,
)
from agiledpo.data.rollouts.rows import PairFormat, pair_row
from agiledpo.data.rollouts.strategies import Pairing
from agiledpo.disk import check_place, complete_or_absent

# Rollouts kept in memory while pairs are written: those of one prompt are mostly used together.
_RECENT = 64


def check_output(output: Path, source: Path, *, overwrite: bool) -> None:
    """Refuse to write over something, or where nothing can be written.

    Raises:
        FileExistsError: There is a file, and it shall not be overwritten.
        OSError: Nothing can be written there.
        ValueError: It is the input, or would be compressed by its name.
    """
    if output.suffix in (".gz", ".zst", ".xz", ".bz2"):
        raise ValueError(
            f"output ({output}) is written as plain text; leave {output.suffix} away and compress it later."
        )
    if output.exists() and source.exists() and output.samefile(source):
        raise ValueError(f"output ({output}) is the input; choose another file.")
    check_place(output, "output", overwrite=overwrite)


def write_pairs(
    file: IO[bytes],
    index: RolloutIndex,
    pairing: Pairing,
    draft: IO[str],
    *,
    name: str,
    pair_format: PairFormat,
    multi_step: MultiStep,
    across_prompts: bool,
) -> None:
    """Read the lines of the pairs again, and write one row for each.

    Args:
        file: The rollouts.
        index: Of that file.
        pairing: The pairs.
        draft: Where the rows go.
        name: Of the rollouts, for messages.
        pair_format: How they are written.
        multi_step: As when the index was made.
        across_prompts: The prompts of a pair may differ: every row says whether they do.

    Raises:
        DatasetError: A line is not what it was when the index was made.
    """

    @lru_cache(maxsize=_RECENT)
    def rollout(number: int) -> tuple[Prompt, Answer]:
        offset = int(index.offsets[number])
        file.seek(offset)
        try:
            record = read_record(file.read(int(index.sizes[number])))
            answer = read_answer(record, multi_step)
            if answer.left_out is not None:
                raise UnusableRolloutError("changed", "output", "it changed", "Make the pairs again.")
            return read_prompt(read_parameters(record)), answer
        except UnusableRolloutError as error:
            raise error.at(name, _line_at(file, offset)) from None

    encoder = json.JSONEncoder(ensure_ascii=False, check_circular=False, allow_nan=False)
    differ = (index.prompts[pairing.chosen] != index.prompts[pairing.rejected]).tolist()
    for better, worse, differs in zip(pairing.chosen.tolist(), pairing.rejected.tolist(), differ, strict=True):
        prompt, good = rollout(better)
        row = pair_row(
            pair_format,
            prompt,
            good,
            rollout(worse)[1],
            chosen_reward=float(index.rewards[better]),
            rejected_reward=float(index.rewards[worse]),
            prompts_differ=differs if across_prompts else None,
        )
        draft.write(encoder.encode(row) + "\n")


@contextmanager
def drafted(path: Path, *, overwrite: bool) -> Iterator[IO[str]]:
    """Write a text file that is complete or absent: beside its place, and renamed when the block ends without an error.

    Args:
        path: Its place. The directory is made.
        overwrite: Replace a file that appeared there meanwhile.

    Yields:
        The file to write to.

    Raises:
        FileExistsError: Something appeared there meanwhile.
        OSError: It cannot be written.
    """
    with complete_or_absent(path, overwrite=overwrite) as file:
        draft = TextIOWrapper(file, "utf-8", newline="\n")
        try:
            yield draft
        finally:
            draft.detach()  # what it holds goes into the file, which stays open


def _line_at(file: IO[bytes], offset: int) -> int:
    """Number of the line, from 1, that begins at an offset."""
    file.seek(0)
    lines, missing = 1, offset
    while missing and (part := file.read(min(missing, 1 << 20))):
        lines += part.count(b"\n")
        missing -= len(part)
    return lines
