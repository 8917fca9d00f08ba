"""Speed and memory of AgileDPO against batch size, prompt length, population, data set size and vocabulary.

    python -m benchmarking.scaling                             # every axis
    python -m benchmarking.scaling --axis population --pairs FILE.jsonl.gz
    python -m benchmarking.scaling --axis vocabulary --quick   # a smaller grid, once
    python -m benchmarking.scaling --table-only                # only write tables and pictures again

Every point is a process of its own, and points take turns. Every run is saved when it ends; the same command again
makes only the runs that are still missing, so ``--minutes`` cuts the work into pieces.
"""

import argparse
import hashlib
import json
import math
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from agiledpo.embedded.model import embedded_model_path
from benchmarking.machine import describe_machine, package_versions, sentence, usable_cores
from benchmarking.pairs import load_rows, select_pairs
from benchmarking.processes import WorkerError, run_worker
from benchmarking.results import RESULTS, ResultFile, markdown_table
from benchmarking.scaling.axes import AXES, Point, medians
from benchmarking.scaling.pictures import draw
from benchmarking.scaling.worker import Task, TokenPair, write_token_pairs

NAME = "scaling"
BATCH_SIZE = 4
WARM_UP = 4


def main() -> None:
    arguments = _parse()
    file = ResultFile(NAME, arguments.output)
    if not arguments.table_only:
        for axis in arguments.discard:
            print(f"Forgot {file.discard(axis=axis)} runs of {axis}.")
        if not measure(arguments, file):
            print("Time is up; the same command goes on from here.", file=sys.stderr)
    text = page(file, arguments.output)
    file.write_markdown(text)
    print(text)


def measure(arguments: argparse.Namespace, file: ResultFile) -> bool:
    """Make the runs that are missing; False if time was up before that."""
    deadline = time.monotonic() + 60 * arguments.minutes
    workload = _workload(arguments)
    identity = hashlib.sha256(json.dumps(workload, sort_keys=True).encode()).hexdigest()[:10]
    file.set(workloads={**file.data.get("workloads", {}), identity: workload})
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(arguments, Path(directory))
        for axis in arguments.axis:
            points = AXES[axis].points(arguments.quick)
            for repeat in range(arguments.repeats):
                for point in points:
                    key = {"workload": identity, "axis": axis, "point": point}
                    if sum(all(run[name] == key[name] for name in key) for run in file.runs) > repeat:
                        continue
                    if time.monotonic() > deadline:
                        return False
                    try:
                        figures = bench.rows(point) if axis == "rows" else bench.train(point)
                    except WorkerError as error:
                        print(f"{axis}, {_describe(point)}: {error}", file=sys.stderr, flush=True)
                        continue
                    file.append({**key, "figures": figures})
                    print(f"{axis}, {_describe(point)}: {_describe(figures)}", file=sys.stderr, flush=True)
    return True


class Bench:
    """Measures points.

    Args:
        arguments: The command line.
        directory: For files of pairs and data sets; each is made once.
    """

    def __init__(self, arguments: argparse.Namespace, directory: Path) -> None:
        self.arguments = arguments
        self.directory = directory
        self.model = str(arguments.model or embedded_model_path())

    def train(self, point: Point) -> dict[str, Any]:
        """Train at a point, in a fresh process."""
        vocabulary = point.get("vocabulary")
        batch_size = point.get("batch_size", BATCH_SIZE)
        task = Task(
            pairs=str(self._pairs(point)),
            warm_up=WARM_UP,
            model=self.model if vocabulary is None else None,
            vocabulary=vocabulary,
            dtype=point["dtype"],
            batch_size=batch_size,
            agents=point.get("agents", 1),
            prefix_sharing=point.get("prefix_sharing", "auto"),
            threads=self.arguments.threads,
        )
        result = run_worker(
            "benchmarking.scaling.worker",
            task.as_json(),
            threads=self.arguments.threads,
            timeout=self.arguments.timeout,
        )
        return {**result, "batch_size": batch_size}

    def rows(self, point: Point) -> dict[str, Any]:
        """Start a gym at a point; its tokens are cached from the first repeat on."""
        from benchmarking.gym_start import measure as start

        figures = start(point["rows"], self.directory)
        cold, warm = figures["cold"], figures["warm"]
        return {
            "cold_seconds": None if cold is None else cold["seconds"],
            "warm_seconds": warm["seconds"],
            "to_first_step_seconds": warm["seconds"] + warm["step_seconds"],
            "anonymous_mb": warm["anonymous"],
            "file_mb": warm["file"],
            "peak_mb": warm["peak"],
        }

    def _pairs(self, point: Point) -> Path:
        """The file of a point's token ids: of the given pairs, or random ones of its lengths."""
        lengths = (point["prompt"], point["completion"]) if "prompt" in point else None
        path = self.directory / ("given.jsonl" if lengths is None else f"random-{lengths[0]}-{lengths[1]}.jsonl")
        if not path.exists():
            count = self.arguments.num_pairs + WARM_UP
            write_token_pairs(self._given(count) if lengths is None else random_pairs(count, *lengths), path)
        return path

    def _given(self, count: int) -> list[TokenPair]:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(self.model, local_files_only=True)
        rows = load_rows(self.arguments.pairs)
        pairs = select_pairs(rows, tokenizer, count, max_length=self.arguments.max_length)
        return [
            (tokenizer.encode(pair.prompt), tokenizer.encode(pair.chosen), tokenizer.encode(pair.rejected))
            for pair in pairs
        ]


def random_pairs(count: int, prompt: int, completion: int, *, vocabulary: int = 32_000) -> list[TokenPair]:
    """Pairs of random token ids, all of the same lengths; the same for the same arguments.

    Args:
        count: How many.
        prompt: Tokens of a prompt.
        completion: Tokens of each completion.
        vocabulary: Ids are below it.
    """
    ids = np.random.default_rng(0).integers(3, vocabulary, (count, prompt + 2 * completion)).tolist()
    return [(row[:prompt], row[prompt : prompt + completion], row[prompt + completion :]) for row in ids]


def page(file: ResultFile, directory: Path) -> str:
    """The page with a table for each axis, of the workload it was last measured with; pictures are drawn beside it."""
    lines = ["# How AgileDPO scales"]
    for name, axis in AXES.items():
        runs = [run for run in file.runs if run["axis"] == name]
        if not runs:
            continue
        last = runs[-1]["workload"]
        figures = medians([run for run in runs if run["workload"] == last])
        workload = file.data["workloads"][last]
        picture = directory / f"{NAME}_{name}.png"
        lines += ["", f"## {axis.title}", "", axis.note, "", markdown_table(*axis.table(figures)), ""]
        lines += [_provenance(workload, min(f["repeats"] for f in figures), runs[-1]["commit"])]
        try:
            draw(axis.panels(figures), axis.label, axis.title, picture)
        except ImportError:
            print("Matplotlib is not installed, so there are no pictures; it is in the 'dev' extra.", file=sys.stderr)
        if picture.exists():
            lines += ["", f"![{axis.title}]({picture.name})"]
    return "\n".join(lines) + "\n"


def _provenance(workload: Mapping[str, Any], repeats: int, commit: str) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in workload["versions"].items())
    return (
        f"Medians of {repeats} interleaved runs over {workload['num_pairs']} pairs. Where nothing else is said: "
        f"{workload['model']}, {workload['source']}, batch {BATCH_SIZE}, LoRA of rank 16 on all linear layers. "
        f"{sentence(workload['machine'])}; {versions}; commit {commit or 'unknown'}."
    )


def _workload(arguments: argparse.Namespace) -> dict[str, Any]:
    """What all points have in common; runs are comparable if it is the same."""
    return {
        "model": Path(arguments.model or embedded_model_path()).name,
        "source": "embedded pairs" if arguments.pairs is None else arguments.pairs.name,
        "num_pairs": arguments.num_pairs,
        "max_length": arguments.max_length,
        "machine": describe_machine(arguments.threads),
        "versions": package_versions(("torch", "transformers", "peft")),
    }


def _describe(values: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items()
    )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--axis", nargs="+", choices=AXES, default=list(AXES), metavar="AXIS", help=f"of {', '.join(AXES)}")
    add("--quick", action="store_true", help="a smaller grid, few pairs, one repeat")
    add("--pairs", type=Path, help="jsonl or jsonl.gz with prompt, chosen, rejected; default: embedded")
    add("--num-pairs", type=int, help="pairs that are counted; default: 32, with --quick 8")
    add("--max-length", type=int, default=512, help="largest number of tokens of a prompt and a completion")
    add("--repeats", type=int, help="runs at each point that there should be in the end; default: 3, with --quick 1")
    add("--minutes", type=float, default=math.inf, help="start no run after this time")
    add("--timeout", type=float, default=1200, help="seconds after which a single run is given up")
    add("--threads", type=int, default=usable_cores())
    add("--model", type=Path, help="directory of a model; default: the embedded SmolLM2-135M-Instruct")
    add("--discard", nargs="+", default=[], choices=AXES, metavar="AXIS", help="forget runs")
    add("--table-only", action="store_true", help="measure nothing")
    add("--output", type=Path, default=RESULTS, help="directory of the result files")
    arguments = parser.parse_args()
    arguments.num_pairs = arguments.num_pairs or (8 if arguments.quick else 32)
    arguments.repeats = arguments.repeats or (1 if arguments.quick else 3)
    return arguments


if __name__ == "__main__":
    main()
