"""What checkpoints cost: seconds, bytes on the disk and memory, of one agent and of a whole run.

    python -m benchmarking.checkpoint_cost                     # 8 agents on the embedded model, float32 and bfloat16
    python -m benchmarking.checkpoint_cost --agents 8 --dtypes bfloat16 --repeats 7 --directory /data/tmp
    python -m benchmarking.checkpoint_cost --quick             # a tiny model of random weights
    python -m benchmarking.checkpoint_cost --table-only        # only write the page again

Every population is a process of its own. Its agents learn one batch each, so that all have an optimizer's moments, and
are then saved and loaded again and again. Saving includes flushing every file to the disk. Results are written as they
come; the same command again makes only those that are missing.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agiledpo.embedded.model import embedded_model_path
from benchmarking.machine import describe_machine, sentence, usable_cores
from benchmarking.population_memory import tiny_model
from benchmarking.processes import WorkerError, run_worker
from benchmarking.results import RESULTS, ResultFile, markdown_table

NAME = "checkpoint_cost"

# Seconds between two checkpoints for the share of the time that they take.
INTERVAL = 60.0

# What the worker times, and what the page calls it.
PHASES = {
    "agent saved": "one agent, saved",
    "agent loaded": "one agent, loaded",
    "run saved": "the run, saved",
    "run loaded": "the run, loaded",
}


def main() -> None:
    arguments = _parse()
    file = ResultFile(NAME, arguments.output)
    failed = False if arguments.table_only else measure(arguments, file)
    text = page(file.data)
    file.write_markdown(text)
    print(text)
    if failed:
        sys.exit(1)


def measure(arguments: argparse.Namespace, file: ResultFile) -> bool:
    """Make the runs that are missing; whether one failed."""
    failed = False
    with tempfile.TemporaryDirectory() as temporary:
        model = embedded_model_path()
        name = model.name
        if arguments.quick:
            model, name = tiny_model(Path(temporary) / "tiny", model), "tiny Llama of random weights"
        machine = describe_machine(arguments.threads)
        for dtype in arguments.dtypes:
            for agents in arguments.agents:
                key = {"model": name, "dtype": dtype, "agents": agents, "rank": arguments.rank, "machine": machine}
                if any(all(run[part] == key[part] for part in key) for run in file.runs):
                    continue
                task = {
                    "model": str(model),
                    "dtype": dtype,
                    "agents": agents,
                    "rank": arguments.rank,
                    "repeats": arguments.repeats,
                    "directory": str(arguments.directory),
                    "threads": arguments.threads,
                }
                try:
                    answer = run_worker(
                        "benchmarking.checkpoint_worker", task, threads=arguments.threads, timeout=arguments.timeout
                    )
                except WorkerError as error:
                    print(f"{dtype}, {agents} agents: {error}", file=sys.stderr)
                    failed = True
                    continue
                file.append({**key, **answer})
                print(f"{dtype}, {agents} agents: {_say(answer)}", file=sys.stderr)
    return failed


def page(data: Mapping[str, Any]) -> str:
    """The page.

    Args:
        data: What the result file holds.
    """
    runs: Sequence[Mapping[str, Any]] = data["runs"]
    parts = [
        "# What checkpoints cost",
        "Seconds: median (smallest to largest). Saving writes beside the old checkpoint, flushes every file to the "
        "disk and renames; loading checks the SHA-256 of every file first, and the files are in the page cache. Disk: "
        "10^6 bytes; the references of agents that are equal are one file. Extra memory: peak of the resident set "
        f"beyond what it was. Share: of the wall time, at a checkpoint every {INTERVAL:.0f} s; nothing is learned "
        "during one. A plain write: as many bytes as the run's, into one file, flushed.",
    ]
    for run in runs:
        parts += [
            f"## {run['model']}, {run['dtype']}, {run['agents']} agent{'s' * (run['agents'] > 1)}, rank {run['rank']}",
            markdown_table(*table(run)),
            f"The base model's weights, which no checkpoint holds, are {run['base_mb']:.0f} MB. "
            f"{sentence(run['machine'])}; "
            + ", ".join(f"{name} {version}" for name, version in run["versions"].items())
            + f"; commit {run['commit'] or 'unknown'}.",
        ]
    return "\n\n".join(parts)


def table(run: Mapping[str, Any]) -> tuple[list[str], list[list[object]]]:
    """A row for each phase, and one for the plain write.

    Args:
        run: A run of the result file.
    """
    header = ["", "seconds", "MB on disk", "files", "extra memory MB", "share at one a minute"]
    rows: list[list[object]] = []
    for name, label in PHASES.items():
        phase, disk = run["phases"][name], run["disk"][name.split()[0]]
        share = f"{statistics.median(phase['seconds']) / INTERVAL:.1%}" if name.endswith("saved") else None
        rows.append(
            [label, _spread(phase["seconds"]), _mb(disk["bytes"]), disk["files"], f"{phase['extra_mb']:.0f}", share]
        )
    rows.append(["a plain write", _spread(run["plain_seconds"]), _mb(run["disk"]["run"]["bytes"]), 1, None, None])
    return header, rows


def _spread(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})"


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f}"


def _say(answer: Mapping[str, Any]) -> str:
    medians = {name: statistics.median(phase["seconds"]) for name, phase in answer["phases"].items()}
    return ", ".join(f"{PHASES[name]} in {seconds:.2f} s" for name, seconds in medians.items())


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--agents", type=int, nargs="+", default=[8], help="sizes of the population")
    add("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=["bfloat16", "float32"], help="of the base")
    add("--rank", type=int, default=16, help="of LoRA on all linear layers")
    add("--repeats", type=int, default=5, help="after a first time that does not count")
    add("--quick", action="store_true", help="a tiny model of random weights")
    add("--directory", type=Path, default=Path(tempfile.gettempdir()), help="where checkpoints are written")
    add("--threads", type=int, default=usable_cores())
    add("--timeout", type=float, default=900, help="seconds after which a population is given up")
    add("--table-only", action="store_true", help="measure nothing")
    add("--output", type=Path, default=RESULTS, help="directory of the result files")
    return parser.parse_args()


if __name__ == "__main__":
    main()
