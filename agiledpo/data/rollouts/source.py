"""Open a file of rollouts so that any line of it can be read again."""

import gzip
import os
import shutil
import stat
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO, cast

from agiledpo.data.errors import DatasetError

_GZIP = b"\x1f\x8b"
_OTHERS = {
    b"\x28\xb5\x2f\xfd": ("is compressed with Zstandard", "Decompress it first: zstd -d FILE."),
    b"\xfd7zXZ": ("is compressed with xz", "Decompress it first: unxz FILE."),
    b"BZh": ("is compressed with bzip2", "Decompress it first: bunzip2 FILE."),
    b"PK\x03\x04": ("is a zip archive", "Unpack it first: unzip FILE."),
    b"PAR1": ("is a Parquet file", "Write it as JSON lines: datasets.Dataset.from_parquet(FILE).to_json(...)."),
    b"\xff\xfe": ("is in UTF-16", "Convert it: iconv -f UTF-16 -t UTF-8 FILE."),
    b"\xfe\xff": ("is in UTF-16", "Convert it: iconv -f UTF-16 -t UTF-8 FILE."),
}


def check_source(path: Path) -> None:
    """Refuse what is no file.

    Raises:
        FileNotFoundError: There is nothing.
        IsADirectoryError: It is a directory.
    """
    if path.is_dir():
        raise IsADirectoryError(f"input ({path}) is a directory; name one file of rollouts.")
    if not path.exists():
        raise FileNotFoundError(f"input ({path}) does not exist; check the path.")


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a file of rollouts for reading lines at any place.

    One that is compressed with gzip, and one that can be read only once (a pipe), goes into a temporary file first, in
    the directory that TMPDIR names.

    Args:
        path: The file.

    Yields:
        Its plain content.

    Raises:
        DatasetError: It is compressed in another way or damaged, is not JSON lines.
        OSError: It cannot be read.
    """
    with open(path, "rb") as file:
        start = file.peek(8)
        for magic, (problem, remedy) in _OTHERS.items():
            if start.startswith(magic):
                raise DatasetError(f"the file {problem}", remedy=remedy, dataset="rollouts", file=path)
        if start.startswith(_GZIP):
            with tempfile.TemporaryFile() as plain:
                _decompress(file, plain, str(path))
                yield cast(IO[bytes], plain)
        elif not file.seekable():
            with tempfile.TemporaryFile() as plain:
                shutil.copyfileobj(file, plain)
                plain.seek(0)
                yield cast(IO[bytes], plain)
        else:
            yield file


def state(path: Path) -> tuple[int, int] | None:
    """Size and time of a file, which change when it does; None for a pipe."""
    status = os.stat(path)
    return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None


def check_unchanged(path: Path, before: tuple[int, int] | None) -> None:
    """Refuse a file that was written to while it was read.

    Args:
        path: The file.
        before: Its `state` before.

    Raises:
        DatasetError: It changed.
    """
    if state(path) != before:
        raise DatasetError(
            "the file changed while it was read",
            remedy="Wait until it is complete, and make the pairs again.",
            dataset="rollouts",
            file=path,
        )


def _decompress(file: BinaryIO, plain: IO[bytes], name: str) -> None:
    try:
        with gzip.GzipFile(fileobj=file) as compressed:
            shutil.copyfileobj(compressed, plain, 1 << 20)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DatasetError(
            f"the compressed file is damaged or cut off ({error})",
            remedy="Copy it again, or wait for its writer.",
            dataset="rollouts",
            file=name,
        ) from None
    plain.seek(0)
