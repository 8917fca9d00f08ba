"""Harm each file of a checkpoint in turn: it must be refused by name, and the one before taken up."""

import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agiledpo.checkpoint.errors import CheckpointError
from benchmarking.faults.job import Job, fingerprint


def _truncate(file: Path, rng: np.random.Generator) -> None:
    file.write_bytes(file.read_bytes()[: int(rng.integers(file.stat().st_size))])


def _flip(file: Path, rng: np.random.Generator) -> None:
    content = bytearray(file.read_bytes())
    content[int(rng.integers(len(content)))] ^= 1 << int(rng.integers(8))
    file.write_bytes(content)


def _remove(file: Path, rng: np.random.Generator) -> None:
    file.unlink()


HARMS: dict[str, Callable[[Path, np.random.Generator], None]] = {
    "truncated": _truncate,
    "bit flipped": _flip,
    "removed": _remove,
}


@dataclass(frozen=True)
class Refusal:
    """What became of a checkpoint of which one file was harmed.

    Attributes:
        file: The file, relative to the checkpoint.
        harm: What was done to it.
        refused: Whether the checkpoint was refused.
        named: Whether the message named the file.
        fell_back: Whether ``resume_from="latest"`` went on from the checkpoint before, said so, and ended the same.
        message: The message.
    """

    file: str
    harm: str
    refused: bool
    named: bool
    fell_back: bool
    message: str


def damaged(job: Job, directory: Path, expected: str, rng: np.random.Generator) -> Iterator[Refusal]:
    """Harm each file of the newest checkpoint of a finished run in each way.

    Args:
        job: The run.
        directory: Where it ran to its end; it is left as it was.
        expected: Its fingerprint.
        rng: Draws the places.
    """
    newest = max((directory / "run").glob("step_*"), key=lambda path: int(path.name.removeprefix("step_")))
    for file in sorted(path.relative_to(newest) for path in newest.rglob("*") if path.is_file()):
        for harm, do in HARMS.items():
            scratch = directory.with_name(f"{directory.name}_harmed")
            shutil.copytree(directory, scratch)
            victim = scratch / "run" / newest.name / file
            do(victim, rng)
            refused, message = _refused(job, scratch, scratch / "run" / newest.name)
            yield Refusal(str(file), harm, refused, file.name in message, _falls_back(job, scratch, expected), message)
            shutil.rmtree(scratch)


def _refused(job: Job, directory: Path, checkpoint: Path) -> tuple[bool, str]:
    try:
        job.run(directory, resume_from=checkpoint)
    except CheckpointError as error:
        return True, str(error)
    return False, "it was loaded"


def _falls_back(job: Job, directory: Path, expected: str) -> bool:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        population = job.run(directory)
    said = any("Going on from" in str(warning.message) for warning in caught)
    return said and fingerprint(population, directory / "lineage.jsonl") == expected
