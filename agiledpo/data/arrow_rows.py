"""Rows as Arrow keeps them, with every value as it is."""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Features, Json, LargeList, List, Value

from agiledpo.data.column_types import kind_of
from agiledpo.data.errors import DatasetError

ROWS_AT_A_TIME = 1000
# Values of these types need no look at each.
_EXACT_TYPES = {"string": {str, type(None)}, "int64": {int, type(None)}, "float64": {float, type(None)}}


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
    arrow_type = _storage_type(Features({column: feature}).arrow_schema.field(column).type)
    try:
        return pa.array(_stored_all(values, feature), arrow_type)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        for number, value in enumerate(values, start=done):
            try:
                pa.array([_stored(value, feature)], arrow_type)
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


def _storage_type(arrow_type: pa.DataType) -> pa.DataType:
    """The type with JSON as text, at any depth."""
    if isinstance(arrow_type, pa.BaseExtensionType):
        return arrow_type.storage_type
    if pa.types.is_struct(arrow_type):
        return pa.struct([pa.field(field.name, _storage_type(field.type)) for field in arrow_type])
    if pa.types.is_list(arrow_type):
        return pa.list_(_storage_type(arrow_type.value_type))
    return arrow_type


def _stored_all(values: list[Any], feature: Any) -> list[Any]:
    if isinstance(feature, Value) and set(map(type, values)) <= _EXACT_TYPES.get(feature.dtype, set()):
        return values
    return [_stored(value, feature) for value in values]


def _stored(value: Any, feature: Any) -> Any:
    """A value as Arrow is to keep it: JSON as text.

    JSON is written here, since datasets leaves a text alone that is JSON itself, and reads "5" back as a number. And
    kinds are checked here, since Arrow makes 5 of 5.9 for a column of integers, text of bytes, and drops keys.

    Raises:
        TypeError: The value is not of the feature's kind.
    """
    if value is None:
        return None
    if isinstance(feature, Json):
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    if isinstance(feature, Value):
        allowed = _allowed(feature.dtype)
        if allowed is not None and (
            not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed)
        ):
            raise TypeError
        return value
    if isinstance(feature, List | LargeList):
        items = value.tolist() if isinstance(value, np.ndarray) else value
        if not isinstance(items, list | tuple):
            raise TypeError
        if isinstance(feature.feature, Json) and not all(item is None or isinstance(item, dict) for item in items):
            raise TypeError
        return _stored_all(list(items), feature.feature)
    if isinstance(feature, dict):
        if not isinstance(value, dict) or not value.keys() <= feature.keys():
            raise TypeError
        return {key: _stored(item, feature[key]) for key, item in value.items()}
    return value


def _allowed(dtype: str) -> tuple[type, ...] | None:
    """What may be in a column of a type, with datasets' name; None if Arrow may judge."""
    if dtype in ("string", "large_string", "string_view"):
        return (str,)
    if dtype.startswith(("int", "uint")):
        return (int, np.integer)
    if dtype.startswith("float"):
        return (int, float, np.integer, np.floating)
    return (bool, np.bool_) if dtype == "bool" else None
