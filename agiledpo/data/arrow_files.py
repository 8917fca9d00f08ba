"""Write rows to an Arrow file that is known by its content."""

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import pyarrow as pa
from datasets import Dataset, Features
from datasets.arrow_writer import ArrowWriter

from agiledpo.cache import cache_directory
from agiledpo.disk import flush

# Raise it whenever a reader makes other rows of the same file: old ones are then no longer found.
_READERS = "readers 1"


def keep_arrow(key: Sequence[str], read: Callable[[], tuple[Iterable[pa.Table], Features]]) -> Dataset | None:
    """What was written under a key, or what is read now.

    Args:
        key: How and of what the rows are read, such as the SHA-256 of a file: equal keys mean equal rows.
        read: Gives tables of rows, and their features.

    Returns:
        The rows, memory-mapped, with a fingerprint made of the key; None if there are none.
    """
    digest = hashlib.sha256("\n".join((_READERS, *key)).encode()).hexdigest()
    path = cache_directory("sources") / f"{digest}.arrow"
    if not path.exists():
        tables, features = read()
        with _written(tables, features) as unfinished:
            if unfinished is None:
                return None
            os.replace(unfinished, path)
    dataset = Dataset.from_file(str(path))
    return with_fingerprint(dataset, *key, dataset.features)


def write_arrow(tables: Iterable[pa.Table], features: Features) -> Dataset | None:
    """Write tables one after the other, in the memory of one of them.

    The file gets its name, made of its content, when it is complete; equal rows are equal files, whatever made them.

    Args:
        tables: Rows with these features.
        features: Columns and their types.

    Returns:
        The rows, memory-mapped, with a fingerprint made of their content; None if there are none.
    """
    with _written(tables, features) as unfinished:
        if unfinished is None:
            return None
        digest = file_sha256(unfinished)
        path = cache_directory("sources") / f"{digest}.arrow"
        os.replace(unfinished, path)
    return with_fingerprint(Dataset.from_file(str(path)), digest)


@contextmanager
def _written(tables: Iterable[pa.Table], features: Features) -> Iterator[Path | None]:
    """Tables in a file on disk that is still to get its name; None if there are no rows."""
    tables = iter(tables)
    first = next(tables, None)
    if first is None:
        yield None
        return
    directory = cache_directory("sources")
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory, prefix=".writing-") as beside:
        unfinished = Path(beside) / "rows.arrow"
        with ArrowWriter(path=str(unfinished), features=features, writer_batch_size=None) as writer:
            for table in chain([first], tables):
                writer.write_table(table)
            rows, _ = writer.finalize()
        if rows:
            flush(unfinished)
        yield unfinished if rows else None


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def with_fingerprint(dataset: Dataset, *content: object) -> Dataset:
    """Name a dataset by what it holds, so that what is derived from it is found again wherever it was read from.

    Args:
        dataset: Just opened; it is changed.
        content: What decides its rows.
    """
    dataset._fingerprint = hashlib.sha256("\n".join(map(str, content)).encode()).hexdigest()[:32]
    return dataset
