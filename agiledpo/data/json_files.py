"""Open a JSON file: fast where that keeps every value, exactly everywhere else."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json
from datasets import Dataset, Features

from agiledpo.data.arrow_files import keep_arrow, with_fingerprint, write_arrow
from agiledpo.data.arrow_rows import tables_of_rows
from agiledpo.data.column_types import EXACT, ColumnTypes
from agiledpo.data.diagnosis import no_rows, read_column_types
from agiledpo.data.errors import DatasetError
from agiledpo.data.json_rows import read_json
from agiledpo.data.layout import TEMPLATE_KWARGS, TOOLS
from agiledpo.data.text_files import TextFacts, is_compressed, read_facts

# How much of a file is parsed at a time; the first piece tells the types.
_PIECE = 10 << 20


class _NotExactError(Exception):
    """The fast reader would change a value."""


def open_json_files(paths: Sequence[Path], *, name: str) -> list[Dataset]:
    """Open JSON files that belong together, each with the same columns.

    Args:
        paths: Lines of objects, or one list of them.
        name: The dataset's name, for messages.

    Raises:
        DatasetError: A file cannot be read; names the file, the row and the line.
    """
    facts = [read_facts(path, name=name) for path in paths]
    parts: list[Dataset] = []
    for path, fact in zip(paths, facts, strict=True):
        part = _open_fast(path, fact)
        if part is None or (parts and part.features != parts[0].features):
            parts = _open_exactly(paths, name)
            break
        parts.append(part)
    return [with_fingerprint(part, fact.digest, part.features) for part, fact in zip(parts, facts, strict=True)]


def _open_exactly(paths: Sequence[Path], name: str) -> list[Dataset]:
    """Read files row by row, or say what is wrong with them."""
    types = ColumnTypes()
    for path in paths:
        types.merge(read_column_types(path, name=name))
    features, written = types.features(), types.writer()
    parts = []
    for path in paths:
        rows = (written(values) for _, values in read_json(path, name=name))
        try:
            part = write_arrow(tables_of_rows(rows, features, name=name), features)
        except DatasetError as error:
            raise error if error.file is not None else error.in_file(path, error.row) from error
        if part is None:
            raise no_rows(path, name=name)
        parts.append(part)
    return parts


def _open_fast(path: Path, facts: TextFacts) -> Dataset | None:
    """Let Arrow read a file; None if it cannot, or not without changing a value."""
    # A line that is null and begins a piece, or a thousandfold nesting, ends the process in Arrow.
    if not facts.objects or facts.deep:
        return None

    def tables() -> tuple[Iterator[pa.Table], Features]:
        schema = _exact_schema(_reader(path, None).schema)
        return _exact_tables(_reader(path, schema)), Features.from_arrow_schema(schema)

    try:
        dataset = keep_arrow(("json lines", facts.digest), tables)
    except (_NotExactError, pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return None
    # More objects on a line, or lines to an object, are for the exact reader to judge.
    return dataset if dataset is not None and len(dataset) == facts.lines else None


def _reader(path: Path, schema: pa.Schema | None) -> pa.RecordBatchReader:
    # No file of Python: a thread that reads ahead and still waits for the interpreter when it ends aborts the process.
    file = pa.input_stream(str(path), compression="gzip" if is_compressed(path) else None)
    return pyarrow.json.open_json(
        file,
        read_options=pyarrow.json.ReadOptions(block_size=_PIECE),
        parse_options=pyarrow.json.ParseOptions(
            explicit_schema=schema, unexpected_field_behavior="infer" if schema is None else "error"
        ),
    )


def _exact_schema(schema: pa.Schema) -> pa.Schema:
    """The types with texts that look like times as texts.

    Raises:
        _NotExactError: Values of a column would not stay what they are.
    """
    schema = pa.schema([pa.field(field.name, _without_times(field.type)) for field in schema])
    for field in schema:
        texts = field.name in (TOOLS, TEMPLATE_KWARGS)
        if not (_is_plain(field.type) or (not texts and _is_flat(field.type))):
            raise _NotExactError
    return schema


def _without_times(found: pa.DataType) -> pa.DataType:
    if pa.types.is_list(found):
        return pa.list_(_without_times(found.value_type))
    if pa.types.is_struct(found):
        return pa.struct([pa.field(field.name, _without_times(field.type)) for field in found])
    return pa.string() if pa.types.is_temporal(found) else found


def _is_plain(found: pa.DataType) -> bool:
    """Whether there is no object in the values: Arrow gives all of them the same keys, in the same order."""
    if pa.types.is_list(found):
        return _is_plain(found.value_type)
    return not pa.types.is_nested(found)


def _is_flat(found: pa.DataType) -> bool:
    """Whether values are objects, such as messages, of texts, truth values and integers, or lists of these.

    Their keys come in the first one's order, and are None where there are none, which says the same of messages.
    """
    if pa.types.is_list(found):
        return _is_flat(found.value_type)
    return pa.types.is_struct(found) and all(
        pa.types.is_string(field.type)
        or pa.types.is_boolean(field.type)
        or pa.types.is_int64(field.type)
        or pa.types.is_null(field.type)
        or (field.name == "completion" and _is_flat(field.type))
        for field in found
    )


def _exact_tables(reader: pa.RecordBatchReader) -> Iterator[pa.Table]:
    for batch in reader:
        for column in batch.columns:
            _check_numbers(column)
        yield pa.Table.from_batches([batch])


def _check_numbers(column: pa.Array) -> None:
    """Refuse a column of floats with an integer that no float holds, or with NaN, which is no JSON."""
    if pa.types.is_list(column.type):
        _check_numbers(column.flatten())
    elif pa.types.is_floating(column.type):
        within = pc.all(pc.less(pc.abs(column), float(EXACT))).as_py()  # None if there are no values
        if within is False:
            raise _NotExactError
