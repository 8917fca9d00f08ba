"""Do chosen and rejected completions begin differently? Then their first words may be all that is learned."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_WORDS = 3
# Beyond this many different openings the rarest are forgotten.
_MOST = 100_000
# A smaller difference of the shares is not worth a line.
_LEAST_DIFFERENCE = 0.02


@dataclass(frozen=True, slots=True)
class Opening:
    """The first words of completions.

    Attributes:
        words: In lower case.
        chosen: Share of the chosen completions that begin with them.
        rejected: Share of the rejected ones.
    """

    words: str
    chosen: float
    rejected: float

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold."""
        return {"words": self.words, "chosen": self.chosen, "rejected": self.rejected}


class Openings:
    """Counts the first three words of completions."""

    def __init__(self) -> None:
        self._counts: tuple[Counter[str], Counter[str]] = Counter(), Counter()
        self._pairs = 0

    def add(self, completions: Sequence[str]) -> None:
        """Count those of a pair.

        Args:
            completions: Texts of chosen and rejected.
        """
        self._pairs += 1
        for counts, text in zip(self._counts, completions, strict=True):
            words = text[:200].lower().split(maxsplit=_WORDS)[:_WORDS]
            if words:
                counts[" ".join(words)] += 1
            if len(counts) > _MOST:
                kept = counts.most_common(_MOST // 2)
                counts.clear()
                counts.update(dict(kept))

    def most_different(self, number: int) -> list[Opening]:
        """Those that are most much more, or much less, frequent in chosen than in rejected completions.

        Args:
            number: How many at most.
        """
        chosen, rejected = self._counts
        frequent = {words for counts in self._counts for words, count in counts.most_common(100) if count > 1}
        openings = [
            Opening(words, chosen[words] / self._pairs, rejected[words] / self._pairs) for words in sorted(frequent)
        ]
        openings = [opening for opening in openings if abs(opening.chosen - opening.rejected) >= _LEAST_DIFFERENCE]
        return sorted(openings, key=lambda opening: -abs(opening.chosen - opening.rejected))[:number]
