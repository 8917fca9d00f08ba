"""Kill a run at random moments, during writes too, and go on each time until it ends."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarking.faults.job import Job, fingerprint


@dataclass
class Survived:
    """What became of one run that was killed.

    Attributes:
        kills: How often it was killed before it was let go on to its end.
        in_writes: How many of them left an unfinished checkpoint behind.
        unsaved: How many came before the first checkpoint was complete.
        same: Whether it ended bit for bit as a run that was never killed, lineage included.
        error: What went wrong when it was taken up; None for nothing.
    """

    kills: int = 0
    in_writes: int = 0
    unsaved: int = 0
    same: bool = False
    error: str | None = None


def killed(job: Job, directory: Path, expected: str, seconds: float, kills: int, rng: np.random.Generator) -> Survived:
    """Begin a run, kill it some times at random moments and let it go on to its end.

    Args:
        job: The run.
        directory: An empty one.
        expected: Fingerprint of the run that was never killed.
        seconds: How long an undisturbed run takes.
        kills: How often.
        rng: Draws the moments.
    """
    outcome = Survived()
    for _ in range(kills):
        child = in_child(lambda: job.run(directory))
        time.sleep(rng.uniform(0, seconds))
        os.kill(child, signal.SIGKILL)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != -signal.SIGKILL:
            continue  # it had ended before
        outcome.kills += 1
        outcome.in_writes += any((directory / "run").glob(".step_*"))
        outcome.unsaved += not any((directory / "run").glob("step_*/manifest.json"))
    answer = directory / "answer"

    def finish() -> None:
        answer.write_text(fingerprint(job.run(directory), directory / "lineage.jsonl"))

    code = os.waitstatus_to_exitcode(os.waitpid(in_child(finish, errors=directory / "error"), 0)[1])
    if code:
        outcome.error = (directory / "error").read_text().strip().splitlines()[-1]
    else:
        outcome.same = answer.read_text() == expected
    return outcome


def in_child(work: Callable[[], object], errors: Path | None = None) -> int:
    """Do something in a forked process, which has everything loaded already; returns its number.

    Args:
        work: What to do.
        errors: File for the traceback, if it fails.
    """
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        work()
        code = 0
    except BaseException:
        if errors is not None:
            import traceback

            errors.write_text(traceback.format_exc())
    finally:
        os._exit(code)
    raise AssertionError
