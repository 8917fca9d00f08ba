"""Open a CSV file as text, whatever its values look like."""

import csv
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from datasets import Dataset, Features, Value

from agiledpo.data.arrow_files import keep_arrow
from agiledpo.data.arrow_rows import tables_of_rows
from agiledpo.data.diagnosis import explain_header, no_rows
from agiledpo.data.errors import DatasetError
from agiledpo.data.text_files import open_text, read_facts


def open_csv(path: Path, *, name: str) -> Dataset:
    """Open a CSV file; "NA", "null" and "17" are words.

    Args:
        path: UTF-8 with commas and a header; quotes as RFC 4180 has them.
        name: The dataset's name, for messages.

    Raises:
        DatasetError: The file is not what it should be; names the row and line.
    """
    facts = read_facts(path, name=name)
    header = read_header(path)
    wrong = explain_header(path, header, name=name)
    if wrong:
        raise wrong
    features = Features({column: Value("string") for column in header})
    dataset = keep_arrow(
        ("csv", facts.digest), lambda: (tables_of_rows(_rows(path, header, name), features, name=name), features)
    )
    if dataset is None:
        raise no_rows(path, name=name)
    return dataset


def read_header(path: Path) -> list[str]:
    """The names in the first line of a CSV file."""
    with open_text(path) as lines, _fields_of_any_size():
        return next((fields for fields in csv.reader(lines) if fields), [])


def _rows(path: Path, header: list[str], name: str) -> Iterator[dict[str, str]]:
    row, line = -1, 1  # the header is no row
    with open_text(path) as lines:
        reader = csv.reader(lines, strict=True)
        while True:
            try:
                with _fields_of_any_size():
                    fields = next(reader, None)
            except csv.Error as error:
                raise DatasetError(
                    f"the fields from line {line} on cannot be told apart ({error})",
                    remedy='Close every quoted field with ", and write a " inside it as "".',
                    dataset=name,
                    row=max(row, 0),
                    file=path,
                ) from error
            if fields is None:
                return
            if row >= 0 and fields:
                if len(fields) != len(header):
                    raise DatasetError(
                        f"line {line} has {len(fields)} fields, but the header has {len(header)} ({', '.join(header)})",
                        remedy="Put a field that contains a comma or a line break into double quotes.",
                        dataset=name,
                        row=row,
                        file=path,
                    )
                yield dict(zip(header, fields, strict=True))
            row, line = row + bool(fields), reader.line_num + 1


@contextmanager
def _fields_of_any_size() -> Iterator[None]:
    """Let the csv module, whose limit is the whole process's, read long fields."""
    limit = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(limit)
