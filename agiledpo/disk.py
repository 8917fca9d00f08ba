"""What is written must be on the disk before it gets its final name."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError


def flush(path: Path) -> None:
    """Wait until a file's content, or a directory's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def disk_errors(file: Path) -> Iterator[None]:
    """Let a full or failing disk raise OSError, whoever writes: safetensors and torch have errors of their own for it.

    Args:
        file: What is written, for the message.

    Raises:
        OSError: It could not be written.
    """
    try:
        yield
    except SafetensorError as error:
        raise OSError(f"{file} could not be written: {error}") from error
    except RuntimeError as error:
        if "PytorchStreamWriter" not in str(error) and "unexpected pos" not in str(error):
            raise
        # What the file said is the context in which torch noticed that its archive was cut off.
        raise OSError(f"{file} could not be written: {error.__context__ or error}") from error
