"""Write a stream to disk as it comes, so that it can be trained on in any order, again and again."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, count, islice
from typing import Any

from datasets import Dataset, Features, IterableDataset, Json

from agiledpo.data.arrow_files import write_arrow
from agiledpo.data.arrow_rows import ROWS_AT_A_TIME, tables_of_rows
from agiledpo.data.column_types import ColumnTypes, kind_of
from agiledpo.data.errors import DatasetError


def write_stream(stream: IterableDataset, *, name: str, max_rows: int | None = None) -> Dataset:
    """Write all rows of a finite stream to an Arrow file, in the memory of a thousand of them.

    A stream that does not know the types of its columns gets those of its first thousand rows.

    Args:
        stream: The rows.
        name: The dataset's name, for messages.
        max_rows: Stop after so many; None for all.

    Returns:
        The rows, memory-mapped. Equal rows have equal fingerprints, so what is made of them is found again.

    Raises:
        DatasetError: The stream has no rows, fails, or a row has a value of another type; names the row and column.
    """
    rows = _rows(stream if max_rows is None else stream.take(max_rows), name)
    features = stream.features
    if features is None:
        first = list(islice(rows, ROWS_AT_A_TIME))
        features = _infer(first, name)
        rows = chain(first, rows)
    dataset = write_arrow(tables_of_rows(rows, features, name=name), features)
    if dataset is None:
        raise DatasetError("the stream has no rows", remedy="Check what it is made of.", dataset=name)
    return dataset


def _rows(stream: IterableDataset, name: str) -> Iterator[dict[str, Any]]:
    rows = iter(stream)
    for number in count():
        try:
            row = next(rows, None)
        except Exception as error:  # of whatever makes the rows
            raise DatasetError(
                f"the stream failed here ({type(error).__name__}: {' '.join(str(error).split()).rstrip('.')})",
                remedy="Mend what makes its rows, or take the rows before with max_rows.",
                dataset=name,
                row=number,
            ) from error
        if row is None:
            return
        yield row


def _infer(rows: Sequence[Mapping[str, Any]], name: str) -> Features:
    types = ColumnTypes()
    for number, row in enumerate(rows):
        for column, value in row.items():
            if value is not None and kind_of(value) is None:
                raise DatasetError(
                    f"the value is of type {type(value).__name__}",
                    remedy=f"Make it text, a number or a list, or drop the column: dataset.remove_columns({column!r}).",
                    dataset=name,
                    row=number,
                    column=column,
                )
        types.add(row, number)
    # Where there was nothing but None and empty lists so far, anything may follow.
    return Features({column: seen.feature() if seen.told else Json() for column, seen in types.items()})
