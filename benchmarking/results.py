"""Write figures where the README quotes them from: a JSON file with every single run, and a Markdown table."""

import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarking.machine import REPOSITORY, commit

RESULTS = REPOSITORY / "benchmarking" / "results"


class ResultFile:
    """``<directory>/<name>.json`` and ``.md``.

    Each run is written as soon as it is known, so a script that is killed loses nothing and a later call goes on where
    it stopped.

    Args:
        name: File name without ending.
        directory: Where; created if missing.

    Attributes:
        data: What the JSON file holds: ``runs`` (a list, oldest first) and whatever else was set.
    """

    def __init__(self, name: str, directory: Path = RESULTS) -> None:
        self.json = directory / f"{name}.json"
        self.markdown = directory / f"{name}.md"
        self.data: dict[str, Any] = {"runs": []}
        if self.json.exists():
            self.data = json.loads(self.json.read_text())

    @property
    def runs(self) -> list[dict[str, Any]]:
        """All runs so far."""
        runs: list[dict[str, Any]] = self.data["runs"]
        return runs

    def set(self, **values: Any) -> None:
        """Set top-level values, such as ``machine``, and write the JSON file."""
        self.data = {**values, **{key: value for key, value in self.data.items() if key not in values}}
        self._write()

    def append(self, run: Mapping[str, Any]) -> None:
        """Add a run, stamped with date, commit and command line, and write the JSON file."""
        self.runs.append({**run, "date": now(), "commit": commit(), "command": command_line()})
        self._write()

    def discard(self, **values: Any) -> int:
        """Forget the runs that have all these values; returns how many there were."""
        kept = [run for run in self.runs if any(run.get(key) != value for key, value in values.items())]
        forgotten = len(self.runs) - len(kept)
        self.data["runs"] = kept
        self._write()
        return forgotten

    def write_markdown(self, text: str) -> None:
        """Write the Markdown file."""
        self.markdown.parent.mkdir(parents=True, exist_ok=True)
        self.markdown.write_text(text.rstrip() + "\n")

    def _write(self) -> None:
        self.json.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.json.with_suffix(".json.tmp")
        temporary.write_text(json.dumps(self.data, indent=1) + "\n")
        os.replace(temporary, self.json)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; the first column is text, the others are numbers and stand on the right.

    Args:
        header: Names of the columns.
        rows: As many cells each; None becomes a dash.

    Raises:
        ValueError: A row has another number of cells.
    """
    lines = [list(header), ["---"] + ["---:"] * (len(header) - 1)]
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"The row {row} has {len(row)} cells, the header {len(header)}: {list(header)}.")
        lines.append(["–" if cell is None else str(cell).replace("|", "\\|") for cell in row])
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def now() -> str:
    """The time, to the second, in UTC."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def command_line() -> str:
    """How this process was called."""
    spec = sys.modules["__main__"].__spec__
    program = f"-m {spec.name.removesuffix('.__main__')}" if spec is not None else shlex.quote(sys.argv[0])
    return f"python {program} {shlex.join(sys.argv[1:])}".rstrip()
