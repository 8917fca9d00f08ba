"""The reference does not move, so each pair is scored under it once, for all agents that have the same reference."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import ClassVar

import torch

from agiledpo.distributed.team import Team
from agiledpo.scoring.batch import PreferenceBatch
from agiledpo.scoring.engine import PairScores
from agiledpo.scoring.reference_files import FORMAT, ReferenceFiles
from agiledpo.scoring.reference_rows import Row, RowMemory, bytes_held, join_rows, row_keys, split_rows


class ReferenceCache:
    """Per-token log-probabilities of pairs under reference policies, in memory and optionally on disk.

    A row is found by its token ids and by the name of the reference, so nothing ever has to be invalidated: other
    tokens or another reference are other rows, and old ones leave when room is needed.

    Args:
        memory_bytes: Most bytes held in memory.
        directory: Keep rows here too, in one directory per reference; None for memory only.

    Attributes:
        directory: As given.
    """

    _shared: ClassVar["weakref.WeakKeyDictionary[object, dict[Path | None, ReferenceCache]]"] = (
        weakref.WeakKeyDictionary()
    )

    def __init__(self, *, memory_bytes: int, directory: Path | None = None) -> None:
        self.directory = directory
        self._memory = RowMemory(memory_bytes)
        self._files: dict[str, ReferenceFiles] = {}

    @classmethod
    def shared(cls, owner: object, *, memory_bytes: int, directory: Path | None) -> "ReferenceCache":
        """The cache that all agents on one base model share, one for each directory.

        Args:
            owner: The base model; the cache lives as long.
            memory_bytes: Most bytes held in memory; of several demands the largest holds.
            directory: Where rows are kept on disk; None for nowhere.
        """
        caches = cls._shared.setdefault(owner, {})
        where = None if directory is None else directory.expanduser().resolve()
        if where not in caches:
            caches[where] = cls(memory_bytes=memory_bytes, directory=where)
        memory = caches[where]._memory
        memory.limit = max(memory.limit, memory_bytes)
        return caches[where]

    @property
    def memory_bytes(self) -> int:
        """Bytes that rows take in memory."""
        return self._memory.bytes

    @property
    def memory_limit(self) -> int:
        """Most bytes that rows may take in memory."""
        return self._memory.limit

    def scores(
        self,
        batch: PreferenceBatch,
        reference: str,
        score: Callable[[PreferenceBatch], PairScores],
        device: torch.device,
        team: Team | None = None,
    ) -> PairScores:
        """Scores of a batch under a reference.

        Processes that share the work may know different rows: each may have a memory, and a disk, of its own. Rows that
        some of them lack go from those that have them, and ``score`` is called with those that nobody has.

        Args:
            batch: B pairs.
            reference: Says all that the scores depend on beside the tokens.
            score: Scores pairs under that reference; called at most once, with the pairs that are not known yet.
            device: Where the scores are to be.
            team: The processes that call this with the same batch and share the work of ``score``; the leader writes
                to the directory. None for one.

        Returns:
            What ``score`` gave for each pair, to the bit, without collision terms.
        """
        name = blake2b(f"{FORMAT} {reference}".encode(), digest_size=16)
        keys = row_keys(batch)
        rows = self._known(keys, name.digest())
        files = None if self.directory is None else self._files_of(self.directory / name.hexdigest())
        fresh: dict[bytes, Row] = {}
        if files is not None:
            fresh |= files.get([key for key in dict.fromkeys(keys) if key not in rows])
        team = Team.alone() if team is None else team
        known = {key: rows.get(key, fresh.get(key)) for key in keys}
        told = _exchanged(known, team)
        # By key, so that a pair that is in the batch twice is scored once.
        missing = {key: place for place, key in enumerate(keys) if known[key] is None and key not in told}
        if missing:
            told |= zip(missing, split_rows(score(batch.select(list(missing.values())))), strict=True)
        if told and files is not None and team.leads:
            files.put(told)
        fresh |= told
        self._memory.put({name.digest() + key: row for key, row in fresh.items()})
        rows |= fresh
        return join_rows([rows[key] for key in keys], batch, device)

    def flush(self) -> None:
        """Write what has not been written to the directory yet."""
        for files in self._files.values():
            files.flush()

    def _known(self, keys: Sequence[bytes], reference: bytes) -> dict[bytes, Row]:
        """The rows that memory holds."""
        return {key[len(reference) :]: row for key, row in self._memory.get([reference + k for k in keys]).items()}

    def _files_of(self, directory: Path) -> ReferenceFiles:
        if directory.name not in self._files:
            self._files[directory.name] = ReferenceFiles(directory)
        return self._files[directory.name]


def _exchanged(known: Mapping[bytes, Row | None], team: Team) -> dict[bytes, Row]:
    """The rows that this process lacks and another has, from the lowest rank that has them.

    Args:
        known: For each row of the batch what this process knows; None where it lacks it.
        team: The processes.
    """
    if team.is_alone:
        return {}
    keys = list(known)
    lacking = team.gather([number for number, row in enumerate(known.values()) if row is None])
    lacks = [set(numbers) for numbers in lacking]
    wanted = {number for number in set().union(*lacks) if any(number not in numbers for numbers in lacks)}
    if not wanted:
        return {}
    # Each row once, although several may have it.
    mine = {number: known[keys[number]] for number in wanted if _first_without(number, lacks) == team.rank}
    rows = {number: row for given in team.gather(mine) for number, row in given.items()}
    return {keys[number]: row for number, row in rows.items() if row is not None and number in lacks[team.rank]}


def _first_without(number: int, sets: Sequence[set[int]]) -> int:
    return next(place for place, members in enumerate(sets) if number not in members)


def memory_needed(pairs: int, tokens: int) -> int:
    """Bytes that the cache takes in memory.

    Args:
        pairs: Number of pairs.
        tokens: Tokens of all their completions.
    """
    return pairs * bytes_held(bytes(32), 0) + 4 * tokens
