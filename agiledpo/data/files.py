"""Open a data file as a memory-mapped dataset, changing no value."""

import codecs
import csv
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet
from datasets import Dataset, DatasetDict, Features, Value, concatenate_datasets, load_dataset

from agiledpo.cache import cache_directory
from agiledpo.data.arrow_files import file_sha256, with_fingerprint, write_arrow
from agiledpo.data.arrow_rows import tables_of_rows
from agiledpo.data.column_types import ColumnTypes
from agiledpo.data.diagnosis import (
    UNREADABLE_GZIP,
    explain_csv,
    explain_header,
    open_bytes,
    read_column_types,
    read_json,
    unreadable_gzip,
)
from agiledpo.data.errors import DatasetError

_FILL = "Fill it or leave it out."
_READ_BYTES = 1 << 23
# How much of a file datasets' JSON reader takes at a time; it finds the types of the columns anew in each piece.
_JSON_PIECE = 10 << 20
_BLANK_LINE = re.compile(rb"\n[ \t\r]*\n")


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
        parts = _open_json(paths, name)
    elif kind == "csv":
        parts = [_open_csv(path, name) for path in paths]
    else:
        parts = [_open_parquet(path, name) for path in paths]
    files = tuple(FileRows(path, len(part)) for path, part in zip(paths, parts, strict=True))
    for file in files:
        if file.rows == 0:
            raise _no_rows(file.path, name)
    if len(parts) == 1:
        return parts[0], files
    _check_same_columns(paths, parts, name)
    dataset = concatenate_datasets(parts)
    return with_fingerprint(dataset, *(part._fingerprint for part in parts)), files


@dataclass(frozen=True, slots=True)
class _TextFacts:
    """What one pass over the bytes of a file of text tells: the SHA-256 of its text, and how its lines are."""

    digest: str
    lines: int
    clean: bool  # begins with "{" and has no blank lines


def _open_json(paths: Sequence[Path], name: str) -> list[Dataset]:
    facts = [_read_facts(path, name) for path in paths]
    parts = [_load_json_lines(path) if fact.clean else None for path, fact in zip(paths, facts, strict=True)]
    faithful = [
        part
        for path, part, fact in zip(paths, parts, facts, strict=True)
        if part is not None and len(part) == fact.lines and _is_faithful(path, part)
    ]
    if len(faithful) < len(paths) or any(part.features != faithful[0].features for part in faithful):
        faithful = _read_json_slowly(paths, name)
    return [with_fingerprint(part, fact.digest, part.features) for part, fact in zip(faithful, facts, strict=True)]


def _load_json_lines(path: Path) -> Dataset | None:
    """Let datasets read a file, which is fast; None if it cannot."""
    verbosity = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what is wrong is found and said by `read_json`
    try:
        return _first_split(
            load_dataset(
                "json",
                data_files=str(path),
                chunksize=_JSON_PIECE,
                parse_agent_traces=False,
                cache_dir=str(cache_directory("sources")),
            )
        )
    except Exception as error:  # of pyarrow, pandas or datasets, and no more to the point than that it failed
        _raise_os_error(error)
        return None
    finally:
        datasets.logging.set_verbosity(verbosity)


def _read_json_slowly(paths: Sequence[Path], name: str) -> list[Dataset]:
    """Read files that datasets cannot read, or would change the values of; or say what is wrong with them."""
    types = ColumnTypes()
    for path in paths:
        types.merge(read_column_types(path, name=name))
    features = types.features()
    parts = []
    for path in paths:
        rows = (row for _, row in read_json(path, name=name))
        try:
            part = write_arrow(tables_of_rows(rows, features, name=name), features)
        except DatasetError as error:
            raise error if error.file is not None else error.in_file(path, error.row) from error
        if part is None:
            raise _no_rows(path, name)
        parts.append(part)
    return parts


def _is_faithful(path: Path, dataset: Dataset) -> bool:
    """Whether values were kept as they are.

    Texts that look like times are read as such. In files of several pieces, numbers and objects of a later piece become
    text where the first has text.
    """
    schema = dataset.features.arrow_schema
    if not all(_is_exact(column.type) for column in schema):
        return False
    with open_bytes(path) as file:
        if len(file.read(_JSON_PIECE + 1)) <= _JSON_PIECE:
            return True
    with _native(path) as file:
        texts = pa.schema([column for column in schema if _is_of_texts(column.type)])
        options = pyarrow.json.ParseOptions(explicit_schema=texts, unexpected_field_behavior="ignore")
        reading = pyarrow.json.ReadOptions(block_size=_JSON_PIECE)
        try:
            for _ in pyarrow.json.open_json(file, read_options=reading, parse_options=options):
                pass
        except pa.ArrowInvalid:
            return False
    return True


def _is_of_texts(column_type: pa.DataType) -> bool:
    """Whether a column holds texts or messages, and no JSON."""
    if pa.types.is_struct(column_type):
        return all(_is_of_texts(field.type) for field in column_type)
    if pa.types.is_list(column_type):
        return _is_of_texts(column_type.value_type)
    return pa.types.is_string(column_type)


def _is_exact(column_type: pa.DataType) -> bool:
    """Whether values of this type are those of the file. JSON in an object may have been text that looks like it."""
    if pa.types.is_struct(column_type):
        return all(_is_exact(field.type) and not isinstance(field.type, pa.BaseExtensionType) for field in column_type)
    if pa.types.is_list(column_type):
        return _is_exact(column_type.value_type)
    return not pa.types.is_temporal(column_type)


def _native(path: Path) -> pa.NativeFile:
    """A file for pyarrow's streaming readers, whose threads read ahead.

    Not one of Python's: a thread that still waits for the interpreter when it ends aborts the process.
    """
    return pa.input_stream(str(path), compression="gzip" if path.suffix.lower() == ".gz" else None)


def _open_csv(path: Path, name: str) -> Dataset:
    facts = _read_facts(path, name)
    header = read_header(path)
    wrong = explain_header(path, header, name=name)
    if wrong:
        raise wrong
    features = Features({column: Value("string") for column in header})
    try:
        with _native(path) as file:
            reader = pyarrow.csv.open_csv(
                file,
                parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
                # Everything is text, and "NA" and "null" are words.
                convert_options=pyarrow.csv.ConvertOptions(
                    column_types=features.arrow_schema, strings_can_be_null=False
                ),
            )
            dataset = write_arrow((pa.Table.from_batches([batch]) for batch in reader), features)
    except pa.ArrowInvalid as error:
        raise explain_csv(path, header, name=name) or _unknown_failure(path, error, name) from error
    if dataset is None:
        raise _no_rows(path, name)
    return with_fingerprint(dataset, facts.digest, features)


def read_header(path: Path) -> list[str]:
    """The names in the first line of a CSV file."""
    with open_bytes(path) as file:
        lines = (line.decode("utf-8-sig" if number == 0 else "utf-8") for number, line in enumerate(file))
        return next((fields for fields in csv.reader(lines) if fields), [])


def _open_parquet(path: Path, name: str) -> Dataset:
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            rows = file.metadata.num_rows
    except pa.ArrowInvalid as error:
        with path.open("rb") as file:
            start = file.read(16)
        raise DatasetError(
            f"the file is not a Parquet file, or is cut off (it begins with {start!r})"
            if start
            else "the file is empty",
            remedy="Write or download it again, or give it the ending of what it is." if start else _FILL,
            dataset=name,
            file=path,
        ) from error
    if rows == 0:
        raise _no_rows(path, name)
    try:
        dataset = _first_split(load_dataset("parquet", data_files=str(path), cache_dir=str(cache_directory("sources"))))
    except Exception as error:
        _raise_os_error(error)
        raise _unknown_failure(path, error.__cause__ or error, name) from error
    return with_fingerprint(dataset, file_sha256(path))


def _first_split(splits: DatasetDict) -> Dataset:
    (dataset,) = splits.values()
    return dataset


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


def _read_facts(path: Path, name: str) -> _TextFacts:
    digest, decoder = hashlib.sha256(), codecs.getincrementaldecoder("utf-8")()
    newlines, before, start, last, blank = 0, 0, b"", b"", False
    try:
        for piece in _pieces(path):
            digest.update(piece)
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
            start = start or piece[:1]
            newlines += piece.count(b"\n")
            blank = blank or _BLANK_LINE.search(last + piece) is not None
            # Of a line that may be blank, what is in this piece.
            last = piece[piece.rfind(b"\n") :] if b"\n" in piece else (last + piece)[:1024]
            before += len(piece)
    except UNREADABLE_GZIP as error:
        raise unreadable_gzip(path, error, name=name) from error
    if not before:
        raise DatasetError("the file is empty", remedy=_FILL, dataset=name, file=path)
    ends_with_newline = last.strip(b" \t\r") == b"\n"
    blank_end = ends_with_newline and last != b"\n"
    lines = newlines + (not ends_with_newline)
    return _TextFacts(digest.hexdigest(), lines, clean=start == b"{" and not blank and not blank_end)


def _pieces(path: Path) -> Iterator[bytes]:
    """The file's bytes a piece at a time, ending with an empty one."""
    with open_bytes(path) as file:
        while piece := file.read(_READ_BYTES):
            yield piece
    yield b""


def _raise_os_error(error: Exception) -> None:
    """Raise what the system said, such as that the disk is full, if that is why datasets failed."""
    for cause in (error, error.__cause__):
        if isinstance(cause, OSError) and cause.errno is not None:
            raise cause


def _no_rows(path: Path, name: str) -> DatasetError:
    return DatasetError("the file has no rows", remedy=_FILL, dataset=name, file=path)


def _unknown_failure(path: Path, error: Any, name: str) -> DatasetError:
    return DatasetError(
        f"the file could not be read ({error})",
        remedy="Read it with datasets.load_dataset, and pass the dataset once that works.",
        dataset=name,
        file=path,
    )
