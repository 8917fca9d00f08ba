"""What a file of rollouts holds, in some fifty bytes per rollout however long its texts are."""

import json
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from agiledpo.data.errors import DatasetError
from agiledpo.data.rollouts.errors import UnusableRolloutError
from agiledpo.data.rollouts.reading import (
    MultiStep,
    read_answer,
    read_parameters,
    read_prompt,
    read_record,
    read_reward,
)
from agiledpo.data.rollouts.rows import PairFormat, check_format

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_EXAMPLES = 3
_CANONICAL = json.JSONEncoder(ensure_ascii=False, check_circular=False, sort_keys=True, separators=(",", ":"))


@dataclass(slots=True)
class LeftOut:
    """Lines left out for one reason.

    Attributes:
        count: How many.
        lines: Numbers of the first ones, from 1.
    """

    count: int = 0
    lines: list[int] = field(default_factory=list)

    def add(self, line: int) -> None:
        """Count a line."""
        self.count += 1
        if len(self.lines) < _EXAMPLES:
            self.lines.append(line)


@dataclass(frozen=True)
class RolloutIndex:
    """The rollouts that pairs can be made of, in the order of the file.

    Attributes:
        offsets: (N,) int64, where the lines begin in the file.
        sizes: (N,) int64, their bytes.
        rewards: (N,) float64.
        prompts: (N,) int64, equal where the whole prompt is equal; numbered from 0 as they appear.
        completions: (N,) uint64, a digest: equal where the completions are equal.
        lines: Lines of the file, blank ones included.
        blank_lines: Lines without anything.
        final_only: Rollouts of which only the last message is used.
        left_out: What else is not among the N, by reason.
    """

    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    rewards: NDArray[np.float64]
    prompts: NDArray[np.int64]
    completions: NDArray[np.uint64]
    lines: int
    blank_lines: int
    final_only: int
    left_out: Mapping[str, LeftOut]


def index_rollouts(
    file: IO[bytes], *, name: str, multi_step: MultiStep, pair_format: PairFormat, skip_invalid: bool
) -> RolloutIndex:
    """Read a file once, line by line.

    Args:
        file: At its beginning.
        name: Its name, for messages.
        multi_step: What becomes of rollouts of more than one step.
        pair_format: What the pairs will be written as; a rollout that cannot be is invalid.
        skip_invalid: Count invalid lines instead of raising at the first.

    Raises:
        DatasetError: A line is invalid, or there is none at all.
    """
    offsets, sizes, rewards = array("q"), array("q"), array("d")
    prompt_digests, completion_digests = bytearray(), bytearray()
    left_out: dict[str, LeftOut] = {}
    offset = lines = blank_lines = final_only = 0
    # Rollouts of a prompt mostly follow one another, and their requests are equal.
    last_parameters: dict[str, Any] | None = None
    prompt_digest = b""
    for line in file:
        start = offset
        offset += len(line)
        lines += 1
        if lines == 1 and line.startswith(_BYTE_ORDER_MARK):
            start += len(_BYTE_ORDER_MARK)
            line = line[len(_BYTE_ORDER_MARK) :]
        if line.isspace() or not line:
            blank_lines += 1
            continue
        try:
            record = read_record(line)
            parameters = read_parameters(record)
            reward = read_reward(record)
            answer = read_answer(record, multi_step)
            if parameters != last_parameters:
                last_parameters = None
                prompt = read_prompt(parameters)
                check_format(pair_format, prompt)
                prompt_digest = _digest([prompt.messages, prompt.tools], 16, "input")
                last_parameters = parameters
            if answer.left_out is not None:
                left_out.setdefault(answer.left_out, LeftOut()).add(lines)
                continue
            check_format(pair_format, prompt, answer)
            completion_digest = _digest(answer.completion, 8, "output")
        except UnusableRolloutError as error:
            if not skip_invalid:
                raise error.at(name, lines) from None
            left_out.setdefault(error.reason, LeftOut()).add(lines)
            continue
        offsets.append(start)
        sizes.append(offset - start)
        rewards.append(reward)
        prompt_digests += prompt_digest
        completion_digests += completion_digest
        final_only += answer.final_only
    if lines == blank_lines:
        raise DatasetError("the file holds no rollouts", remedy="Check what wrote it.", dataset="rollouts", file=name)
    return RolloutIndex(
        offsets=np.frombuffer(offsets, dtype=np.int64),
        sizes=np.frombuffer(sizes, dtype=np.int64),
        rewards=np.frombuffer(rewards, dtype=np.float64),
        prompts=_numbered(np.frombuffer(bytes(prompt_digests), dtype=np.uint64).reshape(-1, 2)),
        completions=np.frombuffer(bytes(completion_digests), dtype=np.uint64),
        lines=lines,
        blank_lines=blank_lines,
        final_only=final_only,
        left_out=left_out,
    )


def _digest(value: Any, size: int, reason: str) -> bytes:
    try:
        return blake2b(_CANONICAL.encode(value).encode(), digest_size=size).digest()
    except UnicodeEncodeError:
        raise UnusableRolloutError(
            reason,
            reason,
            "its text holds half of a surrogate pair, which is no character",
            "Text was cut inside a character: write it again, or drop such rollouts.",
        ) from None


def _numbered(digests: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Number equal rows of an (N, 2) array alike, from 0 in the order in which they appear."""
    order = np.lexsort((digests[:, 1], digests[:, 0]))
    ordered = digests[order]
    new = np.ones(len(digests), dtype=bool)
    new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    runs = np.cumsum(new) - 1
    # The sort is stable: the first of a run is the earliest.
    earliest = order[new]
    rank = np.empty(len(earliest), dtype=np.int64)
    rank[np.argsort(earliest)] = np.arange(len(earliest))
    numbers = np.empty(len(digests), dtype=np.int64)
    numbers[order] = rank[runs]
    return numbers
