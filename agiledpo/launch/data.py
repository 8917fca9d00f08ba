"""The rows of a run: opened, recognised, and divided into what is learned from and what is held out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset

from agiledpo.data import LoadedRows
from agiledpo.embedded.preferences import load_embedded_preferences

EMBEDDED = "embedded"
_TEST_FRACTION = 0.1

# Opens a source: load_preferences, load_demonstrations or load_questions.
Loader = Callable[..., LoadedRows]


@dataclass(frozen=True)
class Rows:
    """The rows of a run.

    Attributes:
        train: To learn from.
        test: To compare agents on.
        final: For the figures of the finished run; None for none.
        validation: To watch the run by, by name.
    """

    train: LoadedRows
    test: LoadedRows
    final: LoadedRows | None
    validation: Mapping[str, LoadedRows]


def open_data(
    load: Loader,
    train: str = EMBEDDED,
    test: str | None = None,
    *,
    test_fraction: float = _TEST_FRACTION,
    final: str | None = None,
    validation: Mapping[str, str] | None = None,
    split: str | None = None,
    test_split: str | None = None,
    max_rows: int | None = None,
    max_test_rows: int | None = None,
    seed: int = 42,
    **how: Any,
) -> Rows:
    """Open all data of a run.

    Args:
        load: Opens one source.
        train: File, directory or name on the Hub to learn from; "embedded" needs no network.
        test: The same, to compare agents on; null holds out a part of `train`, no prompt of which is learned from.
        test_fraction: Share of `train` that is held out where `test` is null, in (0, 1).
        final: The same as `test`, for the figures of the finished run, which no choice depended on; null for none.
        validation: More of the same by name, to watch the run by; null for none.
        split: Which split of `train`; null for the one there is, or "train".
        test_split: Which split of `test`, `final` and `validation`; where `test` is null and this is not, the test
            rows are this split of `train`.
        max_rows: Take the first so many rows of `train` only, before any are held out.
        max_test_rows: Take the first so many held-out rows only.
        seed: Of what is held out; null takes the run's `seed`.
        **how: The other arguments of `load`.

    Raises:
        DatasetError: A source cannot be opened.
        ValueError: An argument is out of range, or arguments contradict each other.
    """

    def opened(source: str, name: str, *, split: str | None, most: int | None) -> LoadedRows:
        return load(_embedded(source, name), split=split, max_rows=most, dataset_name=name, **how)

    train_rows = opened(train, "train", split=None if train == EMBEDDED else split, most=max_rows)
    if test is None and (train == EMBEDDED or test_split is not None):
        # The embedded data have held-out rows of their own, about other topics.
        test_rows = opened(train, "test", split=None if train == EMBEDDED else test_split, most=max_test_rows)
    elif test is None:
        train_rows, test_rows = train_rows.split_by_prompt(test_fraction, seed=seed)
        if max_test_rows is not None:
            test_rows = test_rows.select(np.arange(min(max_test_rows, len(test_rows.dataset))))
    else:
        test_rows = opened(test, "test", split=test_split, most=max_test_rows)
    return Rows(
        train_rows,
        test_rows,
        None if final is None else opened(final, "final", split=test_split, most=None),
        {
            name: opened(source, f"validation-{name}", split=test_split, most=None)
            for name, source in (validation or {}).items()
        },
    )


def _embedded(source: str, name: str) -> str | Dataset:
    if source != EMBEDDED:
        return source
    train, test = load_embedded_preferences()
    return train if name == "train" else test
