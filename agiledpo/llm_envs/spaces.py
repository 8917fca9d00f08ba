"""Gymnasium spaces for what gymnasium lacks: token tensors, lengths and texts, in any number.

Sampling draws from the space's own generator; `seed` makes it repeatable. The number of rows and tokens of a sample is
chosen when the space is made, so that the samples of several spaces in a `gymnasium.spaces.Dict` fit together.
"""

import string
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch

_LETTERS = np.array(list(string.ascii_lowercase + " "))


class _BatchSpace(gymnasium.Space[Any], ABC):
    """A space whose elements have as many rows as they please."""

    @property
    def is_np_flattenable(self) -> bool:
        """False: elements have no fixed size."""
        return False

    def sample(self, mask: Any | None = None, probability: Any | None = None) -> Any:
        """Draw an element.

        Raises:
            ValueError: A mask or a probability is given; there is nothing they could apply to.
        """
        if mask is not None or probability is not None:
            raise ValueError(f"{type(self).__name__} samples neither with a mask nor with probabilities.")
        return self._draw()

    @abstractmethod
    def _draw(self) -> Any:
        """Draw an element from the space's own generator."""


class _TensorSpace(_BatchSpace):
    """A space of int64 tensors."""

    def to_jsonable(self, sample_n: Iterable[torch.Tensor]) -> list[Any]:
        """Nested lists of each tensor."""
        return [sample.tolist() for sample in sample_n]

    def from_jsonable(self, sample_n: Sequence[Any]) -> list[torch.Tensor]:
        """Tensors from nested lists."""
        return [torch.tensor(sample, dtype=torch.int64) for sample in sample_n]


class TokenSpace(_TensorSpace):
    """Tensors of token ids, or with `size=2` masks: int64, (B, T) for any B and T, values in [0, size).

    Args:
        size: Number of values, such as the size of the vocabulary.
        sample_rows: B of a sample.
        sample_tokens: T of a sample.
        seed: Seed of the sampling generator.
    """

    def __init__(
        self,
        size: int,
        *,
        sample_rows: int = 2,
        sample_tokens: int = 8,
        seed: int | np.random.Generator | None = None,
    ) -> None:
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}.")
        self.size = size
        self.sample_rows = sample_rows
        self.sample_tokens = sample_tokens
        super().__init__(shape=None, dtype=np.int64, seed=seed)

    def contains(self, x: Any) -> bool:
        """Whether `x` is an int64 tensor (B, T) with values in [0, size)."""
        if not isinstance(x, torch.Tensor) or x.dtype != torch.int64 or x.ndim != 2:
            return False
        return bool(((x >= 0) & (x < self.size)).all())

    def _draw(self) -> torch.Tensor:
        shape = (self.sample_rows, self.sample_tokens)
        return torch.from_numpy(self.np_random.integers(self.size, size=shape, dtype=np.int64))

    def __repr__(self) -> str:
        return f"TokenSpace({self.size})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TokenSpace) and self.size == other.size


class CountSpace(_TensorSpace):
    """Vectors of counts or numbers: int64, (B,) for any B, values of at least `low`.

    Args:
        low: Smallest value.
        sample_rows: B of a sample.
        sample_high: Largest value of a sample; the space itself has no upper bound.
        seed: Seed of the sampling generator.
    """

    def __init__(
        self,
        low: int = 0,
        *,
        sample_rows: int = 2,
        sample_high: int = 8,
        seed: int | np.random.Generator | None = None,
    ) -> None:
        self.low = low
        self.sample_rows = sample_rows
        self.sample_high = sample_high
        super().__init__(shape=None, dtype=np.int64, seed=seed)

    def contains(self, x: Any) -> bool:
        """Whether `x` is an int64 tensor (B,) with values of at least `low`."""
        if not isinstance(x, torch.Tensor) or x.dtype != torch.int64 or x.ndim != 1:
            return False
        return bool((x >= self.low).all())

    def _draw(self) -> torch.Tensor:
        numbers = self.np_random.integers(self.low, self.sample_high + 1, size=self.sample_rows, dtype=np.int64)
        return torch.from_numpy(numbers)

    def __repr__(self) -> str:
        return f"CountSpace({self.low})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CountSpace) and self.low == other.low


class TextListSpace(_BatchSpace):
    """Lists of any number of texts.

    Args:
        sample_rows: Number of texts in a sample.
        sample_characters: Number of characters of each of its texts.
        seed: Seed of the sampling generator.
    """

    def __init__(
        self,
        *,
        sample_rows: int = 2,
        sample_characters: int = 8,
        seed: int | np.random.Generator | None = None,
    ) -> None:
        self.sample_rows = sample_rows
        self.sample_characters = sample_characters
        super().__init__(shape=None, dtype=None, seed=seed)

    def contains(self, x: Any) -> bool:
        """Whether `x` is a list of str."""
        return isinstance(x, list) and all(isinstance(text, str) for text in x)

    def _draw(self) -> list[str]:
        letters = self.np_random.choice(_LETTERS, size=(self.sample_rows, self.sample_characters))
        return ["".join(row) for row in letters]

    def __repr__(self) -> str:
        return "TextListSpace()"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TextListSpace)


class AnyListSpace(_BatchSpace):
    """Lists of any number of values of any kind.

    Args:
        sample_rows: Number of values in a sample, which are small whole numbers.
        seed: Seed of the sampling generator.
    """

    def __init__(self, *, sample_rows: int = 2, seed: int | np.random.Generator | None = None) -> None:
        self.sample_rows = sample_rows
        super().__init__(shape=None, dtype=None, seed=seed)

    def contains(self, x: Any) -> bool:
        """Whether `x` is a list."""
        return isinstance(x, list)

    def _draw(self) -> list[int]:
        return [int(value) for value in self.np_random.integers(10, size=self.sample_rows)]

    def __repr__(self) -> str:
        return "AnyListSpace()"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AnyListSpace)


class ChoiceSpace(_BatchSpace):
    """One of a few names.

    Args:
        names: The names.
        seed: Seed of the sampling generator.
    """

    def __init__(self, names: Sequence[str], *, seed: int | np.random.Generator | None = None) -> None:
        self.names = tuple(names)
        super().__init__(shape=None, dtype=None, seed=seed)

    def contains(self, x: Any) -> bool:
        """Whether `x` is one of the names."""
        return isinstance(x, str) and x in self.names

    def _draw(self) -> str:
        return self.names[int(self.np_random.integers(len(self.names)))]

    def __repr__(self) -> str:
        return f"ChoiceSpace({list(self.names)})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ChoiceSpace) and self.names == other.names
