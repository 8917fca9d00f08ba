"""Reference log-probabilities on disk: safetensors shards that any number of processes read and add to.

A shard is written beside its place, flushed and renamed, under a name that no other process uses, and never changed
afterwards: whatever a reader finds is complete, and nobody waits for a lock.
"""

import os
import uuid
import warnings
import weakref
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from agiledpo.disk import flush
from agiledpo.scoring.reference_rows import KEY_BYTES, Row

FORMAT = "agiledpo-reference-1"

# A shard is written when this much is waiting, or this long after the one before, whichever comes first: shards stay
# few, and a process that is killed loses a minute of scores.
_SHARD_BYTES = 32 * 2**20
_SHARD_SECONDS = 60.0


class ReferenceFiles:
    """The rows of one reference in one directory.

    What is added is found at once; it reaches the disk with the next shard, at the latest when the object is
    garbage-collected or the interpreter exits.

    Args:
        directory: Where the shards are; made on first writing.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._draft = _Draft(directory)
        self._shards: dict[str, _Shard] = {}
        self._seen: set[str] = set()
        self._modified = -1
        weakref.finalize(self, self._draft.write)

    def get(self, keys: Sequence[bytes]) -> dict[bytes, Row]:
        """The rows that are here, of this process and of others.

        Args:
            keys: Names of rows.

        Warns:
            UserWarning: A shard is damaged; it is left out from then on.
        """
        if self._draft.is_due:  # also when nothing new comes any more
            self._draft.write()
        found = {key: self._draft.rows[key] for key in keys if key in self._draft.rows}
        missing = [key for key in keys if key not in found]
        if missing:
            self._look_for_shards()
        for name, shard in list(self._shards.items()):
            if not missing:
                break
            try:
                found |= shard.get(missing)
            except (SafetensorError, OSError, ValueError) as error:
                del self._shards[name]
                self._warn(name, error)
            missing = [key for key in missing if key not in found]
        return found

    def put(self, rows: Mapping[bytes, Row]) -> None:
        """Add rows.

        Args:
            rows: Rows by name.
        """
        self._draft.add(rows)
        if self._draft.is_due:
            self.flush()

    def flush(self) -> None:
        """Write what is waiting."""
        self._draft.write()

    def _look_for_shards(self) -> None:
        try:
            modified = self._directory.stat().st_mtime_ns
        except OSError:
            return
        if modified == self._modified:
            return
        self._modified = modified
        for path in sorted(self._directory.glob("*.safetensors")):
            if path.name in self._seen:
                continue
            self._seen.add(path.name)
            try:
                self._shards[path.name] = _Shard(path)
            except (SafetensorError, OSError, ValueError) as error:
                self._warn(path.name, error)

    def _warn(self, name: str, error: Exception) -> None:
        warnings.warn(
            f"{self._directory / name} in the reference cache cannot be read ({error}); its rows are scored again. "
            "Delete the file.",
            stacklevel=2,
        )


class _Draft:
    """Rows that wait to be written; knows nothing of its owner, so that it can be written when that is gone."""

    def __init__(self, directory: Path) -> None:
        self.rows: dict[bytes, Row] = {}
        self._directory = directory
        self._bytes = 0
        self._last = monotonic()

    @property
    def is_due(self) -> bool:
        return bool(self.rows) and (self._bytes >= _SHARD_BYTES or monotonic() - self._last >= _SHARD_SECONDS)

    def add(self, rows: Mapping[bytes, Row]) -> None:
        self.rows.update(rows)
        self._bytes += sum(row.nbytes for row in rows.values())

    def write(self) -> None:
        if not self.rows:
            return
        rows = dict(sorted(self.rows.items()))
        self.rows.clear()
        self._bytes, self._last = 0, monotonic()
        try:
            _write(rows, self._directory)
        except (OSError, SafetensorError) as error:
            warnings.warn(
                f"Could not write {len(rows)} rows of the reference cache to {self._directory} ({error}); they will be "
                "scored again when they are needed.",
                stacklevel=2,
            )


def _write(rows: Mapping[bytes, Row], directory: Path) -> None:
    tensors: dict[str, NDArray[Any]] = {
        "keys": np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(-1, KEY_BYTES),
        "ends": np.cumsum([len(row) for row in rows.values()], dtype=np.int64),
        "checksums": np.array([_checksum(key, row) for key, row in rows.items()], dtype=np.uint32),
        "logps": np.concatenate(list(rows.values())),
    }
    directory.mkdir(parents=True, exist_ok=True)
    name = uuid.uuid4().hex
    draft = directory / f".{name}"
    try:
        save_file(tensors, draft, metadata={"format": FORMAT, "reference": directory.name})
        flush(draft)
        os.replace(draft, directory / f"{name}.safetensors")
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    flush(directory)


def _checksum(key: bytes, row: Row) -> int:
    return zlib.crc32(row.tobytes(), zlib.crc32(key))


class _Shard:
    """One file, memory-mapped; only its keys are held.

    Raises:
        ValueError: It does not belong to this directory.
        SafetensorError: It is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._file = safe_open(path, framework="numpy")
        expected = {"format": FORMAT, "reference": path.parent.name}
        if self._file.metadata() != expected:
            raise ValueError(f"its label is {self._file.metadata()}, not {expected}")
        self._keys: NDArray[np.uint8] = self._file.get_tensor("keys")
        self._ends, self._checksums, self._logps = (
            self._file.get_slice(name) for name in ("ends", "checksums", "logps")
        )

    def get(self, keys: Sequence[bytes]) -> dict[bytes, Row]:
        held = _comparable(self._keys)
        wanted = _comparable(np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(-1, KEY_BYTES))
        places = np.searchsorted(held, wanted)
        return {
            key: self._row(int(place), key)
            for key, place in zip(keys, places, strict=True)
            if place < len(held) and self._keys[place].tobytes() == key
        }

    def _row(self, place: int, key: bytes) -> Row:
        start = int(self._ends[place - 1 : place][0]) if place else 0
        row = self._logps[start : int(self._ends[place : place + 1][0])]
        if _checksum(key, row) != int(self._checksums[place : place + 1][0]):
            raise ValueError("its checksum is wrong")
        return row


def _comparable(keys: NDArray[np.uint8]) -> NDArray[np.bytes_]:
    """Keys as byte strings, which NumPy sorts and searches without a copy."""
    return keys.view(f"S{KEY_BYTES}")[:, 0]
