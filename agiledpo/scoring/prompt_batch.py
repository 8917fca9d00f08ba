"""What every batch is: prompts with completions, as ragged token sequences."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, ClassVar, Self, cast

from torch import Tensor


class PromptBatch(ABC):
    """B prompts with their completions, as a dataclass whose fields are columns of B values.

    Attributes:
        KEYS: What an environment's batch has to hold.
        prompts: Prompt tokens that all completions of a row share; B int64 tensors (prompt tokens,).
        labels: Where each row comes from, for messages ("train row 17").
    """

    KEYS: ClassVar[Sequence[str]]

    prompts: Sequence[Tensor]
    labels: Sequence[str]

    @property
    @abstractmethod
    def numbered(self) -> Sequence[tuple[int, Tensor]]:
        """All completions in the order in which their scores come, each with the place of its prompt."""

    @classmethod
    @abstractmethod
    def from_experiences(cls, experiences: Mapping[str, Any]) -> Self:
        """Read what an environment yields."""

    def __len__(self) -> int:
        return len(self.prompts)

    def slice(self, start: int, stop: int) -> Self:
        """Rows ``start`` to ``stop``."""
        return type(self)(*(column[start:stop] for column in vars(self).values()))

    def select(self, places: Sequence[int]) -> Self:
        """The rows at some places, in that order."""
        return type(self)(*([column[place] for place in places] for column in vars(self).values()))

    def spans(self, size: int) -> Iterator[tuple[int, int]]:
        """Cut into consecutive (start, stop) spans of at most ``size`` rows."""
        return ((start, min(start + size, len(self))) for start in range(0, len(self), size))

    @classmethod
    def concat(cls, batches: Sequence[Self]) -> Self:
        """Put several batches one after the other."""
        return cls(*([x for batch in batches for x in vars(batch)[field.name]] for field in fields(cast(Any, cls))))

    @property
    def tokens(self) -> int:
        """Number of tokens in all rows, a shared prompt counted once."""
        return sum(map(len, self.prompts)) + self.completion_tokens

    @property
    def completion_tokens(self) -> int:
        """Number of tokens in all completions."""
        return sum(len(ids) for _, ids in self.numbered)

    @property
    def row_tokens(self) -> list[int]:
        """Number of tokens in each row, a shared prompt counted once."""
        counts = [len(prompt) for prompt in self.prompts]
        for place, ids in self.numbered:
            counts[place] += len(ids)
        return counts

    @property
    def largest_token_id(self) -> int:
        """Largest token id of the batch."""
        return max(int(ids.max()) for ids in (*self.prompts, *(ids for _, ids in self.numbered)))


class SidedBatch(PromptBatch):
    """B prompts with k completions each, which are numbered side by side: all first ones, then all second ones."""

    @property
    @abstractmethod
    def sides(self) -> tuple[Sequence[Tensor], ...]:
        """The completions: k columns of B int64 tensors (completion tokens,)."""

    @property
    def numbered(self) -> Sequence[tuple[int, Tensor]]:
        """All completions side by side, each with the place of its prompt."""
        return [(place, ids) for side in self.sides for place, ids in enumerate(side)]


def row_labels(experiences: Mapping[str, Any], rows: int, *, noun: str) -> list[str]:
    """Where the rows of an environment's batch come from.

    Args:
        experiences: Holds ``row`` (B,) and ``split``, or neither.
        rows: B.
        noun: What a row is called where its number is not known.
    """
    if "row" not in experiences:
        return [f"{noun} {i} of the batch" for i in range(rows)]
    split = f"{experiences['split']} " if "split" in experiences else ""
    return [f"{split}row {int(row)}" for row in experiences["row"]]
