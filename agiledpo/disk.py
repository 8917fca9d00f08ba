"""What is written must be on the disk before it gets its final name."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# How safetensors, tokenizers and torch say what the system told them, in exceptions of their own.
_SIGNS = ("os error", "PytorchStreamWriter", "unexpected pos")


def flush(path: Path) -> None:
    """Wait until a file's content, or a directory's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def disk_errors(file: Path) -> Iterator[None]:
    """Let a full or failing disk raise OSError, whoever writes: safetensors, tokenizers and torch have their own errors for it.

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
