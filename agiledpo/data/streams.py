"""Write a stream to disk as it comes, so that it can be trained on in any order, again and again."""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any

import pyarrow as pa
from datasets import Dataset, Features, IterableDataset, Json, List

from agiledpo.data.arrow_files import write_arrow
from agiledpo.data.column_types import ColumnTypes, kind_of
from agiledpo.data.errors import DatasetError

# Rows that are held in memory, and that decide the types of the columns if the stream does not know them.
_BATCH = 1000


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
        DatasetError: The stream has no rows, or a row has a value of another type; names the row and column.
    """
    rows: Iterator[dict[str, Any]] = iter(stream if max_rows is None else stream.take(max_rows))
    features = stream.features
    if features is None:
        first = list(islice(rows, _BATCH))
        features = _infer(first, name)
        rows = chain(first, rows)
    dataset = write_arrow(_tables(rows, features, name), features)
    if dataset is None:
        raise DatasetError("the stream has no rows", remedy="Check what it is made of.", dataset=name)
    return dataset


def _infer(rows: Sequence[Mapping[str, Any]], name: str) -> Features:
    types = ColumnTypes()
    for number, row in enumerate(rows):
        for column, value in row.items():
            if value is not None and kind_of(value) is None:
                raise DatasetError(
                    f"the value is of type {type(value).__name__}",
                    remedy="Make it text, a number or a list, or drop the column: "
                    f"dataset.remove_columns({column!r}).",
                    dataset=name,
                    row=number,
                    column=column,
                )
        types.add(row, number)
    # Where there was nothing but None and empty lists so far, anything may follow.
    return Features({column: seen.feature() if seen.told else Json() for column, seen in types.items()})


def _tables(rows: Iterator[Mapping[str, Any]], features: Features, name: str) -> Iterator[pa.Table]:
    done = 0
    while batch := list(islice(rows, _BATCH)):
        for number, row in enumerate(batch, start=done):
            for column in row.keys() - features.keys():
                raise DatasetError(
                    f"there is no such column in the rows before; they have {list(features)}",
                    remedy="Give all rows the same columns, with None where there is no value.",
                    dataset=name,
                    row=number,
                    column=column,
                )
        yield pa.table({column: _array(batch, column, features[column], done, name) for column in features})
        done += len(batch)


def _array(batch: Sequence[Mapping[str, Any]], column: str, feature: Any, done: int, name: str) -> pa.Array:
    values = [row.get(column) for row in batch]
    arrow_type = Features({column: feature}).arrow_schema.field(column).type
    try:
        return _storage(values, feature, arrow_type)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        for number, value in enumerate(values, start=done):
            try:
                _storage([value], feature, arrow_type)
            except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
                kind = kind_of(value)
                raise DatasetError(
                    f"the value is {kind or type(value).__name__}, which does not fit the column's type {feature}",
                    remedy="Write the column in the same way in all rows, or tell the stream its types: "
                    "dataset.cast(features).",
                    dataset=name,
                    row=number,
                    column=column,
                ) from error
        raise


def _storage(values: list[Any], feature: Any, arrow_type: pa.DataType) -> pa.Array:
    """The values as Arrow keeps them.

    JSON is written here, since datasets leaves a text alone that is JSON itself, and reads "5" back as a number.
    """
    if isinstance(feature, Json):
        return pa.array([None if value is None else _dumps(value) for value in values], pa.string())
    if isinstance(feature, List) and isinstance(feature.feature, Json):
        return pa.array([None if value is None else _dumps_items(value) for value in values], pa.list_(pa.string()))
    # Not datasets' own encoding, which makes text of anything in a column of text.
    return pa.array(values, arrow_type)


def _dumps_items(items: Any) -> list[str | None]:
    if not isinstance(items, list | tuple) or not all(item is None or isinstance(item, dict) for item in items):
        raise TypeError("not a list of objects")
    return [None if item is None else _dumps(item) for item in items]


def _dumps(value: Any) -> str:
    return json.dumps(value, allow_nan=False)
