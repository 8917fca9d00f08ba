"""A figure over the course of a run, and how it is thinned out to be drawn."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Series:
    """A figure over the course of a run.

    Attributes:
        steps: Rows that each agent had been handed, not falling.
        values: The figure at each of them; may be NaN or infinite.
    """

    steps: Sequence[float]
    values: Sequence[float]

    def __len__(self) -> int:
        return len(self.steps)

    def between(self, start: float, stop: float) -> "Series":
        """The part after `start` and not after `stop`.

        Args:
            start: Rows; what lies there belongs to whoever was there before.
            stop: Rows.
        """
        return self.at([place for place, step in enumerate(self.steps) if start < step <= stop])

    def at(self, places: Sequence[int]) -> "Series":
        """The points at these places."""
        return Series([self.steps[place] for place in places], [self.values[place] for place in places])

    def thinned(self, most: int) -> "Series":
        """The points of :meth:`places`."""
        return self if len(self) <= most else self.at(self.places(most))

    def places(self, most: int) -> list[int]:
        """Places of about as many points as asked for, which show the same line.

        Points are divided into stretches of equal numbers, and of each the lowest and the highest are kept, and a gap
        if there is one; so are the first and the last of all. Values are never averaged.

        Args:
            most: Points, at least 4; there may be a few more where numbers are not finite.
        """
        if len(self) <= most:
            return list(range(len(self)))
        stretches = max((most - 2) // 2, 1)
        kept = {0, len(self) - 1}
        for number in range(stretches):
            places = range(number * len(self) // stretches, (number + 1) * len(self) // stretches)
            finite = [place for place in places if math.isfinite(self.values[place])]
            if finite:
                kept |= {min(finite, key=self.values.__getitem__), max(finite, key=self.values.__getitem__)}
            if len(finite) < len(places):  # one gap is as good as many
                kept.add(next(place for place in places if not math.isfinite(self.values[place])))
        return sorted(kept)


def mean_of_finite(values: Iterable[float]) -> float:
    """The mean of the values that are finite; NaN where none is."""
    finite = [value for value in values if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else math.nan
