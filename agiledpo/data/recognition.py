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
        forms = column_forms(dataset, PAIRS.columns, name=name)
        sides = {forms[column] for column in PAIRS.sources if column in forms}
        # A prompt as text beside dialogues repeats what they begin with.
        return ImplicitPairs(prompt="prompt") if forms.get("prompt") is Form.TEXT and sides == {Form.CHAT} else PAIRS
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
        remedy = f"Rename its columns to those of one of them, for example {example}."
    else:
        missing = [column for column in nearest if column not in present]
        changes = [
            f'dataset.rename_column("{found or "<its name>"}", "{column}")'
            for column, found in (_nearest(column, nearest, present) for column in missing)
        ]
        lacking = " and ".join(map(repr, missing))
        remedy = f"The nearest is {', '.join(nearest)}, which lacks {lacking}: use {', then '.join(changes)}."
    return DatasetError(
        f"the columns {present} are those of no format of preferences; known are: {formats}",
        remedy=remedy,
        dataset=name,
    )
