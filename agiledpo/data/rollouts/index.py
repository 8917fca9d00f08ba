"""What a file of rollouts holds, in some fifty bytes per rollout however long its texts are."""

import json
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from agiledpo.data.errors import DatasetError
from agiledpo.data.rollouts.errors import UnusableRolloutError
from agiledpo.data.rollouts.reading import (
    PARAMETERS,
    MultiStep,
    Prompt,
    read_answer,
    read_parameters,
    read_prompt,
    read_record,
    read_reward,
)
from agiledpo.data.rollouts.rows import PairFormat, check_format

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_EXAMPLES = 3
_PLAIN = json.JSONEncoder(ensure_ascii=False, check_circular=False)
_CANONICAL = json.JSONEncoder(
    ensure_ascii=False, check_circular=False, allow_nan=False, sort_keys=True, separators=(",", ":")
)


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
    lines = blank_lines = final_only = 0
    requests = _Requests(pair_format)
    for start, line in _lines(file):
        lines += 1
        if line.isspace() or not line:
            blank_lines += 1
            continue
        try:
            entry = _read(line, requests, multi_step)
        except UnusableRolloutError as error:
            if not skip_invalid:
                raise error.at(name, lines) from None
            entry = error.reason
        if isinstance(entry, str):
            left_out.setdefault(entry, LeftOut()).add(lines)
            continue
        offsets.append(start)
        sizes.append(len(line))
        rewards.append(entry.reward)
        prompt_digests += entry.prompt
        completion_digests += entry.completion
        final_only += entry.final_only
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


@dataclass(frozen=True, slots=True)
class _Entry:
    """What is kept of a line.

    Attributes:
        reward: Its reward.
        prompt: Digest of the prompt, 16 bytes.
        completion: Digest of the completion, 8 bytes.
        final_only: Only the last message of the rollout is used.
    """

    reward: float
    prompt: bytes
    completion: bytes
    final_only: bool


class _Requests:
    """Prompts of one line after another. Rollouts of a prompt mostly follow one another, and their requests are equal.

    Args:
        pair_format: What the pairs will be written as.
    """

    def __init__(self, pair_format: PairFormat) -> None:
        self.pair_format = pair_format
        self._text: str | None = None
        self._read: tuple[Prompt, bytes]

    def read(self, parameters: Mapping[str, Any]) -> tuple[Prompt, bytes]:
        """The prompt of a request, and its digest.

        Raises:
            UnusableRolloutError: It is malformed, or cannot be written in the format.
        """
        # As text: True, 1 and 1.0 are equal in Python, and not in a tool.
        text = _encode(_PLAIN, parameters, "input", PARAMETERS)
        if text != self._text:
            self._text = None
            prompt = read_prompt(parameters)
            check_format(self.pair_format, prompt)
            messages = _encode(_CANONICAL, prompt.messages, "input", f"{PARAMETERS}.input")
            tools = _encode(_CANONICAL, prompt.tools, "tools", f"{PARAMETERS}.tools")
            self._read = prompt, _digest(f"[{messages},{tools}]", 16, "input", PARAMETERS)
            self._text = text
        return self._read


def _lines(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """Where each line begins, and the line, without the mark of the byte order before the first."""
    offset = 0
    for line in file:
        mark = len(_BYTE_ORDER_MARK) if offset == 0 and line.startswith(_BYTE_ORDER_MARK) else 0
        yield offset + mark, line[mark:]
        offset += len(line)


def _read(line: bytes, requests: _Requests, multi_step: MultiStep) -> _Entry | str:
    """Read a line, or say why it is left out."""
    record = read_record(line)
    parameters = read_parameters(record)
    reward = read_reward(record)
    answer = read_answer(record, multi_step)
    prompt, prompt_digest = requests.read(parameters)
    if answer.left_out is not None:
        return answer.left_out
    check_format(requests.pair_format, prompt, answer)
    completion = _digest(_encode(_CANONICAL, answer.completion, "output", "output"), 8, "output", "output")
    return _Entry(reward, prompt_digest, completion, answer.final_only)


def _encode(encoder: json.JSONEncoder, value: Any, reason: str, field: str) -> str:
    try:
        return encoder.encode(value)
    except ValueError:
        problem = "it holds NaN or Infinity, which JSON does not have"
        remedy = "Write null, a text or a finite number instead, or leave such rollouts out: on_invalid='skip'."
    except RecursionError:
        problem = "it is nested too deeply"
        remedy = "Write it flatter, or leave such rollouts out: on_invalid='skip'."
    raise UnusableRolloutError(reason, field, problem, remedy)


def _digest(text: str, size: int, reason: str, field: str) -> bytes:
    try:
        return blake2b(text.encode(), digest_size=size).digest()
    except UnicodeEncodeError:
        raise UnusableRolloutError(
            reason,
            field,
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
