"""Memory of a population, and how many copies of the base model it holds, beside AgileRL's.

    python -m benchmarking.population_memory                       # everything
    python -m benchmarking.population_memory --systems agiledpo --agents 1 8 --dtypes bfloat16
    python -m benchmarking.population_memory --quick               # a tiny model of random weights, ours alone
    python -m benchmarking.population_memory --table-only          # only write the table again

Every population is a process of its own: it is made, each agent learns from a batch, and the population evolves. Each
result is saved when it is there; the same command again makes only those that are still missing, so ``--minutes`` cuts
the work into pieces.
"""

import argparse
import hashlib
import json
import math
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from agiledpo.cache import cache_directory
from agiledpo.embedded.model import embedded_model_path
from benchmarking.environments import REQUIREMENTS, environment
from benchmarking.machine import describe_machine, sentence, usable_cores
from benchmarking.pairs import PairStatistics, load_rows, select_pairs, write_pairs
from benchmarking.processes import WorkerError, run_worker
from benchmarking.results import RESULTS, ResultFile, markdown_table

NAME = "population_memory"
SYSTEMS = {"agiledpo": "AgileDPO", "agilerl": "AgileRL"}

# What torch and Python say when the limit is reached.
_NO_MEMORY = ("can't allocate memory", "MemoryError", "Cannot allocate memory", "not enough memory")


def main() -> None:
    arguments = _parse()
    file = ResultFile(NAME, arguments.output)
    if not arguments.table_only and not measure(arguments, file):
        print("Time is up; the same command goes on from here.", file=sys.stderr)
    text = page(file.data)
    file.write_markdown(text)
    print(text)


def measure(arguments: argparse.Namespace, file: ResultFile) -> bool:
    """Make the runs that are missing; False if time was up before that."""
    deadline = time.monotonic() + 60 * arguments.minutes
    if arguments.retry:
        for run in [run for run in file.runs if "error" in run]:
            file.discard(**run)
    with tempfile.TemporaryDirectory() as temporary:
        pairs, model = Path(temporary) / "pairs.jsonl", arguments.model or embedded_model_path()
        workload = _write_pairs(arguments, model, pairs)
        if arguments.quick:
            model = tiny_model(Path(temporary) / "tiny", model)
            workload["model"] = "tiny Llama of random weights"
        identity = hashlib.sha256(json.dumps(workload, sort_keys=True).encode()).hexdigest()[:10]
        file.set(workloads={**file.data.get("workloads", {}), identity: workload})
        for dtype in arguments.dtypes:
            for agents in arguments.agents:
                for system in arguments.systems:
                    key = {"workload": identity, "system": system, "dtype": dtype, "agents": agents}
                    if any(all(run[name] == key[name] for name in key) for run in file.runs):
                        continue
                    if time.monotonic() > deadline:
                        return False
                    task = {
                        "pairs": str(pairs),
                        "model": str(model),
                        "dtype": dtype,
                        "batch_size": arguments.batch_size,
                        "max_length": arguments.max_length,
                        "threads": arguments.threads,
                        "agents": agents,
                        "generations": arguments.generations[system],
                        "limit_gb": arguments.limit_gb,
                    }
                    file.append({**key, **_run(system, task, arguments)})
                    print(f"{SYSTEMS[system]}, {dtype}, {agents} agents: {_say(file.runs[-1])}", file=sys.stderr)
    return True


def tiny_model(directory: Path, like: str | Path) -> Path:
    """Write a tiny Llama of random weights with another model's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(like, local_files_only=True)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def _run(system: str, task: Mapping[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """One population's readings, or ``error`` with the last lines of what went wrong."""
    python = arguments.python.get(system) or (
        sys.executable if system == "agiledpo" else environment(system, arguments.environments)
    )
    started = time.monotonic()
    try:
        result = run_worker(
            f"benchmarking.peers.{system}_population",
            task,
            threads=task["threads"],
            python=python,
            timeout=arguments.timeout,
        )
    except WorkerError as error:
        result = {"error": str(error)[-2000:]}
    return {**result, "generations": task["generations"], "seconds": time.monotonic() - started}


def _write_pairs(arguments: argparse.Namespace, model: str | Path, path: Path) -> dict[str, Any]:
    """Write the pairs, the held-out batch first, and describe what all runs have in common."""
    tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
    count = arguments.batch_size * (1 + arguments.batches)
    pairs = select_pairs(load_rows(arguments.pairs), tokenizer, count, max_length=arguments.max_length)
    write_pairs(pairs, path)
    return {
        "model": Path(model).name,
        "source": "embedded pairs" if arguments.pairs is None else arguments.pairs.name,
        "pairs": count,
        "tokens_per_pair": round(PairStatistics.of(pairs).tokens / count),
        "batch_size": arguments.batch_size,
        "max_length": arguments.max_length,
        "limit_gb": arguments.limit_gb,
        "machine": describe_machine(arguments.threads),
    }


def page(data: Mapping[str, Any]) -> str:
    """The page, with a part for each workload.

    Args:
        data: What the result file holds.
    """
    parts = [
        "# Memory of a population",
        "Resident memory of a fresh process, MB (10^6 bytes). Held: after the first generation (each agent has learned "
        "from a batch, was evaluated, selected and mutated), when everything unused is freed. Peak: at any time until "
        "then. Base copies: distinct storages, among all live tensors, of the token embedding and of the first query "
        "projection. Tensors: memory of all distinct storages of live tensors.",
        "Resident memory grows with new batches, by the same amount for any number of agents, while no tensor grows, "
        "and not where the same batch comes again. With `ONEDNN_PRIMITIVE_CACHE_CAPACITY=1` one agent's growth over "
        "five generations was 35 MB instead of 79: about half of it is oneDNN's bounded cache of kernels for products "
        "of new shapes; where the rest is we have not found out.",
    ]
    for identity, workload in data.get("workloads", {}).items():
        runs = sorted(
            (run for run in data["runs"] if run["workload"] == identity),
            key=lambda run: (run["dtype"], run["agents"], list(SYSTEMS).index(run["system"])),
        )
        if runs:
            parts += _section(workload, runs)
    return "\n\n".join(parts)


def _section(workload: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> list[str]:
    batches = workload["pairs"] // workload["batch_size"] - 1
    parts = [
        f"## {workload['model']}, " + ("the same batch in every generation" if batches == 1 else f"{batches} batches"),
        markdown_table(*copies_table(runs)),
    ]
    header, rows = marginal_table(runs)
    if rows:
        parts += ["What an agent more costs, from the smallest population measured to the largest:"]
        parts += [markdown_table(header, rows)]
    header, rows = growth_table(runs)
    if rows:
        parts += ["Held memory phase by phase, and how it and the tensors grow from the first to the last generation:"]
        parts += [markdown_table(header, rows)]
    return [*parts, *_failures(runs), _provenance(workload, runs)]


Table = tuple[list[str], list[list[object]]]


def copies_table(runs: Sequence[Mapping[str, Any]]) -> Table:
    """Base copies and memory after the first generation, a row for each population.

    Args:
        runs: Runs of one workload, in the order of the rows.
    """
    header = [
        "population",
        "base copies made",
        "base copies evolved",
        "held MB made",
        "held MB evolved",
        "peak MB",
        "tensors MB",
    ]
    rows: list[list[object]] = []
    for run in runs:
        label = f"{SYSTEMS[run['system']]}, {run['dtype']}, {run['agents']} agent{'s' * (run['agents'] > 1)}"
        if "error" in run:
            rows.append([label, failure(run["error"]), *[None] * 5])
            continue
        made, evolved = _reading(run, "made"), _reading(run, "generation 1")
        phases = run["readings"]
        peak = max(reading["peak"] for reading in phases[: phases.index(evolved) + 1])
        rows.append(
            [
                label,
                _copies(made),
                _copies(evolved),
                f"{made['resident']:.0f}",
                f"{evolved['resident']:.0f}",
                f"{peak:.0f}",
                f"{evolved['tensors']:.0f}",
            ]
        )
    return header, rows


def marginal_table(runs: Sequence[Mapping[str, Any]]) -> Table:
    """Memory of each agent beyond the first, after the first generation, against a copy of the base weights.

    Args:
        runs: Runs of one workload.
    """
    header = ["system, dtype", "from", "to", "held MB an agent", "tensors MB an agent", "base weights MB"]
    rows: list[list[object]] = []
    for system, label in SYSTEMS.items():
        for dtype in sorted({run["dtype"] for run in runs}):
            good = [r for r in runs if (r["system"], r["dtype"]) == (system, dtype) and "error" not in r]
            good.sort(key=lambda run: run["agents"])
            if len(good) < 2:
                continue
            first, last = good[0], good[-1]
            more = last["agents"] - first["agents"]
            costs = [
                (_reading(last, "generation 1")[name] - _reading(first, "generation 1")[name]) / more
                for name in ("resident", "tensors")
            ]
            weights = f"{last['weights_mb']:.0f}"
            rows.append([f"{label}, {dtype}", first["agents"], last["agents"], *(f"{c:.0f}" for c in costs), weights])
    return header, rows


def growth_table(runs: Sequence[Mapping[str, Any]]) -> Table:
    """Held memory after each phase, a row for each population.

    Args:
        runs: Runs of one workload, in the order of the rows.
    """
    good = [run for run in runs if "error" not in run]
    phases = list(dict.fromkeys(reading["phase"] for run in good for reading in run["readings"]))
    generations = [phase for phase in phases if phase.startswith("generation ")]
    others = [phase for phase in phases if phase not in generations]
    generations.sort(key=lambda phase: int(phase.split()[1]))
    rows: list[list[object]] = []
    for run in good:
        held = {reading["phase"]: reading["resident"] for reading in run["readings"]}
        own = [reading for reading in run["readings"] if reading["phase"] in generations]
        label = f"{SYSTEMS[run['system']]}, {run['dtype']}, {run['agents']}"
        cells = [f"{held[phase]:.0f}" if phase in held else None for phase in [*others, *generations]]
        growth = [f"{own[-1][name] - own[0][name]:+.1f}" if len(own) > 1 else None for name in ("resident", "tensors")]
        rows.append([label, *cells, *growth])
    return ["population", *others, *generations, "growth", "tensors' growth"], rows


def failure(error: str) -> str:
    """Why a run has no figures, in a few words."""
    if any(phrase in error for phrase in _NO_MEMORY):
        return "out of memory"
    return "out of time" if " took more than " in error else "failed"


def _failures(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    return [
        f"{SYSTEMS[run['system']]}, {run['dtype']}, {run['agents']} agents: {failure(run['error'])} after "
        f"{run['seconds']:.0f} s. Last line: `{run['error'].strip().splitlines()[-1][:300]}`"
        for run in runs
        if "error" in run
    ]


def _reading(run: Mapping[str, Any], phase: str) -> dict[str, Any]:
    return next(reading for reading in run["readings"] if reading["phase"] == phase)


def _copies(reading: Mapping[str, Any]) -> str:
    """One number where the embedding and the projection agree, otherwise both."""
    counts = (reading["embeddings"], reading["projections"])
    return str(counts[0]) if counts[0] == counts[1] else f"{counts[0]} and {counts[1]}"


def _provenance(workload: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> str:
    versions = {
        SYSTEMS[run["system"]]: ", ".join(f"{name} {version}" for name, version in run["versions"].items())
        for run in runs
        if "versions" in run
    }
    return (
        f"{workload['model']}; {workload['source']}, {workload['tokens_per_pair']} tokens a pair; batch "
        f"{workload['batch_size']}, evaluated on {workload['batch_size']} held-out pairs; LoRA of rank 16 on all "
        "linear layers; the bare base is the reference; no gradient checkpointing; at most "
        f"{workload['limit_gb']:.0f} GB. AgileRL's agents have a model loaded for each. "
        f"{sentence(workload['machine'])}; "
        + "; ".join(f"{system}: {found}" for system, found in versions.items())
        + f"; commit {runs[-1]['commit'] or 'unknown'}."
    )


def _say(run: Mapping[str, Any]) -> str:
    if "error" in run:
        return f"{failure(run['error'])} after {run['seconds']:.0f} s: {run['error'].strip().splitlines()[-1]}"
    last = run["readings"][-1]
    return f"{_copies(last)} base copies, {last['resident']:.0f} MB held, {run['seconds']:.0f} s"


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--agents", type=int, nargs="+", help="sizes of the population; default: 1 2 4 8, with --quick 1 4")
    add("--dtypes", nargs="+", default=["bfloat16", "float32"], choices=["bfloat16", "float32"])
    add("--systems", nargs="+", choices=SYSTEMS, help="default: all, with --quick agiledpo")
    add("--quick", action="store_true", help="a tiny model of random weights")
    add("--generations", type=int, help="that AgileDPO evolves; default: 5, with --quick 2")
    add("--agilerl-generations", type=int, default=1, help="that AgileRL, which takes longer, evolves")
    add("--pairs", type=Path, help="jsonl or jsonl.gz with prompt, chosen, rejected; default: embedded")
    add("--batch-size", type=int, default=2)
    add(
        "--batches", type=int, default=5, help="different training batches; with 1 each generation learns from the same"
    )
    add("--max-length", type=int, default=128, help="largest number of tokens of a prompt and a completion")
    add("--minutes", type=float, default=math.inf, help="start no run after this time")
    add("--timeout", type=float, default=1200, help="seconds after which a single run is given up")
    add("--limit-gb", type=float, default=20, help="memory that a process may have, GB (10^9 bytes)")
    add("--threads", type=int, default=usable_cores())
    add("--model", type=Path, help="directory of a model; default: the embedded SmolLM2-135M-Instruct")
    add("--environments", type=Path, default=cache_directory("environments"), help="where AgileRL's is made (2 GB)")
    add("--python", nargs="+", default=[], metavar="SYSTEM=PATH", help="use this interpreter for a system")
    add("--retry", action="store_true", help="make the runs that failed again")
    add("--table-only", action="store_true", help="measure nothing")
    add("--output", type=Path, default=RESULTS, help="directory of the result files")
    arguments = parser.parse_args()
    arguments.agents = arguments.agents or ([1, 4] if arguments.quick else [1, 2, 4, 8])
    arguments.systems = arguments.systems or (["agiledpo"] if arguments.quick else list(SYSTEMS))
    ours = arguments.generations or (2 if arguments.quick else 5)
    arguments.generations = {"agiledpo": ours, "agilerl": arguments.agilerl_generations}
    if min(*arguments.agents, *arguments.generations.values(), arguments.batches) < 1:
        parser.error("--agents, --batches and generations must be at least 1")
    arguments.python = dict(entry.split("=", 1) for entry in arguments.python)
    unknown = set(arguments.python) - set(REQUIREMENTS)
    if unknown:
        parser.error(f"--python {', '.join(unknown)}: the systems are {', '.join(SYSTEMS)}")
    return arguments


if __name__ == "__main__":
    main()
