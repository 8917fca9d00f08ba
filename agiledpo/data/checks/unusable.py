"""Rows that training refuses, counted by what is wrong with them."""

from collections.abc import Callable

from agiledpo.data.checks.findings import Finding, Severity, Sighting
from agiledpo.data.errors import DatasetError

# A template's message may be another one for each row: beyond this many they are counted together.
_MOST_KINDS = 40
_Key = tuple[str | None, str]
_OTHER: _Key = (None, "rows are unusable for yet other reasons")


class UnusableRows:
    """Counts the errors of rows and keeps the first of each kind.

    Args:
        examples: How many rows to keep of each kind.
    """

    def __init__(self, examples: int) -> None:
        self._examples = examples
        self._counts: dict[_Key, int] = {}
        self._first: dict[_Key, list[DatasetError]] = {}

    @property
    def count(self) -> int:
        """Rows so far."""
        return sum(self._counts.values())

    def add(self, error: DatasetError) -> None:
        """Count a row that was refused."""
        key = (error.column, error.problem)
        if key not in self._counts and len(self._counts) >= _MOST_KINDS:
            key = _OTHER
        self._counts[key] = self._counts.get(key, 0) + 1
        first = self._first.setdefault(key, [])
        if len(first) < self._examples:
            first.append(error)

    def findings(self, rows: int, name: str, locate: Callable[[DatasetError], DatasetError]) -> list[Finding]:
        """One for each kind, the most frequent first.

        Args:
            rows: How many rows there are in all.
            name: The dataset's name.
            locate: Says in which file, and row of it, the row of an error is.
        """
        found = []
        for key in sorted(self._counts, key=lambda key: -self._counts[key]):
            column, problem = key
            located = [locate(error) for error in self._first[key]]
            found.append(
                Finding(
                    "unusable",
                    Severity.ERROR,
                    name,
                    problem if column is None else f"column {column!r}: {problem}",
                    self._first[key][0].remedy,
                    self._counts[key],
                    rows,
                    unit="rows",
                    # The sentence would repeat what the finding says; other kinds say it themselves.
                    examples=tuple(
                        Sighting(error.row or 0, error.problem if key == _OTHER else "", error.file)
                        for error in located
                    ),
                )
            )
        return found
