"""What is written must be on the disk before it gets its final name."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

# How safetensors, tokenizers and torch say what the system told them, in exceptions of their own.
_SIGNS = ("os error", "PytorchStreamWriter", "unexpected pos")

_DEVICES = ("/dev/fd", "/proc/")


def check_place(path: Path, name: str, *, overwrite: bool) -> None:
    """Find out before all the work whether a file can be put in its place when it is complete.

    Args:
        path: The place.
        name: Of the parameter, for messages.
        overwrite: A file that is there may be replaced.

    Raises:
        FileExistsError: Something is there.
        NotADirectoryError: Its directory is a file.
        PermissionError: Its directory cannot be written to.
    """
    if path.is_dir():
        raise FileExistsError(f"{name} ({path}) exists and is a directory; choose another one.")
    # The links there, such as stdout, may lead to a regular file; they would be replaced themselves.
    folder = str(path.absolute().parent)
    if folder == "/dev" or folder.startswith(_DEVICES) or (path.exists() and not path.is_file()):
        raise FileExistsError(
            f"{name} ({path}) is no regular file, and a file is put in its place when it is complete; name a file, and "
            f"copy it from there."
        )
    if path.is_symlink() and not path.exists():
        raise FileExistsError(
            f"{name} ({path}) is a link to {path.readlink()}, which does not exist; name that file, or remove the link."
        )
    if path.exists() and not overwrite:
        raise FileExistsError(f"{name} ({path}) exists; choose another one, or set overwrite=True (--overwrite).")
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not above.is_dir():
        raise NotADirectoryError(f"{name} ({path}) cannot be written: {above} is no directory; choose another place.")
    if not os.access(above, os.W_OK | os.X_OK):
        raise PermissionError(f"{name} ({path}) cannot be written: no permission in {above}; choose another place.")


def flush(path: Path) -> None:
    """Wait until a file's content, or a directory's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def append(path: Path, data: bytes) -> None:
    """Write at the end of a file, all or nothing.

    Args:
        path: The file; it is made if it is not there.
        data: What to write, handed to the operating system in one piece.

    Raises:
        OSError: It could not be written; the file is as it was.
    """
    # Opened each time: no handle has to outlive a checkpoint, a copy or a crash.
    with path.open("ab", buffering=0) as file:
        written = file.write(data)
        if written != len(data):
            file.truncate(file.tell() - written)
            raise OSError(f"{path}: only {written} of {len(data)} bytes could be written; is the disk full?")


@contextmanager
def complete_or_absent(path: Path, *, overwrite: bool) -> Iterator[IO[bytes]]:
    """Write a file that is complete or absent: beside its place, and renamed when the block ends without an error.

    Args:
        path: Its place. The directory is made.
        overwrite: Replace a file that is there, also one that another process put there meanwhile.

    Yields:
        The file to write to.

    Raises:
        FileExistsError: Something is there, and shall not be overwritten.
        OSError: It cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    beside = Path(name)
    try:
        with os.fdopen(handle, "wb", buffering=1 << 20) as draft:
            yield draft
            draft.flush()
            os.fsync(draft.fileno())
        beside.chmod(0o666 & ~_umask())  # a temporary file is its owner's only
        if overwrite:
            beside.replace(path)
        else:
            _rename_if_free(beside, path)
        flush(path.parent)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def disk_errors(file: Path) -> Iterator[None]:
    """Let a full or failing disk raise OSError: safetensors, tokenizers and torch have their own errors for it.

    Args:
        file: What is written, for the message.

    Raises:
        OSError: It could not be written.
    """
    try:
        yield
    except Exception as error:
        if not any(sign in str(error) for sign in _SIGNS) or isinstance(error, OSError):
            raise
        # What the system said is the context in which torch notices that its archive was cut off.
        raise OSError(f"{file} could not be written: {error.__context__ or error}") from error


def _rename_if_free(beside: Path, path: Path) -> None:
    try:
        os.link(beside, path)  # unlike a rename, this never replaces a file
    except FileExistsError:
        raise FileExistsError(f"{path} appeared while it was written; choose another place.") from None
    except OSError:  # a file system without links
        beside.rename(path)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
