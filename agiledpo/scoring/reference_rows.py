"""Reference log-probabilities pair by pair: how a pair is named, and a bounded memory for its numbers."""

import sys
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from hashlib import blake2b

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agiledpo.losses import TokenLogProbs
from agiledpo.scoring.batch import PreferenceBatch
from agiledpo.scoring.engine import PairScores

KEY_BYTES = 16

# Log-probabilities of one pair: chosen completion, then rejected; (tokens of both,).
Row = NDArray[np.floating]

# The key, the place in the ordered dictionary, and Python's share of an array.
_BYTES_PER_ENTRY = 280


def row_keys(batch: PreferenceBatch) -> list[bytes]:
    """Name each pair by its token ids, which are all that a score of it depends on beside the model.

    Chat template and end-of-sequence token show in the tokens; what a loss makes of the scores does not count.

    Args:
        batch: B pairs.

    Returns:
        B digests of 16 bytes.
    """
    return [_key(*parts) for parts in zip(batch.prompts, batch.chosen, batch.rejected, strict=True)]


def _key(*parts: Tensor) -> bytes:
    digest = blake2b(digest_size=KEY_BYTES)
    digest.update(np.array([len(ids) for ids in parts], dtype="<i8").data)
    for ids in parts:
        digest.update(ids.numpy().astype("<i8", copy=False).data)
    return digest.digest()


def split_rows(scores: PairScores) -> list[Row]:
    """Take scores apart, one array per pair, without padding.

    Args:
        scores: Scores of B pairs.
    """
    sides = [(side.logps.detach().cpu().numpy(), side.lengths.tolist()) for side in (scores.chosen, scores.rejected)]
    return [np.concatenate([logps[row, : lengths[row]] for logps, lengths in sides]) for row in range(len(sides[0][1]))]


def join_rows(rows: Sequence[Row], batch: PreferenceBatch, device: torch.device) -> PairScores:
    """Put arrays of :func:`split_rows` together, padded no wider than needed.

    Args:
        rows: One per pair.
        batch: The pairs.
        device: Where the scores are to be.
    """
    halves = [np.split(row, [len(chosen)]) for row, chosen in zip(rows, batch.chosen, strict=True)]
    return PairScores(_padded([half[0] for half in halves], device), _padded([half[1] for half in halves], device))


def _padded(rows: Sequence[Row], device: torch.device) -> TokenLogProbs:
    lengths = np.array([len(row) for row in rows])
    mask = np.arange(lengths.max()) < lengths[:, None]
    logps = np.zeros(mask.shape, dtype=rows[0].dtype)
    logps[mask] = np.concatenate(rows)
    return TokenLogProbs(logps=torch.from_numpy(logps).to(device), mask=torch.from_numpy(mask).to(device))


class RowMemory:
    """Rows by name, up to a number of bytes; those not used for longest give way.

    Args:
        limit: Most bytes that are held, bookkeeping included.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bytes = 0
        self._rows: OrderedDict[bytes, Row] = OrderedDict()

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, keys: Sequence[bytes]) -> dict[bytes, Row]:
        """The rows that are held, which counts as using them."""
        found = {key: self._rows[key] for key in keys if key in self._rows}
        for key in found:
            self._rows.move_to_end(key)
        return found

    def put(self, rows: Mapping[bytes, Row]) -> None:
        """Hold rows, and let go of others where the limit asks for it."""
        for key, row in rows.items():
            self._discard(key)
            self._rows[key] = row
            self.bytes += bytes_held(key, row.nbytes)
        while self.bytes > self.limit:
            self._discard(next(iter(self._rows)))

    def _discard(self, key: bytes) -> None:
        row = self._rows.pop(key, None)
        if row is not None:
            self.bytes -= bytes_held(key, row.nbytes)


def bytes_held(key: bytes, values: int) -> int:
    """Memory that a row takes.

    Args:
        key: Its name.
        values: Bytes of its numbers.
    """
    return _BYTES_PER_ENTRY + sys.getsizeof(key) + values
