"""Read JSON files row by row: slow, but exact, and with a sentence for everything that is wrong."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from agiledpo.data.column_types import kind_of
from agiledpo.data.errors import DatasetError
from agiledpo.data.text_files import open_bytes

_EXCERPT = 30


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
                f"item {row} of the list is {_kind_in_words(values)}, not an object",
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
                f"line {number} is {_kind_in_words(values)}, not an object",
                "Write each row as {'prompt': ..., 'chosen': ..., 'rejected': ...}.",
            )
        yield number, values


def _parse(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique_keys)
    except RecursionError as error:
        raise ValueError("its lists and objects are nested too deeply") from error


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


def _kind_in_words(value: Any) -> str:
    """What a JSON value is."""
    return "null" if value is None else str(kind_of(value))


def _file_error(path: Path, problem: str, remedy: str, name: str) -> DatasetError:
    return DatasetError(problem, remedy=remedy, dataset=name, file=path)
