"""Say in one sentence what is wrong with a file that could not be loaded."""

import difflib
from collections.abc import Sequence
from pathlib import Path

from agiledpo.data.column_types import ColumnTypes, Kind
from agiledpo.data.errors import DatasetError
from agiledpo.data.json_rows import read_json
from agiledpo.data.text_files import FILL

_EXCERPT = 60


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


def no_rows(path: Path, *, name: str) -> DatasetError:
    """The error for a file without rows."""
    return _file_error(path, "the file has no rows", FILL, name)


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


def _shortened(text: str) -> str:
    return repr(text if len(text) <= _EXCERPT else text[:_EXCERPT] + "…")


def _file_error(path: Path, problem: str, remedy: str, name: str) -> DatasetError:
    return DatasetError(problem, remedy=remedy, dataset=name, file=path)
