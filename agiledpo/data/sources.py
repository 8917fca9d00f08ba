"""Open whatever holds rows: files, directories, names on the Hub, data sets and streams."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict, load_dataset, load_from_disk

from agiledpo.data.arrow_files import with_fingerprint
from agiledpo.data.checking import check_dataset
from agiledpo.data.diagnosis import missing_file
from agiledpo.data.errors import DatasetError
from agiledpo.data.files import FileRows, kind_of_file, open_files
from agiledpo.data.streams import write_stream

Source: TypeAlias = str | Path | Dataset | IterableDataset | DatasetDict | IterableDatasetDict

SUPPORTED = ".jsonl, .ndjson and .json (each also .gz), .csv (also .gz), .parquet"
_LONGEST_SHOWN = 80
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_SHARD = re.compile(r"(?P<split>.+?)-\d{5}-of-\d{5}(-\w+)?")
# What files and directories of splits are called on the Hub, whole or between separators.
_WORD = r"(?:train|training|test|testing|validation|valid|val|dev|eval|evaluation)"
_SPLIT = re.compile(rf"{_WORD}(?:_\w+)?")
_SPLIT_WORD = re.compile(rf"(?:^|[-._ 0-9])({_WORD})(?=$|[-._ 0-9])")
# Files that may hold rows, but are none that are read.
_UNREAD = re.compile(
    r"\.(?:jsonl?|ndjson|csv|tsv|parquet|arrow|feather|orc|xlsx?|pkl)(?:\.\w+)?$|\.(?:zst|bz2|xz|lz4|zip|tar|tgz|7z|gz)$"
)


def open_source(
    source: Source,
    *,
    split: str | None = None,
    config: str | None = None,
    data_dir: str | None = None,
    max_rows: int | None = None,
    name: str,
) -> tuple[Dataset, tuple[FileRows, ...]]:
    """Open a source of rows, with memory that does not grow with their number.

    Files are opened as they are: no value is changed, and CSV is all text. What is derived from files and streams is
    named by their content, so it is found again.

    Args:
        source: A data file, a directory of data files or of `Dataset.save_to_disk`, the name of a repository on the
            Hub, a `datasets.Dataset`, a finite stream, or a dictionary of splits.
        split: Which split of a source that has several.
        config: Which configuration of a repository on the Hub.
        data_dir: Directory in the repository or in the directory.
        max_rows: Take the first so many rows only.
        name: What messages call the dataset, such as "train".

    Returns:
        The rows; and the files that they are from, in order, if there are any.

    Raises:
        DatasetError: There is no such source, or it cannot be read; says where and why.
        ValueError: `max_rows` is not positive.
    """
    if max_rows is not None and (not isinstance(max_rows, int) or isinstance(max_rows, bool) or max_rows < 1):
        raise ValueError(f"max_rows must be at least 1 or None, got {max_rows!r}.")
    files: tuple[FileRows, ...] = ()
    if isinstance(source, str | Path):
        opened, files = _open_name(source, split, config, data_dir, name)
    else:
        opened = source
    if isinstance(opened, DatasetDict | IterableDatasetDict):
        opened = _take_split(opened, split, name)
    elif split is not None and not isinstance(source, str | Path):
        raise DatasetError(
            f"split {split!r} is asked of a {type(source).__name__}, which has none",
            remedy="Leave split out.",
            dataset=name,
        )
    if isinstance(opened, IterableDataset):
        return write_stream(opened, name=name, max_rows=max_rows), ()
    plain = check_dataset(opened, name=name)
    # Taking its output format off gives a dataset another fingerprint, also if it has none.
    dataset = opened if opened.format == plain.format else plain
    if max_rows is None or max_rows >= len(dataset):
        return dataset, files
    return with_fingerprint(dataset.select(range(max_rows)), dataset._fingerprint, max_rows), _first(files, max_rows)


def _open_name(
    source: str | Path, split: str | None, config: str | None, data_dir: str | None, name: str
) -> tuple[Any, tuple[FileRows, ...]]:
    path = _path(source, name)
    if path.is_dir():
        return _open_directory(path / data_dir if data_dir else path, split, name)
    if path.exists():
        if split is not None:
            raise DatasetError(
                f"split {split!r} is asked of a file, which has none",
                remedy="Leave split out.",
                dataset=name,
                file=path,
            )
        if not path.is_file():
            raise DatasetError(
                "it is a pipe or a device, no regular file",
                remedy="Write its rows to a file, for they are read more than once.",
                dataset=name,
                file=path,
            )
        if kind_of_file(path) is None:
            raise _unsupported(path, name)
        return open_files([path], name=name)
    on_hub = isinstance(source, str) and _HUB_NAME.fullmatch(source) and not path.parent.is_dir()
    if on_hub and kind_of_file(path) is None:
        return _open_hub(str(source), split, config, data_dir, name), ()
    raise missing_file(path, name=name)


def _path(source: str | Path, name: str) -> Path:
    if not str(source).strip():
        raise DatasetError("the path is empty", remedy="Pass the path of a file or directory.", dataset=name)
    try:
        path = Path(source).expanduser()
        path.stat()
    except FileNotFoundError:
        pass
    except (OSError, ValueError, RuntimeError) as error:  # too long, forbidden, a zero byte, or "~" of nobody
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        shown = str(source) if len(str(source)) <= _LONGEST_SHOWN else f"{str(source)[:_LONGEST_SHOWN]}…"
        raise DatasetError(
            f"the path {shown!r} cannot be opened ({reason.rstrip('.')})", remedy="Correct it.", dataset=name
        ) from error
    return path


def _open_directory(path: Path, split: str | None, name: str) -> tuple[Any, tuple[FileRows, ...]]:
    if not path.is_dir():
        raise missing_file(path, name=name)
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        saved = load_from_disk(str(path))
        if isinstance(saved, Dataset) and split is not None:
            raise DatasetError(
                f"split {split!r} is asked of a saved dataset, which has none",
                remedy="Leave split out.",
                dataset=name,
                file=path,
            )
        return saved, ()
    entries = [entry for entry in _entries(path, (path.resolve(),)) if not _is_hidden(entry, path)]
    files = [entry for entry in entries if kind_of_file(entry) is not None]
    _check_regular(entries, path, name)
    if not files:
        raise DatasetError(
            f"the directory has no data files; it has {_listed(path)}",
            remedy=f"Put files into it that are {SUPPORTED}.",
            dataset=name,
            file=path,
        )
    chosen = _files_of_split(files, path, split, name)
    kinds = {kind: file for file in reversed(chosen) for kind in [kind_of_file(file)]}
    if len(kinds) > 1:
        mixed = ", ".join(f"{file.relative_to(path)} is {kind}" for kind, file in sorted(kinds.items(), key=str))
        raise DatasetError(
            f"the directory has files of several kinds: {mixed}",
            remedy="Pass one file, or keep one kind.",
            dataset=name,
            file=path,
        )
    return open_files(chosen, name=name)


def _files_of_split(files: Sequence[Path], directory: Path, split: str | None, name: str) -> list[Path]:
    of_split: dict[str | None, list[Path]] = {}
    for file in files:
        of_split.setdefault(split_of(file, directory), []).append(file)
    splits = sorted(found for found in of_split if found is not None)
    if split is None:
        if len(of_split) == 1:
            return list(files)
        if None in of_split:
            other = of_split[None][0].relative_to(directory)
            problem = f"the directory has files of splits ({', '.join(splits)}) and others, such as {other}"
        else:
            problem = f"the directory has the splits {', '.join(splits)}"
        raise DatasetError(problem, remedy=f"Choose one, such as split={splits[0]!r}.", dataset=name, file=directory)
    if split not in of_split:
        raise DatasetError(
            f"the directory has no split {split!r}; it has {', '.join(splits) or 'none'}",
            remedy=f"Choose one of them, such as split={splits[0]!r}." if splits else "Leave split out.",
            dataset=name,
            file=directory,
        )
    return of_split[split]


def split_of(file: Path, directory: Path) -> str | None:
    """The split that a file is of, by its name or its directories', as on the Hub; None if they name none.

    Args:
        file: The file.
        directory: The directory that it was found in.
    """
    *directories, own = file.relative_to(directory).parts
    stem = re.sub(r"\.(jsonl?|ndjson|csv|parquet)(\.gz)?$", "", own.lower())
    shard = _SHARD.fullmatch(own.split(".")[0])
    if shard:
        return shard["split"]
    for part in (stem, *(part.lower() for part in reversed(directories))):
        if _SPLIT.fullmatch(part):
            return part
        words = set(_SPLIT_WORD.findall(part))
        if len(words) == 1:
            return words.pop()
    return None


def _entries(directory: Path, within: tuple[Path, ...]) -> Iterator[Path]:
    """What is in a directory and the directories below it, also linked ones, in the order of names; no directories."""
    for entry in sorted(directory.iterdir()):
        if not entry.is_dir():
            yield entry
        elif entry.resolve() not in within:  # a link to a directory that it is in has no end
            yield from _entries(entry, (*within, entry.resolve()))


def _is_hidden(file: Path, directory: Path) -> bool:
    return any(part.startswith((".", "_")) for part in file.relative_to(directory).parts)


def _check_regular(entries: Sequence[Path], directory: Path, name: str) -> None:
    """Refuse rows that would be left out without a word: links to nothing, pipes, and formats that are not read."""
    for entry in entries:
        if not entry.exists():
            problem, remedy = "is a link to a file that is not there", "Restore the file, or remove the link."
        elif kind_of_file(entry) is not None and not entry.is_file():
            problem, remedy = "is no regular file", "Write its rows to one, or move it elsewhere."
        elif kind_of_file(entry) is None and _UNREAD.search(entry.name.lower()):
            problem, remedy = (
                "is not of a supported format",
                f"Supported are {SUPPORTED}; move it elsewhere, or convert it.",
            )
        else:
            continue
        raise DatasetError(
            f"{str(entry.relative_to(directory))!r} in the directory {problem}",
            remedy=remedy,
            dataset=name,
            file=directory,
        )


def _open_hub(repository: str, split: str | None, config: str | None, data_dir: str | None, name: str) -> Any:
    options = {"name": config, "data_dir": data_dir, "split": split}
    said = ", ".join(f"{option}={value!r}" for option, value in options.items() if value is not None)
    try:
        opened = load_dataset(repository, **options)
    except Exception as error:  # of datasets, huggingface_hub, the network or the repository's files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DatasetError(
            f"{repository!r} is no file here, and could not be loaded from the Hub"
            f"{f' with {said}' if said else ''} ({type(error).__name__}: {reason.rstrip('.')})",
            remedy="Check the name, the network and HF_HUB_OFFLINE, or download it and pass the path of its files.",
            dataset=name,
        ) from error
    if isinstance(opened, DatasetDict) and len(opened) == 1:
        (opened,) = opened.values()
    return opened


def _take_split(splits: Mapping[str, Any], split: str | None, name: str) -> Any:
    if split is None:
        raise DatasetError(
            f"the source has the splits {', '.join(splits)}",
            remedy=f'Pass one of them, such as dataset["{next(iter(splits), "train")}"], or its name to '
            "load_preferences(..., split=...).",
            dataset=name,
        )
    if split not in splits:
        raise DatasetError(
            f"the source has no split {split!r}; it has {', '.join(splits)}",
            remedy="Choose one of these.",
            dataset=name,
        )
    return splits[split]


def _first(files: Sequence[FileRows], rows: int) -> tuple[FileRows, ...]:
    first: list[FileRows] = []
    for file in files:
        if rows > 0:
            first.append(FileRows(file.path, min(file.rows, rows)))
        rows -= file.rows
    return tuple(first)


def _unsupported(path: Path, name: str) -> DatasetError:
    return DatasetError(
        f"files that end in {''.join(path.suffixes[-2:])!r} are not supported"
        if path.suffix
        else "the file has no ending that says what it is",
        remedy=f"Supported are {SUPPORTED}.",
        dataset=name,
        file=path,
    )


def _listed(path: Path) -> str:
    entries = sorted(entry.name for entry in path.iterdir())
    return f"{', '.join(entries[:3])}{' and others' if len(entries) > 3 else ''}" if entries else "nothing"
