"""The figures of a run in a file of JSON lines."""

import json
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from typing_extensions import override

from agiledpo.journal import Journal
from agiledpo.training.recorder import Number, Recorder


class MetricsLog(Recorder):
    """A line ``{"step": ..., "train/agent_0/loss": ..., ...}`` for each set of figures of :class:`Recorder`.

    NaN and infinities are written as the strings ``NaN``, ``Infinity`` and ``-Infinity``, which JSON's numbers lack and
    Python's ``float`` reads. A run that goes on from a checkpoint moves what came after it to a file beside.

    Lines that cannot be written, because the disk is full, are missing then: a warning says so, the run goes on, and
    what can be written again is. The file holds whole lines only, and can be gone on with.

    Args:
        path: The file.

    Raises:
        ValueError: The name says that the file is compressed.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self._journal = Journal(path, holds="metrics")
        self._fails = False

    @property
    def path(self) -> Path:
        """The file."""
        return self._journal.path

    def check_place(self) -> None:
        """Check that the file can be written, before anything is computed.

        Raises:
            FileExistsError: The path is no regular file.
            OSError: Nothing can be written there.
        """
        self._journal.check_place()

    @override
    def record(self, step: int, figures: Mapping[str, Number]) -> None:
        line = {"step": step, **{name: json_number(value) for name, value in figures.items()}}
        try:
            self._journal.write(json.dumps(line, allow_nan=False).encode() + b"\n")
        except FileExistsError:  # another run's lines, not a matter of the disk
            raise
        except OSError as error:
            if not self._fails:
                warnings.warn(
                    f"The figures of step {step} are not in {self.path}, which could not be written: {error}. The run "
                    "goes on, and so does the log when it can.",
                    stacklevel=2,
                )
            self._fails = True
        else:
            self._fails = False

    @override
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "file": self._journal.state_dict()}

    @override
    def check_state(self, state: Mapping[str, Any]) -> None:
        self._journal.check_state(state.get("file", {"bytes": 0}))

    @override
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        if state:
            self._journal.load_state_dict(state["file"])


def json_number(value: Number) -> Number | str:
    """A number as JSON can hold it: NaN and infinities by the names that ``float`` reads."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
