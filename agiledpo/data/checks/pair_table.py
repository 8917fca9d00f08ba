"""What is remembered of every pair while a dataset is read: digests and lengths, never texts."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agiledpo.data.digests import digest, exact, near, prompt_parts
from agiledpo.data.examples import Example

_BYTES = 8


@dataclass(frozen=True, slots=True, eq=False)
class PairColumns:
    """All pairs of a dataset, 60 bytes each.

    Attributes:
        row: (pairs,) int64, number of the row that the pair is of.
        prompt: (pairs,) uint64, digest of the prompt.
        pair: (pairs,) uint64, digest of prompt, chosen and rejected.
        swapped: (pairs,) uint64, the same with the completions swapped.
        near_prompt: (pairs,) uint64, digest of the prompt without regard to case and whitespace.
        near_pair: (pairs,) uint64, digest of the pair without regard to them.
        lengths: (3, pairs) int32, of prompt, chosen and rejected, in whatever unit they were added.
    """

    row: NDArray[np.int64]
    prompt: NDArray[np.uint64]
    pair: NDArray[np.uint64]
    swapped: NDArray[np.uint64]
    near_prompt: NDArray[np.uint64]
    near_pair: NDArray[np.uint64]
    lengths: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.row)


class PairTable:
    """Grows pair by pair."""

    def __init__(self) -> None:
        self._row = array("q")
        self._prompt, self._pair, self._swapped = array("Q"), array("Q"), array("Q")
        self._near_prompt, self._near_pair = array("Q"), array("Q")
        self._lengths = array("i")

    def add(self, row: int, example: Example, lengths: Sequence[int]) -> bool:
        """Remember a pair.

        Args:
            row: Number of its row.
            example: Prompt, chosen and rejected.
            lengths: Of the three.

        Returns:
            Whether the completions differ in nothing but case and whitespace.
        """
        told = prompt_parts(example)
        chosen, rejected = map(exact, example.completions)
        near_chosen, near_rejected = map(near, example.completions)
        prompt, near_prompt = digest(exact(example.prompt), told), digest(near(example.prompt), told)
        prompt_bytes, near_bytes = (number.to_bytes(_BYTES, "little") for number in (prompt, near_prompt))
        self._row.append(row)
        self._prompt.append(prompt)
        self._pair.append(digest(prompt_bytes, chosen, rejected))
        self._swapped.append(digest(prompt_bytes, rejected, chosen))
        self._near_prompt.append(near_prompt)
        self._near_pair.append(digest(near_bytes, near_chosen, near_rejected))
        self._lengths.extend(lengths)
        return near_chosen == near_rejected

    def columns(self) -> PairColumns:
        """The pairs so far, as views; none can be added after it."""
        return PairColumns(
            row=_view(self._row).view(np.int64),
            prompt=_view(self._prompt),
            pair=_view(self._pair),
            swapped=_view(self._swapped),
            near_prompt=_view(self._near_prompt),
            near_pair=_view(self._near_pair),
            lengths=np.array(self._lengths, dtype=np.int32).reshape(-1, 3).T,
        )


def _view(numbers: "array[int]") -> NDArray[np.uint64]:
    return np.frombuffer(numbers, dtype=np.uint64) if numbers else np.empty(0, dtype=np.uint64)
