"""From a file, a name or a dataset to preference data whose format is known."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from datasets import Dataset

from agiledpo.data.diagnosis import explain_no_header, mixed_column, read_column_types
from agiledpo.data.errors import DatasetError
from agiledpo.data.files import FileRows, kind_of_file, read_header
from agiledpo.data.layout import Layout
from agiledpo.data.named import NamedDataset, find_repository, named_dataset
from agiledpo.data.pairs import Pairs
from agiledpo.data.ranked import Pairing
from agiledpo.data.recognition import recognise_preferences
from agiledpo.data.sources import Source, open_source


@dataclass(frozen=True, slots=True, eq=False)
class PreferenceData:
    """Rows of preferences and how to read them.

    Attributes:
        dataset: The rows, memory-mapped where they are from files or a stream.
        layout: How a row is read.
        files: The files that the rows are from, in order; none for a dataset, a stream or the Hub.
        name: What messages call the dataset.
    """

    dataset: Dataset
    layout: Layout
    files: tuple[FileRows, ...]
    name: str

    def locate(self, error: DatasetError) -> DatasetError:
        """The error with the file that its row is in and the row's number in that file.

        Args:
            error: An error of this dataset, its row counted in `dataset`.

        Returns:
            A copy, or `error` itself if it is of no row or knows its file, or if there are no files.
        """
        return _locate(error, self.files)


def load_preferences(
    source: Source,
    *,
    split: str | None = None,
    name: str | None = None,
    prompt_key: str | None = None,
    chosen_key: str | None = None,
    rejected_key: str | None = None,
    pairing: Pairing = "best_worst",
    layout: Layout | None = None,
    config: str | None = None,
    max_rows: int | None = None,
    dataset_name: str = "preference",
) -> PreferenceData:
    """Open preference data and recognise its format.

    Published datasets are known by their repository on the Hub; of a copy of one, say which it is with `name`.

    Args:
        source: A file (.jsonl, .json, .csv, .parquet, or the first three compressed by gzip), a directory of such files
            or of `Dataset.save_to_disk`, the name of a repository on the Hub, a `datasets.Dataset`, a finite stream, or
            a dictionary of splits.
        split: Which split of a source that has several; of a published dataset the one to train on, unless given.
        name: The published dataset that the rows are of, such as "HelpSteer3" (`agiledpo.data.named.NAMED`).
        prompt_key: Column of the prompt, if it is not "prompt".
        chosen_key: Column of the preferred completion, if it is not "chosen".
        rejected_key: Column of the other completion, if it is not "rejected".
        pairing: Which pairs to make of more than two ranked completions: "best_worst", "adjacent" or "all".
        layout: How rows are read; None recognises it by the columns.
        config: Which configuration of a repository on the Hub.
        max_rows: Take the first so many rows only.
        dataset_name: What messages call the dataset, such as "train".

    Raises:
        DatasetError: The source cannot be opened, or its columns are not of the layout. Rows are checked where they are
            tokenised.
        ValueError: `name` is not known, an argument is out of range, or arguments contradict each other.
    """
    keys = {"prompt_key": prompt_key, "chosen_key": chosen_key, "rejected_key": rejected_key}
    given = {key: column for key, column in keys.items() if column is not None}
    ways = [*given, *(["layout"] if layout is not None else []), *(["name"] if name is not None else [])]
    if len(ways) > max(1, len(given)):
        raise ValueError(f"{' and '.join(ways)} each say how rows are read: give one of them.")
    known = named_dataset(name) if name is not None else None
    if known is None and isinstance(source, str) and not ways and not Path(source).expanduser().exists():
        known = find_repository(source)
    if known is not None and isinstance(source, str | Path):
        split, config, data_dir = _where(known, Path(source).expanduser(), split, config)
    else:
        data_dir = None
    dataset, files = open_source(
        source, split=split, config=config, data_dir=data_dir, max_rows=max_rows, name=dataset_name
    )
    if layout is None and known is not None:
        layout = known.layout
    if layout is None and given:
        layout = Pairs(**{key.removesuffix("_key"): column for key, column in given.items()})
    try:
        _check_keys(given, dataset.column_names, dataset_name)
        if layout is None:
            layout = recognise_preferences(dataset, name=dataset_name, pairing=pairing)
        layout.form(dataset, name=dataset_name)
    except DatasetError as error:
        raise _explained(error, files, dataset_name) from error
    _refuse_mixed(dataset, layout.columns, files, dataset_name)
    return PreferenceData(dataset, layout, files, dataset_name)


def _check_keys(given: Mapping[str, str], columns: Sequence[str], name: str) -> None:
    for key, column in given.items():
        if column not in columns:
            near = difflib.get_close_matches(column, columns, n=1, cutoff=0.5)
            raise DatasetError(
                f"{key}={column!r} is none of the columns, which are {', '.join(columns)}",
                remedy=f"Perhaps {key}={near[0]!r} is meant." if near else f"Give {key} the name of one of them.",
                dataset=name,
            )


def _where(
    known: NamedDataset, source: Path, split: str | None, config: str | None
) -> tuple[str | None, str | None, str | None]:
    """Split, configuration and directory of a published dataset on the Hub, or in a copy of its repository."""
    if source.is_file():
        return split, config, None
    if not source.is_dir():
        return split or known.split, config or known.config, known.data_dir
    directory = next((part for part in (known.data_dir, known.config) if part and (source / part).is_dir()), None)
    has_splits = any(known.split in path.relative_to(source).as_posix() for path in source.rglob("*"))
    return split or (known.split if has_splits else None), None, directory


def _refuse_mixed(dataset: Dataset, columns: Sequence[str], files: Sequence[FileRows], name: str) -> None:
    """Refuse a file that has several types of values in a column that is read; such columns are kept as JSON."""
    schema = dataset.features.arrow_schema
    doubtful = [column for column in columns if isinstance(schema.field(column).type, pa.BaseExtensionType)]
    if not doubtful:
        return
    if not files or kind_of_file(files[0].path) != "json":
        return
    types = [(file.path, read_column_types(file.path, name=name)) for file in files]
    for column in doubtful:
        error = mixed_column(types, column, name=name)
        if error is not None:
            raise error


def _explained(error: DatasetError, files: Sequence[FileRows], name: str) -> DatasetError:
    """An error of the columns, with the file, and with the reason if a CSV file has no header."""
    if not files or error.file is not None:
        return error
    file = files[0].path
    if kind_of_file(file) == "csv":
        return explain_no_header(file, read_header(file), name=name) or error.in_file(file, None)
    return error.in_file(file, None)


def _locate(error: DatasetError, files: Sequence[FileRows]) -> DatasetError:
    if error.row is None or error.file is not None:
        return error
    row = error.row
    for file in files:
        if row < file.rows:
            return error.in_file(file.path, row)
        row -= file.rows
    return error
