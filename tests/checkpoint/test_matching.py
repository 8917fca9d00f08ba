"""Saved agents find those that are built as they were."""

import pytest

from agiledpo.algorithms.core.construction import ConstructionDifferences
from agiledpo.checkpoint.matching import match


def differences(saved, live):
    """Agents as two letters, how they learn and how they round: "Ax"."""
    return [
        [
            ConstructionDifferences(
                objective=() if one[0] == other[0] else ("objective",), rounding=() if one[1] == other[1] else ("bits",)
            )
            for other in live.split()
        ]
        for one in saved.split()
    ]


@pytest.mark.parametrize(
    ("saved", "live", "places"),
    [
        ("Ax Ax Ax", "Ax Ax Ax", [0, 1, 2]),  # all alike: everyone at its place
        ("Ax Bx Cx", "Cx Ax Bx", [1, 2, 0]),
        ("Ax Bx Ax", "Ax Bx Cx", [0, 1, 0]),  # a clone takes a place that is left over
        ("Bx Bx Ax", "Ax Bx Cx", [1, 1, 0]),  # the one at its own place comes first
        ("Ax Ax Bx", "Bx Ax Ax", [2, 1, 0]),
        ("Ax Ay Ax", "Ax Ay Az", [0, 1, 0]),  # a clone that is equal, not one that rounds otherwise
        ("Ax Ax Ax", "Ay Ay Ay", [0, 1, 2]),  # what rounds otherwise, if there is nothing else
        ("Ax Ay Bx", "Ay Az Bx", [1, 0, 2]),  # the equal one is left for the agent that needs it
        ("Ax Dx", "Ax Bx", [0, None]),
    ],
)
def test_places(saved, live, places):
    assert match(differences(saved, live)) == places
