"""Directories that are complete or absent.

A checkpoint is written beside its final place, flushed to the disk and renamed. Where the file system can swap two
names at once (Linux on a local disk) the old checkpoint is there until the instant at which the new one is; elsewhere
it steps aside, and :func:`settle` puts it back if the process was killed between the two renames.
"""

import ctypes
import errno
import json
import os
import re
import secrets
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agiledpo.disk import flush

MANIFEST = "manifest.json"
ATTRIBUTES = "attributes.pt"
RUN_STATE = "run.pt"
TOKENIZER = "tokenizer"
FORMAT = "agiledpo-checkpoint"

# Whether a process on another machine still writes cannot be asked; one that has not for so long does not.
_ABANDONED_AFTER = 24 * 3600.0

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@contextmanager
def written_atomically(path: Path, kind: str = "agent") -> Iterator[Path]:
    """Write a directory that is complete or absent.

    Args:
        path: Where it shall be. A checkpoint of the same kind that is there is replaced when the block ends without an
            error.
        kind: What it will be: ``"agent"`` or ``"run"``.

    Yields:
        An empty directory beside ``path``, to be filled.

    Raises:
        FileExistsError: Something is at ``path`` that is not such a checkpoint.
    """
    path = Path(path).resolve()
    settle(path)
    check_destination(path, kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.parent / f"{_prefix(path, 'draft')}{_owner()}.{secrets.token_hex(4)}"
    draft.mkdir()
    try:
        yield draft
        _flush(draft)
        _replace(draft, path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def check_destination(path: Path, kind: str = "agent") -> None:
    """Check that a checkpoint may be written to ``path``.

    Args:
        path: The place.
        kind: What will be written: ``"agent"`` or ``"run"``.

    Raises:
        FileExistsError: Something is there that is not such a checkpoint.
    """
    if path.exists() and not _is_replaceable(path, kind):
        what = "a whole run's checkpoint" if _kind_of(path) == "run" else "not a checkpoint"
        raise FileExistsError(f"{path} exists and is {what}; choose another path or remove it.")


def check_writable(directory: Path) -> None:
    """Check that checkpoints can be written into a directory, which is made if it is not there.

    Args:
        directory: The directory that will hold them.

    Raises:
        OSError: It cannot be made or written to.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=directory, prefix=".agiledpo-writable-") as file:
            file.write(b"\0")
            file.flush()
    except OSError as error:
        raise OSError(
            error.errno,
            f"{directory} cannot be written to ({error.strerror}), so no checkpoint could be saved there; choose "
            "another directory, or make room",
            str(directory),
        ) from error


def settle(path: Path) -> None:
    """Finish what processes that are gone left undone at ``path``.

    A checkpoint that had stepped aside for a new one that never came is put back; drafts are removed. What a living
    process may still be writing is left alone.

    Args:
        path: Place of a checkpoint, which need not exist.
    """
    path = Path(path)
    if not path.parent.is_dir():
        return
    for left in _left_behind(path, "aside"):
        old = left / "checkpoint"
        if old.exists() and not path.exists():
            old.rename(path)
        shutil.rmtree(left, ignore_errors=True)
    for left in _left_behind(path, "draft"):
        shutil.rmtree(left, ignore_errors=True)


def _is_replaceable(path: Path, kind: str) -> bool:
    if not path.is_dir():
        return False
    # Checkpoints of agents had no manifest once.
    found = _kind_of(path) or ("agent" if (path / ATTRIBUTES).exists() else None)
    return found == kind if found is not None else _is_damaged_run(path, kind) or not any(path.iterdir())


def _kind_of(path: Path) -> str | None:
    """Kind of the checkpoint in a directory; None if its manifest does not say."""
    try:
        found = json.loads((path / MANIFEST).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return found.get("kind", "agent") if isinstance(found, dict) and found.get("format") == FORMAT else None


def _is_damaged_run(path: Path, kind: str) -> bool:
    """Whether this was a run's checkpoint, whose manifest is gone: the run that goes on from before writes it anew."""
    return kind == "run" and (path / RUN_STATE).exists()


def _prefix(path: Path, kind: str) -> str:
    return f".{path.name}.{kind}."


def _owner() -> str:
    """Host, process and the process's start, since numbers of processes are used again."""
    return f"{_host()}.{os.getpid()}.{_started(os.getpid())}"


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", socket.gethostname())


def _started(process: int) -> int:
    """When a process was started, in the system's ticks; 0 where that cannot be read."""
    try:
        # The second field is the program's name in parentheses, which may hold anything.
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0


def _left_behind(path: Path, kind: str) -> list[Path]:
    pattern = re.compile(re.escape(_prefix(path, kind)) + r"([A-Za-z0-9_-]+)\.(\d+)\.(\d+)\.[0-9a-f]+")
    found = [(entry, match) for entry in path.parent.iterdir() if (match := pattern.fullmatch(entry.name))]
    return [
        entry
        for entry, (host, process, started) in ((e, m.groups()) for e, m in found)
        if _is_abandoned(entry, host, int(process), int(started))
    ]


def _is_abandoned(entry: Path, host: str, process: int, started: int) -> bool:
    if host != _host():
        return time.time() - _last_write(entry) > _ABANDONED_AFTER
    return not _is_running(process) or _started(process) != started


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's
        return True
    return True


def _last_write(directory: Path) -> float:
    times = [time.time()]
    try:
        times = [entry.stat().st_mtime for entry in (directory, *directory.rglob("*"))]
    except OSError:  # somebody is at work there
        return time.time()
    return max(times)


def _flush(directory: Path) -> None:
    for file in (*directory.rglob("*"), directory):
        flush(file)


def _replace(draft: Path, path: Path) -> None:
    if not path.exists():
        draft.rename(path)
    elif not _exchange(draft, path):
        _step_aside(draft, path)
    flush(path.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names at once; False where the system cannot."""
    if sys.platform != "linux":
        return False
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:  # a C library from before 2018
        return False
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(one), None, str(other))


def _step_aside(draft: Path, path: Path) -> None:
    aside = path.parent / f"{_prefix(path, 'aside')}{_owner()}.{secrets.token_hex(4)}"
    aside.mkdir()
    try:
        path.rename(aside / "checkpoint")
        try:
            draft.rename(path)
        except BaseException:
            (aside / "checkpoint").rename(path)
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
