"""Say in one sentence what is wrong with a file that could not be loaded."""

import csv
import difflib
import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, cast

from agiledpo.data.column_types import ColumnTypes, Kind, kind_of
from agiledpo.data.errors import DatasetError

_EXCERPT = 30
UNREADABLE_GZIP = (EOFError, gzip.BadGzipFile, zlib.error)


def open_bytes(path: Path) -> IO[bytes]:
    """Open a file that may be compressed by gzip."""
    return cast(IO[bytes], gzip.open(path, "rb")) if path.suffix.lower() == ".gz" else path.open("rb")


def read_json(path: Path, *, name: str) -> Iterator[tuple[int | None, dict[str, Any]]]:
    """The rows of a JSON file with their lines, read one by one: slow, but exact.

    Args:
        path: Lines of JSON objects, or one JSON list of them; may be compressed by gzip, begin with a byte order mark
            and have blank lines.
        name: The dataset's name, for messages.

    Raises:
        DatasetError: The file is not what it should be; names the row and line.
    """
    with open_bytes(path) as file:
        yield from _rows_of_list(path, file.read(), name) if _is_list(file) else _rows_of_lines(path, file, name)


def read_column_types(path: Path, *, name: str) -> ColumnTypes:
    """The types of the columns of a JSON file, found by reading all of it as `read_json` does."""
    types = ColumnTypes()
    for row, (line, values) in enumerate(read_json(path, name=name)):
        types.add(values, row, line)
    return types


def mixed_column(files: Sequence[tuple[Path, ColumnTypes]], column: str, *, name: str) -> DatasetError | None:
    """The error for a column that has values of several kinds, if it has.

    Args:
        files: Files with the types of their columns.
        column: The column.
        name: The dataset's name.
    """
    first: tuple[Path, Kind, int, int | None] | None = None
    for file, types in files:
        for kind, (row, line) in types[column].first.items() if column in types else ():
            if first is None:
                first = file, kind, row, line
            elif kind != first[1]:
                there = f"row {first[2]}{_in_line(first[3])}" if first[0] == file else str(first[0])
                return DatasetError(
                    f"the value is {kind}{_in_line(line)}, but in {there} it is {first[1]}",
                    remedy="Write the column in the same way in all rows.",
                    dataset=name,
                    row=row,
                    column=column,
                    file=file,
                )
    return None


def _in_line(line: int | None) -> str:
    return "" if line is None else f" (line {line})"


def missing_file(path: Path, *, name: str) -> DatasetError:
    """The error for a path that is not there, with the name in its directory that is nearest."""
    if path.parent.is_dir():
        near = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], n=1, cutoff=0.5)
        remedy = f"Perhaps {str(path.parent / near[0])!r} is meant." if near else f"Look into {str(path.parent)!r}."
    else:
        remedy = f"Its directory {str(path.parent)!r} does not exist either."
    return DatasetError("there is no such file or directory", remedy=remedy, dataset=name, file=path)


def unreadable_gzip(path: Path, error: Exception, *, name: str) -> DatasetError:
    """The error for a compressed file that cannot be decompressed."""
    what = "is cut off" if isinstance(error, EOFError) else "is not compressed by gzip, or damaged"
    return _file_error(path, f"the file {what}", "Copy or download it again.", name)


def explain_csv(path: Path, header: Sequence[str], *, name: str) -> DatasetError | None:
    """What is wrong with the rows of a CSV file, if it is their number of fields or their quotes."""
    with open_bytes(path) as file:
        lines = (line.decode("utf-8-sig" if number == 0 else "utf-8") for number, line in enumerate(file))
        reader = csv.reader(lines, strict=True)
        row, line = -1, 1  # the header is no row
        try:
            for fields in reader:
                if row >= 0 and fields and len(fields) != len(header):
                    return DatasetError(
                        f"line {line} has {len(fields)} fields, but the header has {len(header)} ({', '.join(header)})",
                        remedy="Put a field that contains a comma or a line break into double quotes.",
                        dataset=name,
                        row=row,
                        file=path,
                    )
                row, line = row + bool(fields), reader.line_num + 1
        except csv.Error as error:
            return DatasetError(
                f"the fields from line {line} on cannot be told apart ({error})",
                remedy='Close every quoted field with ", and write a " inside it as "".',
                dataset=name,
                row=row,
                file=path,
            )
    return None


def explain_header(path: Path, header: Sequence[str], *, name: str) -> DatasetError | None:
    """What is wrong with the first line of a CSV file, if it cannot be the names of columns."""
    for separator, called in ((";", "semicolons"), ("\t", "tabs")):
        if len(header) == 1 and separator in header[0]:
            return _file_error(
                path, f"the columns are separated by {called}, not commas", "Save it as CSV with commas.", name
            )
    blank = [number for number, column in enumerate(header, start=1) if not column.strip()]
    if blank:
        return _file_error(path, f"column {blank[0]} has no name in line 1", "Name all columns in line 1.", name)
    twice = [column for number, column in enumerate(header) if column in header[:number]]
    if twice:
        return _file_error(path, f"line 1 names the column {twice[0]!r} twice", "Give each column its own name.", name)
    return None


def explain_no_header(path: Path, header: Sequence[str], *, name: str) -> DatasetError | None:
    """The error for a CSV file whose first line looks like a row, if it does: no name of a column has spaces."""
    if not all(" " in column.strip() for column in header):
        return None
    return _file_error(
        path,
        f"line 1 should name the columns, but is a row: {_shortened(header[0])}",
        "Put the line 'prompt,chosen,rejected' before it.",
        name,
    )


def _is_list(file: IO[bytes]) -> bool:
    """Whether a file holds a JSON list and not lines; leaves it at its start."""
    start = b""
    while not start.strip() and (more := file.read(4096)):
        start += more.removeprefix(b"\xef\xbb\xbf") if not start else more
    file.seek(0)
    return start.lstrip().startswith(b"[")


def _rows_of_list(path: Path, content: bytes, name: str) -> Iterator[tuple[int | None, dict[str, Any]]]:
    text = content.decode("utf-8-sig")
    try:
        rows = _parse(text)
    except json.JSONDecodeError as error:
        raise _file_error(
            path,
            f"line {error.lineno} is not valid JSON: {_reason(error, text)}",
            "Correct it, or write one object a line (JSONL).",
            name,
        ) from error
    except ValueError as error:
        raise _file_error(path, f"the list is not valid JSON: {error}", "Correct it.", name) from error
    for row, values in enumerate(rows):
        if not isinstance(values, dict):
            raise DatasetError(
                f"item {row} of the list is {kind_in_words(values)}, not an object",
                remedy="Write each row as {'prompt': ..., 'chosen': ..., 'rejected': ...}.",
                dataset=name,
                row=row,
                file=path,
            )
        yield None, values


def _rows_of_lines(path: Path, file: IO[bytes], name: str) -> Iterator[tuple[int | None, dict[str, Any]]]:
    row = -1
    for number, line in enumerate(file, start=1):
        text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        if not text:
            continue
        row += 1

        def error(problem: str, remedy: str, row: int = row) -> DatasetError:
            return DatasetError(problem, remedy=remedy, dataset=name, row=row, file=path)

        try:
            values = _parse(text)
        except json.JSONDecodeError as caught:
            complete = line.endswith(b"\n")
            raise error(
                f"line {number} is not valid JSON: {_reason(caught, text)}",
                "Write one object a line (JSONL)."
                if complete
                else "It is the last line and may have been cut off: write the file again.",
            ) from caught
        except ValueError as caught:
            raise error(f"line {number} is not valid JSON: {caught}", "Correct the line.") from caught
        if not isinstance(values, dict):
            raise error(
                f"line {number} is {kind_in_words(values)}, not an object",
                "Write each row as {'prompt': ..., 'chosen': ..., 'rejected': ...}.",
            )
        yield number, values


def _parse(text: str) -> Any:
    return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique_keys)


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is no value of JSON, write null")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"an object has the key {next(key for key in keys if keys.count(key) > 1)!r} twice")
    return unique


def _reason(error: json.JSONDecodeError, text: str) -> str:
    rest = text[error.pos :]
    if rest.startswith("'"):
        reason = "texts and names need double quotes, not single ones"
    elif error.msg.startswith("Illegal trailing comma") or (
        rest.startswith(("}", "]")) and text[: error.pos].rstrip().endswith(",")
    ):
        reason = "there is a comma before the closing bracket"
    elif error.msg == "Extra data":
        reason = "there is more than one object"
    elif not rest or error.msg.startswith("Unterminated"):
        reason = "it ends in the middle"
    else:
        reason = error.msg[0].lower() + error.msg[1:]
    near = text[max(0, error.pos - _EXCERPT) : error.pos + _EXCERPT]
    return f"{reason}, at column {error.colno} near {near!r}"


def kind_in_words(value: Any) -> str:
    """What a JSON value is."""
    return "null" if value is None else str(kind_of(value))


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 2 * _EXCERPT else text[: 2 * _EXCERPT] + "…")


def _file_error(path: Path, problem: str, remedy: str, name: str) -> DatasetError:
    return DatasetError(problem, remedy=remedy, dataset=name, file=path)
