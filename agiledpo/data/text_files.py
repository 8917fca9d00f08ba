"""Read files of text, which may be compressed by gzip."""

import codecs
import gzip
import hashlib
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from agiledpo.data.errors import DatasetError

FILL = "Fill it or leave it out."
_READ_BYTES = 1 << 23
_DEEP = tuple(bracket * 300 for bracket in (b"[", b"]", b"}"))
_UNREADABLE_GZIP = (EOFError, gzip.BadGzipFile, zlib.error)


@dataclass(frozen=True, slots=True)
class TextFacts:
    """What one pass over the bytes of a file of text tells.

    Attributes:
        digest: SHA-256 of the text.
        lines: How many lines there are.
        objects: Whether every line begins with "{".
        deep: Whether hundreds of brackets follow each other.
    """

    digest: str
    lines: int
    objects: bool
    deep: bool


def open_bytes(path: Path) -> IO[bytes]:
    """Open a file that may be compressed by gzip."""
    return cast(IO[bytes], gzip.open(path, "rb")) if is_compressed(path) else path.open("rb")


@contextmanager
def open_text(path: Path) -> Iterator[io.TextIOWrapper]:
    """Open a file of UTF-8 that may be compressed and begin with a byte order mark; line ends stay what they are."""
    with open_bytes(path) as file, io.TextIOWrapper(file, "utf-8-sig", newline="") as text:
        yield text


def is_compressed(path: Path) -> bool:
    """Whether a file is compressed by gzip, by its name."""
    return path.suffix.lower() == ".gz"


def read_facts(path: Path, *, name: str) -> TextFacts:
    """Read all of a file of text once.

    Args:
        path: The file.
        name: The dataset's name, for messages.

    Raises:
        DatasetError: It is empty, is not UTF-8 or cannot be decompressed.
    """
    digest, decoder = hashlib.sha256(), codecs.getincrementaldecoder("utf-8")()
    newlines, objects, size, last, deep = 0, 0, 0, b"\n", False
    try:
        for piece in _pieces(path):
            digest.update(piece)
            _check_utf8(decoder, piece, size, path, name)
            newlines += piece.count(b"\n")
            objects += piece.count(b"\n{") + (last + piece[:1] == b"\n{")
            deep = deep or any(brackets in piece for brackets in _DEEP)
            last = piece[-1:] or last
            size += len(piece)
    except _UNREADABLE_GZIP as error:
        what = "is cut off" if isinstance(error, EOFError) else "is not compressed by gzip, or damaged"
        raise DatasetError(f"the file {what}", remedy="Copy or download it again.", dataset=name, file=path) from error
    if not size:
        raise DatasetError("the file is empty", remedy=FILL, dataset=name, file=path)
    lines = newlines + (last != b"\n")
    return TextFacts(digest.hexdigest(), lines, objects == lines, deep)


def _check_utf8(decoder: Any, piece: bytes, before: int, path: Path, name: str) -> None:
    try:
        decoder.decode(piece, final=not piece)
    except UnicodeDecodeError as error:
        # What the decoder kept of the piece before is a part of the bytes that it counts.
        place = before + error.start - (len(error.object) - len(piece))
        raise DatasetError(
            f"byte {place} (0x{error.object[error.start]:02x}) is not UTF-8",
            remedy="Save the file as UTF-8.",
            dataset=name,
            file=path,
        ) from error


def _pieces(path: Path) -> Iterator[bytes]:
    """The file's bytes a piece at a time, ending with an empty one."""
    with open_bytes(path) as file:
        while piece := file.read(_READ_BYTES):
            yield piece
    yield b""
