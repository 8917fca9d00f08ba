"""Rows as Arrow keeps them, with every value as it is."""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import pyarrow as pa
from datasets import Features, Json, List

from agiledpo.data.column_types import kind_of
from agiledpo.data.errors import DatasetError

ROWS_AT_A_TIME = 1000


def tables_of_rows(rows: Iterator[Mapping[str, Any]], features: Features, *, name: str) -> Iterator[pa.Table]:
    """Tables of a thousand rows each.

    Args:
        rows: Each a value by column; a column that a row lacks is None.
        features: All columns with their types.
        name: The dataset's name, for messages.

    Raises:
        DatasetError: A row has another column, or a value of another type; names the row and column.
    """
    done = 0
    while batch := list(islice(rows, ROWS_AT_A_TIME)):
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
            except UnicodeEncodeError as error:
                raise DatasetError(
                    f"the text has half of a surrogate pair ({error.object[error.start]!r}), which is no character",
                    remedy="It was cut in the middle of a character: write it again, or drop the row.",
                    dataset=name,
                    row=number,
                    column=column,
                ) from error
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
