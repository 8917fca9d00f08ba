"""How many tokens every row has, in one small file."""

from collections.abc import Sequence
from contextlib import suppress

import numpy as np
from datasets import Dataset, is_caching_enabled
from numpy.typing import NDArray

from agiledpo.cache import cache_directory
from agiledpo.disk import complete_or_absent


def token_lengths(tokenized: Dataset, columns: Sequence[str], fingerprint: str) -> NDArray[np.int32]:
    """Numbers of tokens of the prompts and completions of all rows.

    They are kept apart from the tokens: between these, the lengths of a million rows are spread over the whole file.

    Args:
        tokenized: Tokenised rows, not selected from.
        columns: Their columns of lengths.
        fingerprint: Name of the tokenised rows; equal names mean equal lengths.

    Returns:
        (columns, rows) int32, memory-mapped.
    """
    path = cache_directory("lengths") / f"{fingerprint}.npy"
    if is_caching_enabled() and path.exists():
        with suppress(OSError, ValueError, EOFError):  # not ours to read, or damaged: compute it again
            lengths = np.load(path, mmap_mode="r")
            if lengths.shape == (len(columns), len(tokenized)):
                return lengths
    lengths = np.empty((len(columns), len(tokenized)), dtype=np.int32)
    for column, values in zip(columns, lengths, strict=True):
        values[:] = tokenized.data.column(column).to_numpy()
    # Also when two processes write it at once.
    with complete_or_absent(path, overwrite=True) as file:
        np.save(file, lengths)
    return np.load(path, mmap_mode="r")
