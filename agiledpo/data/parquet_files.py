"""Open a Parquet file with the types that it has."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
from datasets import Dataset, Features

from agiledpo.data.arrow_files import file_sha256, keep_arrow
from agiledpo.data.arrow_rows import ROWS_AT_A_TIME
from agiledpo.data.diagnosis import no_rows
from agiledpo.data.errors import DatasetError
from agiledpo.data.text_files import FILL


def open_parquet(path: Path, *, name: str) -> Dataset:
    """Open a Parquet file.

    Args:
        path: The file.
        name: The dataset's name, for messages.

    Raises:
        DatasetError: It is no Parquet file, or has no rows, or columns of a type that datasets does not have.
    """
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            features = Features.from_arrow_schema(file.schema_arrow)
            dataset = keep_arrow(("parquet", file_sha256(path)), lambda: (_tables(file), features))
    except pa.ArrowInvalid as error:
        raise _unreadable(path, error, name) from error
    except (pa.ArrowException, ValueError, TypeError, NotImplementedError) as error:
        raise _failed(path, error, name) from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise _failed(path, error, name) from error
    if dataset is None:
        raise no_rows(path, name=name)
    return dataset


def _tables(file: pyarrow.parquet.ParquetFile) -> Iterator[pa.Table]:
    return (pa.Table.from_batches([batch]) for batch in file.iter_batches(batch_size=ROWS_AT_A_TIME))


def _unreadable(path: Path, error: Exception, name: str) -> DatasetError:
    with path.open("rb") as file:
        start = file.read(16)
    if start.startswith(b"PAR1"):
        return _failed(path, error, name)
    return DatasetError(
        f"the file is not a Parquet file, or is cut off (it begins with {start!r})" if start else "the file is empty",
        remedy="Write or download it again, or give it the ending of what it is." if start else FILL,
        dataset=name,
        file=path,
    )


def _failed(path: Path, error: Exception, name: str) -> DatasetError:
    return DatasetError(
        f"the file could not be read ({' '.join(str(error).split()).rstrip('.')})",
        remedy="It may be cut off or damaged: write or download it again, or read it with another program.",
        dataset=name,
        file=path,
    )
