"""Rows that training refuses, counted by what is wrong with them."""

import re
from collections.abc import Callable

from agiledpo.data.checks.findings import Finding, Place, Severity, Sighting
from agiledpo.data.errors import DatasetError

# What one row's message quotes, and its numbers, are not another row's; "the user's" quotes nothing.
_OWN = re.compile(r"""(?<!\w)'(?:[^'\\]|\\.)*'(?!\w)|(?<!\w)"(?:[^"\\]|\\.)*"(?!\w)|(?<!\w)\d+(?!\w)""")
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
        self._first: dict[_Key, DatasetError] = {}
        self._shown: dict[_Key, list[DatasetError]] = {}
        self._varied: set[_Key] = {_OTHER}

    @property
    def count(self) -> int:
        """Rows so far."""
        return sum(self._counts.values())

    def add(self, error: DatasetError) -> None:
        """Count a row that was refused."""
        key = (error.column, _OWN.sub("…", error.problem))
        if key not in self._counts and len(self._counts) >= _MOST_KINDS:
            key = _OTHER
        self._counts[key] = self._counts.get(key, 0) + 1
        if self._first.setdefault(key, error).problem != error.problem:
            self._varied.add(key)
        shown = self._shown.setdefault(key, [])
        if len(shown) < self._examples:
            shown.append(error)

    def findings(
        self, rows: int, name: str, place: Callable[[int], Place], locate: Callable[[DatasetError], DatasetError]
    ) -> list[Finding]:
        """One for each kind, the most frequent first.

        Args:
            rows: How many rows there are in all.
            name: The dataset's name.
            place: Tells where a row is.
            locate: Tells where an error is, for its remedy.
        """
        found = []
        for key in sorted(self._counts, key=lambda key: -self._counts[key]):
            column, problem = key
            first = self._first[key]
            varied = key in self._varied
            # The problem is the finding's, or each row has its own.
            problem = problem if varied else first.problem
            sightings = [Sighting(place(error.row or 0), error.problem if varied else "") for error in self._shown[key]]
            found.append(
                Finding(
                    "unusable",
                    Severity.ERROR,
                    name,
                    problem if column is None else f"column {column!r}: {problem}",
                    locate(first).remedy,
                    self._counts[key],
                    rows,
                    unit="rows",
                    examples=tuple(sightings),
                )
            )
        return found
