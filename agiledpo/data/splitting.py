"""Hold rows out so that no prompt is on both sides."""

from numbers import Integral

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from agiledpo.data.digests import digest, exact
from agiledpo.data.errors import DatasetError
from agiledpo.data.layout import Layout

_BATCH = 1000


def split_rows_by_prompt(
    dataset: Dataset, layout: Layout, test_size: float, *, seed: int, name: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Divide the rows of a dataset in two that have no prompt in common.

    A split by rows puts other answers to a prompt on the other side, and a held-out figure is then partly memory.

    Args:
        dataset: From `check_dataset`.
        layout: Its layout.
        test_size: Share of the rows for the second part, in (0, 1); whole groups of equal prompts are drawn until it is
            reached, so that with large groups it may be exceeded.
        seed: Of the draw; not negative.
        name: The dataset's name, for messages.

    Returns:
        Row numbers of both parts, (rows,) int64 in ascending order.

    Raises:
        DatasetError: A row cannot be read, or there are too few prompts to divide.
        ValueError: `test_size` is not between 0 and 1, or `seed` is negative.
    """
    if not 0 < test_size < 1:
        raise ValueError(f"test_size must be between 0 and 1, got {test_size!r}.")
    if isinstance(seed, bool) or not isinstance(seed, Integral) or seed < 0:
        raise ValueError(f"seed must be a whole number that is not negative, got {seed!r}.")
    groups = _prompt_groups(dataset, layout, name)
    sizes = np.bincount(groups)
    order = np.random.default_rng(seed).permutation(len(sizes))
    before = np.cumsum(sizes[order]) - sizes[order]
    drawn = order[before < test_size * len(dataset)]
    held_out = np.isin(groups, drawn)
    if held_out.all():
        raise DatasetError(
            f"its {len(dataset)} rows have {len(sizes)} different prompts, too few to hold out {test_size:g} of them",
            remedy="Pass a smaller test_size, or hold out data of another source.",
            dataset=name,
        )
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def _prompt_groups(dataset: Dataset, layout: Layout, name: str) -> NDArray[np.int64]:
    """The number of each row's group, (rows,) int64; rows with equal prompts have equal numbers."""
    form = layout.form(dataset, name=name)
    columns = layout.present(dataset)
    numbers: dict[int, int] = {}
    groups = np.empty(len(dataset), dtype=np.int64)
    for start in range(0, len(dataset), _BATCH):
        batch = dataset.select_columns(list(columns))[start : start + _BATCH]
        for row, values in enumerate(zip(*batch.values(), strict=True), start):
            named = dict(zip(columns, values, strict=True))
            examples = layout.read(form, row, named, name=name)
            # A row without a preference is left out later, on whichever side it is.
            said = exact(layout.origin(examples[0], named)) if examples else None
            number = digest(b"row", str(row).encode()) if said is None else digest(said)
            groups[row] = numbers.setdefault(number, len(numbers))
    return groups
