"""What a check found: how bad, how often, where, and what to do about it."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Severity(StrEnum):
    """What a finding means for training."""

    ERROR = "error"  # training refuses the data
    WARNING = "warning"  # training goes on, and its result may not be what is meant
    NOTE = "note"  # good to know


@dataclass(frozen=True, slots=True)
class Place:
    """Where a row is.

    Attributes:
        row: Its number from 0, in the file if there is one and otherwise in the dataset.
        file: The file, if the data are from several.
    """

    row: int
    file: str | None = None

    def __str__(self) -> str:
        return f"row {self.row}" if self.file is None else f"{self.file}, row {self.row}"

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold."""
        return {"row": self.row} if self.file is None else {"file": self.file, "row": self.row}


@dataclass(frozen=True, slots=True)
class Sighting:
    """A row in which something was found.

    Attributes:
        place: Where it is.
        excerpt: What is seen there, shortened; "" if the finding says it all.
        other: The row that it repeats or contradicts, which for leakage is one of the training data; or None.
    """

    place: Place
    excerpt: str = ""
    other: Place | None = None

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold."""
        values: dict[str, Any] = {**self.place.to_dict(), "excerpt": self.excerpt}
        return values if self.other is None else {**values, "other": self.other.to_dict()}


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that a check found.

    Attributes:
        check: Name of the check, for programs.
        severity: What it means for training.
        dataset: Name of the dataset, such as "train".
        problem: What was found, without a final full stop.
        remedy: What the user can do about it, a full sentence.
        count: How many rows or pairs it concerns.
        total: How many rows or pairs there are.
        unit: What is counted, "rows" or "pairs".
        examples: The first of them.
    """

    check: str
    severity: Severity
    dataset: str
    problem: str
    remedy: str
    count: int
    total: int
    unit: str = "pairs"
    examples: tuple[Sighting, ...] = ()

    @property
    def share(self) -> float:
        """The part of the rows or pairs that it concerns, in [0, 1]."""
        return self.count / self.total if self.total else 0.0

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold."""
        return {
            "check": self.check,
            "severity": str(self.severity),
            "dataset": self.dataset,
            "problem": self.problem,
            "remedy": self.remedy,
            "count": self.count,
            "total": self.total,
            "share": self.share,
            "unit": self.unit,
            "examples": [example.to_dict() for example in self.examples],
        }
