"""A file of lines that follows a run: it is taken up where the run is, and nothing that was in it is lost."""

import glob
import hashlib
import os
import shlex
import shutil
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from agiledpo.disk import append, check_place, complete_or_absent, flush

_CHUNK = 1 << 20
# Between the name of a file and the number of bytes before what was cut off it.
_CUT = ".from_"


class Journal:
    """Lines that a run writes one batch after another, in one process.

    Lines of a batch are handed to the operating system in one piece. A run that goes on from an earlier point has the
    file begin where it was then.

    Args:
        path: The file, plain text. Nothing is written before the first lines.
        holds: What the lines are, for messages: "rollouts".
        overwrite: Replace what another run left in the file; otherwise the first lines are refused where there is
            something.

    Raises:
        ValueError: The name says that the file is compressed.
    """

    def __init__(self, path: str | Path, *, holds: str, overwrite: bool = False) -> None:
        self.path = Path(path).absolute()
        self.holds = holds
        self.overwrite = overwrite
        if self.path.suffix in (".gz", ".zst", ".xz", ".bz2"):
            raise ValueError(f"path ({path}) is written as plain text; leave {self.path.suffix} away.")
        self._bytes = 0
        self._sha256 = hashlib.sha256()

    def check_place(self) -> None:
        """Check that the file can be written, before anything is computed.

        Raises:
            FileExistsError: The path is no regular file.
            OSError: Nothing can be written there.
        """
        check_place(self.path, "path", overwrite=True)
        if self.path.exists() and not os.access(self.path, os.W_OK):
            raise PermissionError(f"path ({self.path}) cannot be written: no permission; choose another place.")

    def write(self, lines: bytes) -> None:
        """Add lines, each with its line break.

        Raises:
            FileExistsError: They are the first, and the file holds something.
            OSError: They cannot be written; the file is as it was.
            ValueError: Somebody else has written to the file.
        """
        if self._bytes == 0:
            self._begin()
        self._check_size()
        append(self.path, lines)
        self._bytes += len(lines)
        self._sha256.update(lines)

    def state_dict(self) -> dict[str, Any]:
        """How far the file has been written, and what it holds: its number of bytes and their SHA-256.

        What it holds is on the disk then, so that it is there when the state is.
        """
        if self._bytes:
            flush(self.path)
        return {"bytes": self._bytes, "sha256": self._sha256.hexdigest()}

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Check that :meth:`load_state_dict` would take a state; nothing is changed.

        Raises:
            FileExistsError: Nothing had been written, and the file holds something.
            ValueError: The file is another run's, or lacks lines that had been written.
        """
        size = state["bytes"]
        if self.overwrite or not self.path.exists():
            return
        if not size:
            self._check_free()
        elif _sha256([(self.path, size)]) != state["sha256"]:
            raise ValueError(
                f"{self.path} does not begin with the {size} bytes that this run had written: it is another run's, or "
                f"was changed. {self._remedy(state)}"
            )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state: what was written after it will be written again, and is moved to a file beside.

        That file is named ``<name>.from_<n>``, after the bytes that came before, with another number behind if there is
        one already.

        Args:
            state: What :meth:`state_dict` returned.

        Raises:
            FileExistsError: Nothing had been written, and the file holds something.
            OSError: What is cut off could not be kept; the file is as it was.
            ValueError: The file is another run's, or lacks lines that had been written; then nothing is changed. With
                `overwrite` it is begun anew instead.

        Warns:
            UserWarning: The file is not there any more, and is begun anew.
        """
        self.check_state(state)
        size, digest = state["bytes"], hashlib.sha256()
        if size and not self.path.exists():
            warnings.warn(
                f"{self.path} is not there any more: the {self.holds} before this point are not in the new file.",
                UserWarning,
                stacklevel=2,
            )
            size = 0
        elif size:
            _update(digest, self.path, size)
            if digest.hexdigest() != state["sha256"]:
                size, digest = 0, hashlib.sha256()
            elif self.path.stat().st_size > size:
                self._cut(size)
        self._bytes, self._sha256 = size, digest

    def _cut(self, size: int) -> None:
        """Take away what follows the first bytes, and keep it beside."""
        stem = f"{self.path.name}{_CUT}{size}"
        aside, number = self.path.with_name(stem), 1
        while aside.exists():
            aside, number = self.path.with_name(f"{stem}.{number}"), number + 1
        with complete_or_absent(aside, overwrite=False) as draft, self.path.open("rb") as file:
            file.seek(size)
            shutil.copyfileobj(file, draft, _CHUNK)
        os.truncate(self.path, size)

    def _remedy(self, state: Mapping[str, Any]) -> str:
        """What to do where the file lacks what a state speaks of: perhaps an earlier run on this file cut it off."""
        for aside in sorted(self.path.parent.glob(f"{glob.escape(self.path.name)}{_CUT}*")):
            begin = aside.name.removeprefix(f"{self.path.name}{_CUT}").partition(".")[0]
            if not begin.isdecimal() or int(begin) > state["bytes"]:
                continue
            kept = int(begin)
            if _sha256([(self.path, kept), (aside, state["bytes"] - kept)]) == state["sha256"]:
                whole = f"{self.path}.whole"
                return (
                    f"What is missing is in {aside}, cut off when a run was taken up at an earlier point. Put it "
                    f"together, (head -c {kept} {shlex.quote(str(self.path))}; cat {shlex.quote(str(aside))}) > "
                    f"{shlex.quote(whole)}, and pass that file as the path."
                )
        return "Put the run's own file there, or choose another path."

    def _begin(self) -> None:
        if self.overwrite and self.path.exists():
            os.truncate(self.path, 0)
        self._check_free()
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def _check_free(self) -> None:
        if self.path.exists() and self.path.stat().st_size:
            raise FileExistsError(
                f"{self.path} holds the {self.holds} of another run; move it away, choose another path, or resume that "
                "run."
            )

    def _check_size(self) -> None:
        size = self.path.stat().st_size if self.path.exists() else 0
        if size != self._bytes:
            raise ValueError(
                f"{self.path} has {size} bytes, and this run has written {self._bytes}: something else writes to it, "
                "or took it away. Give each run a file of its own."
            )


def _update(digest: "hashlib._Hash", path: Path, size: int) -> None:
    """Add the first bytes of a file, as far as there are any."""
    with path.open("rb") as file:
        while size and (part := file.read(min(size, _CHUNK))):
            digest.update(part)
            size -= len(part)


def _sha256(parts: Iterable[tuple[Path, int]]) -> str:
    """Of the first bytes of files, one after another."""
    digest = hashlib.sha256()
    for path, size in parts:
        _update(digest, path, size)
    return digest.hexdigest()
