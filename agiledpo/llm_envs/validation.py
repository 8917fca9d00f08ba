"""Validation sets and the names of their splits."""

import re
from collections.abc import Mapping
from typing import Any, TypeVar

from agiledpo.llm_envs.types import Split

Rows = TypeVar("Rows")

_NAME = re.compile(r"[A-Za-z0-9_.-]+")


def validation_split(name: str) -> Split:
    """The split of a validation set, which metrics of that set begin with: "validation-<name>".

    Args:
        name: Name of the set.
    """
    return f"validation-{name}"


def validation_splits(datasets: Mapping[str, Rows] | None) -> dict[str, Rows]:
    """Check the names of validation sets.

    Args:
        datasets: Rows by name; None for none.

    Returns:
        The same as a dictionary.

    Raises:
        TypeError: It is no mapping.
        ValueError: A name could be none in a metric's.
    """
    if datasets is None:
        return {}
    if not isinstance(datasets, Mapping):
        raise TypeError(
            f"validation_datasets must be a dictionary of datasets by name, got a {type(datasets).__name__}. With one "
            "set pass validation_datasets={'default': dataset}."
        )
    wrong = [name for name in datasets if not _is_name(name)]
    if wrong:
        raise ValueError(
            f"validation_datasets has the names {wrong!r}. Names go into those of metrics: use ASCII letters, digits, "
            "'_', '-' and '.', at least one."
        )
    return dict(datasets)


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and _NAME.fullmatch(name) is not None
