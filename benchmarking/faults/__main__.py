"""A fault campaign: what becomes of a population's run that is killed, starved of disk, or finds its files damaged.

    python -m benchmarking.faults                # 60 kills; about 10 minutes
    python -m benchmarking.faults --kills 6      # a look

A run of four agents saves itself after every batch, so that a good part of its time is spent in writes. Every outcome
is compared, bit for bit, with a run that nothing happened to: weights, moments, histories, random streams and lineage.
"""

import argparse
import collections
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarking.faults.damage import damaged
from benchmarking.faults.job import Job, fingerprint
from benchmarking.faults.kills import killed
from benchmarking.machine import PACKAGES, REPOSITORY, describe_machine, package_versions, sentence
from benchmarking.processes import MARK, worker_environment
from benchmarking.results import RESULTS, ResultFile, markdown_table

NAME = "faults"


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    torch.set_num_threads(1)  # a process that has started threads must not be forked
    file = ResultFile(NAME, options.output)
    file.data["runs"] = []
    file.set(machine=describe_machine(1), versions=package_versions(PACKAGES))
    with tempfile.TemporaryDirectory() as directory:
        file.append(campaign(Path(directory), options))
    text = page(file.data)
    file.write_markdown(text)
    print(text)


def campaign(directory: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Do everything, and return the outcomes."""
    rng = np.random.default_rng(options.seed)
    job = Job()
    started = time.perf_counter()
    undisturbed = job.run(directory / "undisturbed")
    seconds = time.perf_counter() - started
    expected = fingerprint(undisturbed, directory / "undisturbed" / "lineage.jsonl")
    print(f"An undisturbed run takes {seconds:.1f} s.", file=sys.stderr)

    survived: list[dict[str, Any]] = []
    while sum(outcome["kills"] for outcome in survived) < options.kills:
        outcome = killed(job, directory / f"killed_{len(survived)}", expected, seconds, int(rng.integers(1, 4)), rng)
        survived.append(vars(outcome))
        print(f"run {len(survived)}: {vars(outcome)}", file=sys.stderr, flush=True)

    refusals = []
    for refusal in damaged(job, directory / "undisturbed", expected, rng):
        refusals.append(vars(refusal))
        print(f"{refusal.file} {refusal.harm}: {refusal.message}", file=sys.stderr, flush=True)
    return {"seconds": seconds, "killed": survived, "damaged": refusals, "disk": disk(expected)}


def disk(expected: str) -> dict[str, Any] | str:
    """The full and the read-only disk, in a process that may mount one; a reason if none may."""
    command = ["unshare", "--map-root-user", "--mount", sys.executable, "-m", "benchmarking.faults.disk"]
    done = subprocess.run(
        [*command, json.dumps({"expected": expected})],
        cwd=REPOSITORY,
        env=worker_environment(1),
        capture_output=True,
        text=True,
        check=False,
    )
    results = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if not results:
        return (done.stderr.strip().splitlines() or ["no output"])[-1]
    answer: dict[str, Any] = json.loads(results[-1].removeprefix(MARK))
    return answer


def page(data: Mapping[str, Any]) -> str:
    """The page with the tables of outcomes."""
    run = data["runs"][-1]
    kills = collections.Counter()
    for outcome in run["killed"]:
        kills.update({name: outcome[name] for name in ("kills", "in_writes", "unsaved")})
    same = sum(outcome["same"] for outcome in run["killed"])
    errors = [outcome["error"] for outcome in run["killed"] if outcome["error"]]
    lines = [
        "# What a run survives",
        "",
        f"{sentence(data['machine'])}. `{run['command']}`",
        "",
        "Four agents that evolve save themselves after every batch. Each outcome is compared with a run that nothing "
        "happened to: weights, moments, histories, random streams and the lineage's file.",
        "",
        "## SIGKILL at random moments",
        "",
        markdown_table(
            ["runs", "kills", "during a write", "before the first checkpoint", "ended bitwise the same", "failed"],
            [[len(run["killed"]), kills["kills"], kills["in_writes"], kills["unsaved"], same, len(errors)]],
        ),
        *(f"\n- {error}" for error in errors),
        "",
        "## One file harmed",
        "",
        "The newest checkpoint of a finished run, each file in turn. Refused: by `resume_from=<directory>`, with the "
        'file\'s name. Fell back: `resume_from="latest"` said so, went on from the checkpoint before and ended bitwise '
        "the same.",
        "",
    ]
    harms = list(dict.fromkeys(refusal["harm"] for refusal in run["damaged"]))
    rows = []
    for file in dict.fromkeys(refusal["file"] for refusal in run["damaged"]):
        of_file = {refusal["harm"]: refusal for refusal in run["damaged"] if refusal["file"] == file}
        rows.append([f"`{file}`", *(_outcome(of_file[harm]) for harm in harms)])
    lines += [markdown_table(["file", *harms], rows), "", "## The disk", ""]
    if isinstance(run["disk"], str):
        lines.append(f"Not measured: {run['disk']}")
    else:
        columns = ["ended the same", "warnings", "checkpoints left", "resumed the same"]
        lines.append(
            markdown_table(
                ["the disk becomes", *columns],
                [[name, *(_plain(result[column]) for column in columns)] for name, result in run["disk"].items()],
            )
        )
        lines += [f"\n{name}: {result['message']}" for name, result in run["disk"].items()]
    return "\n".join(lines) + "\n"


def _outcome(refusal: Mapping[str, Any]) -> str:
    if not refusal["refused"]:
        return "LOADED"
    return ("refused by name" if refusal["named"] else "refused") + (
        ", fell back" if refusal["fell_back"] else ", LOST"
    )


def _plain(value: Any) -> object:
    if isinstance(value, bool):
        return "yes" if value else "NO"
    return ", ".join(value) if isinstance(value, list) else value


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=60, help="at least so many")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and places")
    parser.add_argument("--output", type=Path, default=RESULTS, help="directory of the result files")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
