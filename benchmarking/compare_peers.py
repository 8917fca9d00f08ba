"""DPO on the same pairs through AgileDPO, TRL and AgileRL: speed, memory, and how far from the machine's limit.

    python -m benchmarking.compare_peers                       # everything, with the embedded pairs
    python -m benchmarking.compare_peers --pairs FILE.jsonl.gz --repeats 3 --minutes 9
    python -m benchmarking.compare_peers --table-only          # only write the table again

Every run is a process of its own, in the environment of its system, and systems take turns. Every run is saved when it
ends; the same command again makes only the runs that are still missing, so ``--minutes`` cuts the work into pieces.
"""

import argparse
import hashlib
import json
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from agiledpo.cache import cache_directory
from agiledpo.embedded.model import embedded_model_path
from benchmarking.environments import REQUIREMENTS, environment
from benchmarking.machine import describe_machine, package_versions, usable_cores
from benchmarking.pairs import Pair, PairStatistics, load_rows, select_pairs, write_pairs
from benchmarking.peers.configurations import CONFIGURATIONS, MATRIX
from benchmarking.peers.page import report
from benchmarking.processes import WorkerError, run_worker
from benchmarking.results import RESULTS, ResultFile
from benchmarking.workload import MatrixWork, matrix_work_of

NAME = "compare_peers"


@dataclass(frozen=True)
class Workload:
    """What all systems are given. Runs are comparable if their workload's `identity` is the same.

    Attributes:
        pairs: The counted pairs.
        warm_up: One batch that comes before them.
        model: Directory of the model.
        source: Where the pairs are from.
        short_prompts: Whether prompts were shortened.
        batch_size: Pairs per optimizer step.
        max_length: Largest number of tokens of a prompt and a completion.
        threads: Threads of each process.
        machine: The machine.
    """

    pairs: Sequence[Pair]
    warm_up: Sequence[Pair]
    model: str
    source: str
    short_prompts: bool
    batch_size: int
    max_length: int
    threads: int
    machine: dict[str, Any]

    def describe(self) -> dict[str, Any]:
        """What the result file says of it."""
        return {
            "model": Path(self.model).name,
            "source": self.source,
            "short_prompts": self.short_prompts,
            "batch_size": self.batch_size,
            "max_length": self.max_length,
            "threads": self.threads,
            "machine": self.machine,
            "sizes": asdict(PairStatistics.of(self.pairs)),
        }

    @property
    def identity(self) -> str:
        """Differs between workloads and between machines."""
        texts = [[pair.prompt, pair.chosen, pair.rejected] for pair in [*self.warm_up, *self.pairs]]
        return hashlib.sha256(json.dumps([self.describe(), texts]).encode()).hexdigest()[:10]


def main() -> None:
    arguments = parse()
    file = ResultFile(NAME, arguments.output)
    if not arguments.table_only:
        for name in arguments.discard:
            print(f"Forgot {file.discard(config=name)} runs of {name}.")
        complete = measure(arguments, file)
        print("" if complete else "Time is up; the same command goes on from here.", file=sys.stderr)
    text = report(file.data)
    file.write_markdown(text)
    print(text)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, help="jsonl or jsonl.gz with prompt, chosen, rejected; default: embedded")
    parser.add_argument("--num-pairs", type=int, default=32, help="pairs that are counted; a multiple of --batch-size")
    parser.add_argument("--short-prompts", action="store_true", help="keep of each prompt half its completions' length")
    parser.add_argument(
        "--systems",
        nargs="+",
        default=[name for name, configuration in CONFIGURATIONS.items() if configuration.default],
        choices=CONFIGURATIONS,
        metavar="SYSTEM",
        help=f"of {', '.join(CONFIGURATIONS)}",
    )
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--repeats", type=int, default=3, help="runs of each system that there should be in the end")
    parser.add_argument("--minutes", type=float, default=math.inf, help="start no run after this time")
    parser.add_argument("--timeout", type=float, default=1200, help="seconds after which a single run is given up")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--model", type=Path, help="directory of a model; default: the embedded SmolLM2-135M-Instruct")
    parser.add_argument(
        "--environments",
        type=Path,
        default=cache_directory("environments"),
        help="where the systems' environments are made (about 2 GB each)",
    )
    parser.add_argument(
        "--python",
        nargs="+",
        default=[],
        metavar="SYSTEM=PATH",
        help=f"use this interpreter for a system ({', '.join(REQUIREMENTS)}) and make no environment",
    )
    parser.add_argument(
        "--discard", nargs="+", default=[], choices=CONFIGURATIONS, metavar="SYSTEM", help="forget runs"
    )
    parser.add_argument("--table-only", action="store_true", help="measure nothing")
    parser.add_argument("--output", type=Path, default=RESULTS, help="directory of the result files")
    arguments = parser.parse_args()
    if arguments.num_pairs < 1 or arguments.num_pairs % arguments.batch_size:
        parser.error(f"--num-pairs {arguments.num_pairs} is not a multiple of --batch-size {arguments.batch_size}")
    arguments.python = dict(entry.split("=", 1) for entry in arguments.python)
    unknown = set(arguments.python) - set(REQUIREMENTS)
    if unknown:
        parser.error(f"--python {', '.join(unknown)}: the systems are {', '.join(REQUIREMENTS)}")
    return arguments


def measure(arguments: argparse.Namespace, file: ResultFile) -> bool:
    """Make the runs that are missing; False if time was up before that."""
    deadline = time.monotonic() + 60 * arguments.minutes
    workload = make_workload(arguments)
    work = matrix_work_of(workload.model)
    workloads = {**file.data.get("workloads", {}), workload.identity: workload.describe() | {"work": _as_json(work)}}
    file.set(workloads=workloads)
    systems = dict.fromkeys(CONFIGURATIONS[name].system for name in arguments.systems)
    pythons = {
        system: Path(arguments.python[system])
        if system in arguments.python
        else environment(system, arguments.environments)
        for system in systems
    }
    with tempfile.TemporaryDirectory() as directory:
        pairs = Path(directory) / "pairs.jsonl"
        write_pairs([*workload.warm_up, *workload.pairs], pairs)
        for repeat in range(arguments.repeats):
            for dtype in arguments.dtypes:
                names = [MATRIX, *(name for name in arguments.systems if dtype in CONFIGURATIONS[name].dtypes)]
                for name in names:
                    if _count(file, workload.identity, name, dtype) > repeat:
                        continue
                    if time.monotonic() > deadline:
                        return False
                    try:
                        result = run(name, dtype, workload, work, pairs, pythons, arguments.timeout)
                    except WorkerError as error:
                        print(f"{name}, {dtype}: {error}", file=sys.stderr, flush=True)
                        result = {"error": str(error)}
                    file.append({"workload": workload.identity, "config": name, "dtype": dtype, **result})
                    _say(name, dtype, result)
    return True


def make_workload(arguments: argparse.Namespace) -> Workload:
    """The workload that the arguments describe."""
    model = str(arguments.model or embedded_model_path())
    tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
    pairs = select_pairs(
        load_rows(arguments.pairs),
        tokenizer,
        arguments.num_pairs + arguments.batch_size,
        max_length=arguments.max_length,
        short_prompts=arguments.short_prompts,
    )
    return Workload(
        pairs=pairs[arguments.batch_size :],
        warm_up=pairs[: arguments.batch_size],
        model=model,
        source="embedded pairs" if arguments.pairs is None else arguments.pairs.name,
        short_prompts=arguments.short_prompts,
        batch_size=arguments.batch_size,
        max_length=arguments.max_length,
        threads=arguments.threads,
        machine=describe_machine(arguments.threads),
    )


def run(
    name: str,
    dtype: str,
    workload: Workload,
    work: MatrixWork,
    pairs: Path,
    pythons: dict[str, Path],
    timeout: float,
) -> dict[str, Any]:
    """One run of a system, or one measurement of the matrix rate."""
    if name == MATRIX:
        sizes = PairStatistics.of(workload.pairs)
        per_batch = workload.batch_size / sizes.pairs
        task = {
            "shapes": work.shapes,
            "rows": round(sizes.tokens * per_batch),
            "head_rows": round(sizes.completion_tokens * per_batch),
            "dtype": dtype,
            "threads": workload.threads,
        }
        rates = run_worker("benchmarking.peers.matrix_worker", task, threads=workload.threads, timeout=timeout)
        return {**rates, "versions": package_versions(("torch",))}
    configuration = CONFIGURATIONS[name]
    return run_worker(
        f"benchmarking.peers.{configuration.system}_worker",
        {
            "pairs": str(pairs),
            "model": workload.model,
            "dtype": dtype,
            "batch_size": workload.batch_size,
            "max_length": workload.max_length,
            "threads": workload.threads,
            "options": configuration.options,
        },
        threads=workload.threads,
        python=pythons[configuration.system],
        timeout=timeout,
    )


def _count(file: ResultFile, workload: str, name: str, dtype: str) -> int:
    wanted = (workload, name, dtype)
    return sum((entry["workload"], entry["config"], entry["dtype"]) == wanted for entry in file.runs)


def _say(name: str, dtype: str, result: dict[str, Any]) -> None:
    if "seconds" in result:
        speed = result["pairs"] / result["seconds"]
        print(f"{name}, {dtype}: {speed:.3f} pairs/s, {result['peak_mb']:.0f} MB", file=sys.stderr, flush=True)


def _as_json(work: MatrixWork) -> dict[str, Any]:
    return {"decoder": [[*shape, count] for shape, count in work.decoder.items()], "head": list(work.head)}


if __name__ == "__main__":
    main()
