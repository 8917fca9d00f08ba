"""Which of the agents that are there takes up which saved one, where they are not built alike."""

from collections.abc import Iterator, Sequence

from agiledpo.algorithms.core.construction import ConstructionDifferences


def match(differences: Sequence[Sequence[ConstructionDifferences]]) -> list[int | None]:
    """Find an agent for each saved one.

    One that is built exactly as the saved one was comes before one that rounds otherwise. Among these comes first the
    one at the saved one's own place, then any that no other has taken, then any, which has to be cloned.

    Args:
        differences: Of each saved agent (rows) to each that is there (columns).

    Returns:
        For each saved agent the place of the one that is there; a place that is named again stands for a clone. None
        where there is no agent with the same objective.
    """
    found: list[int | None] = [None] * len(differences)
    for suitable in _suitable(differences):
        for own_place, cloned in ((True, False), (False, False), (False, True)):
            for number, places in enumerate(suitable):
                if found[number] is not None:
                    continue
                free = [
                    place for place in places if (place == number or not own_place) and (cloned or place not in found)
                ]
                found[number] = free[0] if free else None
    return found


def _suitable(differences: Sequence[Sequence[ConstructionDifferences]]) -> Iterator[list[list[int]]]:
    """Places that suit each saved agent: those that are equal to it, and then those that round otherwise too."""
    for rounding_counts in (True, False):
        yield [
            [
                place
                for place, difference in enumerate(row)
                if not difference.objective and not (rounding_counts and difference.rounding)
            ]
            for row in differences
        ]
