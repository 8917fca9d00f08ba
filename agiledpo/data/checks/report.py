"""All that a check says of a dataset."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from agiledpo.data.checks.findings import Finding, Severity
from agiledpo.data.checks.histogram import LengthFigures
from agiledpo.data.checks.length_bias import LengthBias
from agiledpo.data.checks.openings import Opening
from agiledpo.data.examples import Form


@dataclass(frozen=True, slots=True)
class DatasetFigures:
    """What a dataset is like.

    Attributes:
        name: Such as "train".
        files: The files it is from, if it is from files.
        layout: The format that was recognised, as it would be written in Python.
        columns: The columns that are read.
        form: How prompts and completions are written.
        rows: Rows there are.
        unusable_rows: Of them, rows that training refuses.
        rows_without_preference: Of them, rows that prefer neither completion.
        pairs: Pairs that the other rows make.
        distinct_prompts: Different prompts among the pairs.
        length_unit: What lengths are counted in, "tokens" or "characters".
        lengths: Of "prompt", "chosen" and "rejected"; empty without pairs.
        length_bias: Whether lengths predict the labels; None without pairs.
        openings: First words that chosen and rejected completions differ in most.
    """

    name: str
    files: tuple[str, ...]
    layout: str
    columns: tuple[str, ...]
    form: Form
    rows: int
    unusable_rows: int
    rows_without_preference: int
    pairs: int
    distinct_prompts: int
    length_unit: str
    lengths: dict[str, LengthFigures]
    length_bias: LengthBias | None
    openings: tuple[Opening, ...]

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold."""
        return {
            "name": self.name,
            "files": list(self.files),
            "layout": self.layout,
            "columns": list(self.columns),
            "form": str(self.form),
            "rows": self.rows,
            "unusable_rows": self.unusable_rows,
            "rows_without_preference": self.rows_without_preference,
            "pairs": self.pairs,
            "distinct_prompts": self.distinct_prompts,
            "length_unit": self.length_unit,
            "lengths": {part: figures.to_dict() for part, figures in self.lengths.items()},
            "length_bias": None if self.length_bias is None else self.length_bias.to_dict(),
            "openings": [opening.to_dict() for opening in self.openings],
        }


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What the checks found.

    Attributes:
        datasets: Figures of the training data and, if they were given, of the test data.
        findings: What was found, the worst first.
    """

    datasets: Sequence[DatasetFigures]
    findings: Sequence[Finding]

    def count(self, severity: Severity) -> int:
        """How many findings are that bad."""
        return sum(finding.severity is severity for finding in self.findings)

    def passes(self, *, strict: bool = False) -> bool:
        """Whether training would take the data.

        Args:
            strict: Whether there must be no warnings either.
        """
        return not self.count(Severity.ERROR) and not (strict and self.count(Severity.WARNING))

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold."""
        return {
            "datasets": [figures.to_dict() for figures in self.datasets],
            "findings": [finding.to_dict() for finding in self.findings],
            "errors": self.count(Severity.ERROR),
            "warnings": self.count(Severity.WARNING),
            "notes": self.count(Severity.NOTE),
        }
