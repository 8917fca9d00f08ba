"""Run on a disk that fills up, or that becomes read-only, in a name space where one may be mounted.

Started by the campaign as ``unshare --map-root-user --mount python -m benchmarking.faults.disk``.
"""

import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

from benchmarking.faults.job import Job, custom_fitness, fingerprint
from benchmarking.processes import report


def full(job: Job, mount: Path, elsewhere: Path, expected: str) -> dict[str, Any]:
    """Fill the disk after the first evaluation; make room again before the run is taken up."""
    ballast = mount / "ballast"

    def fill() -> None:
        with ballast.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(b"\0" * 4096)
            except OSError:
                pass

    return _disturbed(job, mount, elsewhere, expected, fill, ballast.unlink)


def read_only(job: Job, mount: Path, elsewhere: Path, expected: str) -> dict[str, Any]:
    """Make the directory read-only after the first evaluation, and writable again before the run is taken up."""
    run = str(mount / "run")

    def forbid() -> None:
        # A disk of which a file is open (the run's lock) cannot be made read-only; a second mount of it can.
        subprocess.run(["mount", "--bind", run, run], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", run], check=True)

    return _disturbed(job, mount, elsewhere, expected, forbid, lambda: subprocess.run(["umount", run], check=True))


def _disturbed(job: Job, mount: Path, elsewhere: Path, expected: str, break_it: Any, mend: Any) -> dict[str, Any]:
    evaluations = 0

    def fitness(agent: Any, env: Any) -> float:
        nonlocal evaluations
        evaluations += 1
        if evaluations == 9:
            break_it()
        return custom_fitness(agent, env)

    # The lineage is elsewhere: a line of it that cannot be written ends the run, because it could not be complete.
    where = {"checkpoint_path": mount / "run", "lineage_path": elsewhere / "lineage.jsonl"}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ended = fingerprint(job.run(mount, fitness=fitness, **where), elsewhere / "lineage.jsonl")
    said = [str(warning.message) for warning in caught if "could not be written" in str(warning.message)]
    left = sorted(path.name for path in (mount / "run").glob("step_*"))
    mend()
    taken_up = fingerprint(job.run(mount, **where), elsewhere / "lineage.jsonl")
    return {
        "ended the same": ended == expected,
        "warnings": len(said),
        "message": said[0] if said else "",
        "checkpoints left": left,
        "resumed the same": taken_up == expected,
    }


def main() -> None:
    expected = json.loads(sys.argv[1])["expected"]
    job = Job()
    results = {}
    for name, trial in (("full", full), ("read-only", read_only)):
        with tempfile.TemporaryDirectory() as directory:
            mount, elsewhere = Path(directory) / "disk", Path(directory) / "elsewhere"
            mount.mkdir()
            elsewhere.mkdir()
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(mount)], check=True)
            try:
                results[name] = trial(job, mount, elsewhere, expected)
            finally:
                subprocess.run(["umount", str(mount)], check=True)
    report(results)


if __name__ == "__main__":
    main()
