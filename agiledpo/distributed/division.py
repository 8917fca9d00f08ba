"""Who does which rows of a batch that all processes have been handed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from agiledpo.distributed.team import Team

T = TypeVar("T")


@dataclass(frozen=True)
class Turn:
    """Rows for one forward pass.

    Attributes:
        places: Their places in the batch.
        counts: Whether what comes of them counts. Where it does not, the process only keeps step with the others, which
            have more to do: a pass may be a joint act, in which each lends the others its share of the weights.
    """

    places: Sequence[int]
    counts: bool = True


class Division:
    """The rows of a batch dealt to the processes of a team, as evenly as rows of different length can be.

    The longest rows are dealt first, to and fro, so that all processes have equally many rows but for one, and nearly
    equally many tokens.

    Args:
        team: The processes.
        weights: Work of each row, its tokens; the same in every process.

    Attributes:
        shares: Places of each process's rows, in their order in the batch.
    """

    def __init__(self, team: Team, weights: Sequence[int]) -> None:
        self.team = team
        self._lightest = min(range(len(weights)), key=lambda place: weights[place])
        heaviest_first = sorted(range(len(weights)), key=lambda place: -weights[place])
        rows: list[list[int]] = [[] for _ in range(team.size)]
        for number, place in enumerate(heaviest_first):
            there_and_back, step = divmod(number, team.size)
            rows[step if there_and_back % 2 == 0 else team.size - 1 - step].append(place)
        self.shares = [sorted(places) for places in rows]

    @property
    def own(self) -> Sequence[int]:
        """Places of this process's rows."""
        return self.shares[self.team.rank]

    def turns(self, size: int) -> list[Turn]:
        """This process's rows, cut into forward passes; equally many in every process.

        Args:
            size: Most rows in one.
        """
        most = max(map(len, self.shares))
        own = self.own
        turns = [Turn(own[start : start + size]) for start in range(0, len(own), size)]
        blanks = -(-most // size) - len(turns)
        return turns + [Turn([self._lightest], counts=False)] * blanks

    @property
    def order(self) -> list[int]:
        """Where each row of the batch is among the shares laid one after the other."""
        laid = [place for share in self.shares for place in share]
        where = {place: number for number, place in enumerate(laid)}
        return [where[place] for place in range(len(laid))]

    def laid(self, parts: Sequence[T]) -> list[T]:
        """What all processes have made of their rows, share after share, in every process.

        Args:
            parts: This process's, one after the other, of plain values and tensors on the CPU.
        """
        return [part for share in self.team.gather(list(parts)) for part in share]
