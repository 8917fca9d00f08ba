"""Tell by the columns of a dataset in which format its preferences are."""

from datasets import Dataset

from agiledpo.data.examples import Form
from agiledpo.data.layout import Layout, column_forms
from agiledpo.data.pairs import PAIRS, ImplicitPairs, Pairs


def recognise_preferences(dataset: Dataset, *, name: str) -> Layout:
    """The layout of a dataset of preferences.

    Only names and types of columns count, never what the first row happens to hold.

    Args:
        dataset: From `check_dataset`.
        name: The dataset's name, for messages.

    Returns:
        The layout; `Pairs` for columns that are none's, which then says what is missing.
    """
    present = set(dataset.column_names)
    if set(PAIRS.columns) <= present:
        forms = column_forms(dataset, PAIRS.columns, name=name)
        if forms.get("prompt") is Form.TEXT and forms.get("chosen") is forms.get("rejected") is Form.CHAT:
            return ImplicitPairs(prompt="prompt")
        return PAIRS
    if {"chosen", "rejected"} <= present:
        return ImplicitPairs()
    return Pairs()
