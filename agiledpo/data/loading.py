"""From a file, a name or a dataset to rows whose format is known."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import pyarrow as pa
from datasets import Dataset

from agiledpo.data.demonstrations import recognise_demonstrations
from agiledpo.data.diagnosis import explain_no_header, mixed_column, read_column_types
from agiledpo.data.errors import DatasetError
from agiledpo.data.files import FileRows, kind_of_file, read_header
from agiledpo.data.layout import Layout
from agiledpo.data.loaded_rows import LoadedRows
from agiledpo.data.named import NamedDataset, find_repository, named_dataset
from agiledpo.data.pairs import Pairs
from agiledpo.data.questions import check_template, recognise_questions
from agiledpo.data.ranked import Pairing, Ranked
from agiledpo.data.recognition import recognise_pairs, recognise_preferences
from agiledpo.data.sources import Source, open_source, split_of

RowSource: TypeAlias = Source | LoadedRows


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
) -> LoadedRows:
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
    if layout is not None and pairing != Ranked.pairing:
        raise ValueError(
            f"pairing={pairing!r} and layout={layout!r} each say how completions are paired: give layout alone, "
            f"such as Ranked(pairing={pairing!r})."
        )
    _check_config(config, source)
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

    def recognise() -> Layout:
        if layout is not None:
            return layout
        if given:
            columns = Pairs(**{key.removesuffix("_key"): column for key, column in given.items()})
            return recognise_pairs(dataset, columns, name=dataset_name)
        return recognise_preferences(dataset, name=dataset_name, pairing=pairing)

    loaded = _laid_out(dataset, files, dataset_name, recognise, given)
    if pairing != Ranked.pairing and not isinstance(loaded.layout, Ranked):
        raise ValueError(
            f"pairing={pairing!r} is for ranked completions, and the {dataset_name} dataset has none: its columns are "
            f"{', '.join(dataset.column_names)}. Leave it out."
        )
    return loaded


def load_demonstrations(
    source: Source,
    *,
    split: str | None = None,
    response_column: str | None = None,
    config: str | None = None,
    max_rows: int | None = None,
    dataset_name: str = "demonstration",
) -> LoadedRows:
    """Open prompts with one completion each, or whole dialogues, to learn from.

    Args:
        source: As for `load_preferences`.
        split: Which split of a source that has several.
        response_column: Column of the completion, beside "prompt"; None takes "completion" or "target" if it is there
            with "prompt", otherwise "messages".
        config: Which configuration of a repository on the Hub.
        max_rows: Take the first so many rows only.
        dataset_name: What messages call the dataset, such as "train".

    Raises:
        DatasetError: The source cannot be opened, or its columns are not these. Rows are checked where they are
            tokenised.
        ValueError: `max_rows` is not positive, or the source has no configurations.
    """
    _check_config(config, source)
    dataset, files = open_source(source, split=split, config=config, max_rows=max_rows, name=dataset_name)
    return _laid_out(dataset, files, dataset_name, lambda: recognise_demonstrations(dataset, response_column), {})


def load_questions(
    source: Source,
    *,
    split: str | None = None,
    conversation_template: Sequence[Mapping[str, str]] | None = None,
    answer_column: str = "answer",
    layout: Layout | None = None,
    config: str | None = None,
    max_rows: int | None = None,
    dataset_name: str = "question",
) -> LoadedRows:
    """Open prompts without completions, which are sampled and judged by a reward.

    Args:
        source: As for `load_preferences`.
        split: Which split of a source that has several.
        conversation_template: Messages into which each question is put; see `Questions`. None for the user's message.
        answer_column: Column of the answer, if the template shows it.
        layout: How rows are read: `Questions` or `Prompts` of other columns; None takes "question" if it is there,
            otherwise "prompt".
        config: Which configuration of a repository on the Hub.
        max_rows: Take the first so many rows only.
        dataset_name: What messages call the dataset, such as "train".

    Raises:
        DatasetError: The source cannot be opened, or its columns are not these. Rows are checked where they are
            tokenised.
        TypeError: `conversation_template` is no list of messages.
        ValueError: An argument is out of range, or arguments contradict each other.
    """
    if conversation_template is not None:
        if layout is not None:
            raise ValueError(
                "conversation_template and layout each say how rows are read: give layout alone, such as "
                "Questions(template=...)."
            )
        check_template(conversation_template)
    if layout is not None and layout.completions:
        raise ValueError(f"layout must be of prompts alone, such as Questions or Prompts, got {layout!r}.")
    _check_config(config, source)
    dataset, files = open_source(source, split=split, config=config, max_rows=max_rows, name=dataset_name)

    def recognise() -> Layout:
        if layout is not None:
            return layout
        return recognise_questions(dataset, conversation_template, answer=answer_column, name=dataset_name)

    return _laid_out(dataset, files, dataset_name, recognise, {})


def _check_config(config: str | None, source: Source) -> None:
    if config is None or (isinstance(source, str) and not Path(source).expanduser().exists()):
        return
    what = repr(str(source)) if isinstance(source, str | Path) else f"a {type(source).__name__}"
    raise ValueError(
        f"config={config!r} is of a repository on the Hub, and the source is {what}. Leave it out, or give the file "
        "or directory that holds the configuration."
    )


def _laid_out(
    dataset: Dataset,
    files: tuple[FileRows, ...],
    name: str,
    recognise: Callable[[], Layout],
    keys: Mapping[str, str],
) -> LoadedRows:
    """Rows with their layout, if their columns are of it."""
    try:
        _check_keys(keys, dataset.column_names, name)
        layout = recognise()
        layout.form(dataset, name=name)
    except DatasetError as error:
        raise _explained(error, files, name) from error
    _refuse_mixed(dataset, layout.columns, files, name)
    return LoadedRows(dataset, layout, files, name)


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
    has_splits = any(split_of(path, source) == known.split for path in source.rglob("*") if path.is_file())
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
