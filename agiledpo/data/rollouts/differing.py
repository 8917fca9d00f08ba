"""Find partners whose completion differs, without listing those whose completion is the same."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Labelled:
    """Places 0 to N - 1 with a label each, sorted so that any stretch of places can be asked by label.

    Attributes:
        size: N.
        places: (N,) int64, ``label * (N + 1) + place``, ascending.
        others: (N,) int64, ``label * (N + 1) + place - number of earlier places with that label``, ascending.
    """

    size: int
    places: NDArray[np.int64]
    others: NDArray[np.int64]

    @classmethod
    def of(cls, labels: NDArray[np.int64]) -> Self:
        """Sort labels.

        Args:
            labels: (N,), from 0; their largest times N must be below 2**63.
        """
        count = len(labels)
        order = np.argsort(labels, kind="stable")
        base = labels[order] * (count + 1)
        places = base + order
        earlier = np.arange(count) - np.searchsorted(places, base)
        return cls(count, places, places - earlier)

    def same(
        self, labels: NDArray[np.int64], begin: NDArray[np.int64] | int, end: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """How many of the places from `begin` to before `end` have the label."""
        base = labels * (self.size + 1)
        return np.searchsorted(self.places, base + end) - np.searchsorted(self.places, base + begin)

    def nth_other(
        self, labels: NDArray[np.int64], begin: NDArray[np.int64] | int, turn: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """The place that is number `turn`, from 0, of those from `begin` on that have another label."""
        base = labels * (self.size + 1)
        first = np.searchsorted(self.places, base + begin)
        earlier = first - np.searchsorted(self.places, base)
        # A place with the label lies before the wanted one if no more than `turn` others lie before it.
        passed = np.searchsorted(self.others, base + begin + turn - earlier, side="right") - first
        return begin + turn + passed
