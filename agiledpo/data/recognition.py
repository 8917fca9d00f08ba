"""Tell by the columns of a dataset in which format its preferences are."""

import difflib
from collections.abc import Sequence

from datasets import Dataset

from agiledpo.data.errors import DatasetError
from agiledpo.data.examples import Form
from agiledpo.data.layout import Layout, column_forms
from agiledpo.data.pairs import PAIRS, ImplicitPairs, Pairs
from agiledpo.data.ranked import Pairing, Ranked
from agiledpo.data.token_pairs import TokenPairs

# Each format's columns with what they hold, in the order in which they are looked for.
_FORMATS = {
    PAIRS.columns: "text or chat messages",
    Ranked().columns: "chat messages, and completions with ranks",
    ImplicitPairs().columns: "whole dialogues",
    TokenPairs().columns: "token ids",
}
# What a list of rows is often kept below.
_WRAPPERS = ("data", "rows", "examples", "instances", "train")
# How alike names are of which one may be meant for the other.
_ALIKE = 0.5


def recognise_preferences(dataset: Dataset, *, name: str, pairing: Pairing = "best_worst") -> Layout:
    """The layout of a dataset of preferences.

    Only names and types of columns count, never what the first row happens to hold. Where the columns of several
    formats are there, the first of these is taken: prompt, chosen and rejected; context and completions; chosen and
    rejected; prompt_ids, chosen_ids and rejected_ids. So text comes before ids, which belong to one tokenizer.

    Args:
        dataset: From `check_dataset`.
        name: The dataset's name, for messages.
        pairing: How ranked completions are paired, see `Ranked`.

    Returns:
        The layout. For a dataset with only some of prompt, chosen and rejected, or names like them, `Pairs`, which
        says what is missing.

    Raises:
        DatasetError: The columns are those of no format.
        ValueError: There is no such pairing.
    """
    present = set(dataset.column_names)
    ranked = Ranked(pairing=pairing)
    if set(PAIRS.columns) <= present:
        return recognise_pairs(dataset, PAIRS, name=name)
    if set(ranked.columns) <= present:
        return ranked
    if {"chosen", "rejected"} <= present:
        return ImplicitPairs()
    if set(TokenPairs().columns) <= present:
        return TokenPairs()
    nearest = max(_FORMATS, key=lambda columns: _likeness(columns, dataset.column_names))
    closeness = _likeness(nearest, dataset.column_names)
    if set(nearest) <= set(PAIRS.columns) and closeness != (0, 0):
        return Pairs()
    raise _unknown_format(dataset.column_names, nearest if closeness != (0, 0) else None, name)


def recognise_pairs(dataset: Dataset, columns: Pairs, *, name: str) -> Layout:
    """The layout of pairs whose columns have been named.

    Args:
        dataset: From `check_dataset`.
        columns: Their names.
        name: The dataset's name, for messages.

    Returns:
        `Pairs`; or `ImplicitPairs`, if there is no prompt column, or one of text beside dialogues. If a side is
        missing, `Pairs`, which says so.

    Raises:
        DatasetError: A column holds what no pair has.
    """
    if not set(columns.sources) <= set(dataset.column_names):
        return columns
    if columns.prompt not in dataset.column_names:
        return ImplicitPairs(columns.chosen, columns.rejected)
    forms = column_forms(dataset, columns.columns, name=name)
    sides = {forms[column] for column in columns.sources if column in forms}
    # A prompt as text beside dialogues repeats what they begin with.
    repeated = forms.get(columns.prompt) is Form.TEXT and sides == {Form.CHAT}
    return ImplicitPairs(columns.chosen, columns.rejected, columns.prompt) if repeated else columns


def _likeness(columns: Sequence[str], present: Sequence[str]) -> tuple[float, float]:
    """The share of a format's columns that are there, and how near others are to the rest."""
    missing = [column for column in columns if column not in present]
    near = [_nearest(column, columns, present) for column in missing]
    ratios = [difflib.SequenceMatcher(None, found.lower(), column).ratio() for column, found in near if found]
    if len(missing) == len(columns) > len(ratios):
        return 0, 0  # one name that is a little like another says nothing
    return 1 - len(missing) / len(columns), sum(ratios) / len(columns)


def _nearest(column: str, columns: Sequence[str], present: Sequence[str]) -> tuple[str, str | None]:
    spare = {other.lower(): other for other in present if other not in columns}
    found = difflib.get_close_matches(column, list(spare), n=1, cutoff=_ALIKE)
    return column, spare[found[0]] if found else None


def _unknown_format(present: list[str], nearest: tuple[str, ...] | None, name: str) -> DatasetError:
    formats = "; ".join(f"{', '.join(columns)} ({what})" for columns, what in _FORMATS.items())
    if nearest is None:
        example = f'dataset.rename_column("{present[0] if present else "<its name>"}", "prompt")'
        remedy = f"Rename its columns to those of one of them: {example}."
        rows = [column for column in present if present == [column] and column in _WRAPPERS]
        if rows:
            remedy = f"Write the rows that are below {rows[0]!r} as a list, or one object a line (JSONL)."
    else:
        missing = [column for column in nearest if column not in present]
        changes = [
            f'dataset.rename_column("{found or "<its name>"}", "{column}")'
            for column, found in (_nearest(column, nearest, present) for column in missing)
        ]
        lacking = " and ".join(map(repr, missing))
        nearest_columns = ", ".join(nearest)
        remedy = (
            f"The nearest is {nearest_columns}, which lacks {lacking}; rename what holds it: {', then '.join(changes)}."
        )
    return DatasetError(
        f"the columns {present} are those of no format of preferences; known are: {formats}",
        remedy=remedy,
        dataset=name,
    )
