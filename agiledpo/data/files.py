"""Open data files as memory-mapped datasets, changing no value."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset, concatenate_datasets

from agiledpo.data.arrow_files import with_fingerprint
from agiledpo.data.csv_files import open_csv, read_header
from agiledpo.data.errors import DatasetError
from agiledpo.data.json_files import open_json_files
from agiledpo.data.parquet_files import open_parquet

__all__ = ["FileRows", "kind_of_file", "open_files", "read_header"]


@dataclass(frozen=True, slots=True)
class FileRows:
    """A file that rows come from.

    Attributes:
        path: The file.
        rows: How many rows are from it.
    """

    path: Path
    rows: int


def kind_of_file(path: Path) -> str | None:
    """What a file is by its name: json, csv or parquet, or None for something else."""
    suffixes = path.name.lower().split(".")[1:]
    compressed = suffixes[-1:] == ["gz"]
    last = suffixes[-2:-1] if compressed else suffixes[-1:]
    if last in (["json"], ["jsonl"], ["ndjson"]):
        return "json"
    if last == ["csv"]:
        return "csv"
    return "parquet" if last == ["parquet"] and not compressed else None


def open_files(paths: Sequence[Path], *, name: str) -> tuple[Dataset, tuple[FileRows, ...]]:
    """Open files of one kind as one dataset.

    Args:
        paths: The files, in the order of their rows.
        name: The dataset's name, for messages.

    Returns:
        The rows, memory-mapped, with a fingerprint made of the files' content; and how many are of each file.

    Raises:
        DatasetError: A file cannot be read, or has no rows; names the file, and the row and line where there is one.
    """
    kind = kind_of_file(paths[0])
    if kind == "json":
        parts = open_json_files(paths, name=name)
    elif kind == "csv":
        parts = [open_csv(path, name=name) for path in paths]
    else:
        parts = [open_parquet(path, name=name) for path in paths]
    files = tuple(FileRows(path, len(part)) for path, part in zip(paths, parts, strict=True))
    if len(parts) == 1:
        return parts[0], files
    _check_same_columns(paths, parts, name)
    dataset = concatenate_datasets(parts)
    return with_fingerprint(dataset, *(part._fingerprint for part in parts)), files


def _check_same_columns(paths: Sequence[Path], parts: Sequence[Dataset], name: str) -> None:
    for path, part in zip(paths, parts, strict=True):
        if part.features == parts[0].features:
            continue
        ours, theirs = parts[0].features, part.features
        differing = [column for column in {**ours, **theirs} if ours.get(column) != theirs.get(column)]
        raise DatasetError(
            f"the file has {theirs.get(differing[0], 'no values')} where {paths[0].name} has "
            f"{ours.get(differing[0], 'no values')}",
            remedy="Give all files the same columns with the same types, or load them one by one.",
            dataset=name,
            column=differing[0],
            file=path,
        )
