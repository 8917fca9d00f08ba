"""What many processes send and hold, measured, and what follows for 7B and 70B on 8 and 64 GPUs.

    python -m benchmarking.scaling_plan                       # measure what is missing, and write the page
    python -m benchmarking.scaling_plan --modes ZeRO-3 --ranks 2
    python -m benchmarking.scaling_plan --plan-only           # only the calculation and the page

Measured are real steps of real processes (gloo, CPU) of a tiny model: bytes do not depend on what carries them. The
formulas that the measurement confirms are then filled in with large models; bandwidths and speed are assumptions, which
the page states.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from transformers import AutoConfig, PretrainedConfig

from agiledpo.distributed.memory import MemoryEstimate, Processes, Workload, estimate
from agiledpo.distributed.model_sizes import ModelSizes, count
from benchmarking.machine import LIBRARIES, describe_machine, package_versions, sentence
from benchmarking.processes import MARK, WorkerError, worker_environment
from benchmarking.results import RESULTS, ResultFile, markdown_table

TINY: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 320,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "pad_token_id": 0,
}
PAIRS, MICRO_BATCH, LENGTH, PROMPT, AGENTS, RANK = 8, 1, 32, 8, 2, 8


@dataclass(frozen=True)
class Mode:
    """A way to run that is measured.

    Attributes:
        stage: DeepSpeed's; None without DeepSpeed.
        zero: Its settings.
        base_passes: How often the base is gathered for a micro-batch.
    """

    stage: int | None
    zero: Mapping[str, Any] = field(default_factory=dict)
    base_passes: int = 0


# Everything is sharded in a model whose weights are all smaller than DeepSpeed's threshold, and nothing is kept for the
# next use: a large model's layers are further apart than what DeepSpeed keeps.
_SHARDED = {"stage3_param_persistence_threshold": 0}
_NOTHING_KEPT = {"stage3_max_live_parameters": 1, "stage3_max_reuse_distance": 1, "stage3_prefetch_bucket_size": 0}
MODES = {
    "DDP": Mode(None),
    "ZeRO-1": Mode(1),
    "ZeRO-2": Mode(2),
    "ZeRO-3": Mode(3, _SHARDED, base_passes=2),
    "ZeRO-3, nothing kept": Mode(3, {**_SHARDED, **_NOTHING_KEPT}, base_passes=2),
}


def expected_bytes(mode: Mode, sizes: ModelSizes, ranks: int, micro_batches: int) -> float:
    """Bytes that a rank sends in a step on pairs whose reference log-probabilities are known.

    ``2 (n - 1) / n`` of the adapter each time that its gradients are summed: once, but in ZeRO-2 in each micro-batch;
    ``(n - 1) / n`` of it where each rank has stepped its part only (ZeRO); and ``(n - 1) / n`` of the base each time
    that it is gathered: in forward and in backward of each micro-batch.

    Args:
        mode: How it runs.
        sizes: Of the model.
        ranks: Processes.
        micro_batches: Of a rank in a step.
    """
    share = (ranks - 1) / ranks
    base = sizes.base_elements * sizes.dtype.itemsize
    sums = 2 * (micro_batches if mode.stage == 2 else 1) + bool(mode.stage)
    return share * (sums * sizes.adapter_bytes + mode.base_passes * micro_batches * base)


def measure(name: str, ranks: int, *, own_network: bool) -> dict[str, Any]:
    """Run a mode in real processes.

    Args:
        name: Of the mode.
        ranks: Processes.
        own_network: Run in a network namespace, where nobody else's bytes go over the loopback.
    """
    mode = MODES[name]
    task = {
        "config": TINY,
        "lora_rank": RANK,
        "agents": AGENTS,
        "pairs": PAIRS,
        "micro_batch_size": MICRO_BATCH,
        "max_length": LENGTH,
        "prompt_length": PROMPT,
        "checkpointing": True,
        "stage": mode.stage,
        "zero": dict(mode.zero),
    }
    command = [sys.executable, "-m", "benchmarking.scaling_plan", "--launch", str(ranks), json.dumps(task)]
    if own_network:
        command = ["unshare", "-rn", "sh", "-c", 'ip link set lo up && exec "$@"', "sh", *command]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=worker_environment(1), timeout=300)
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if not lines:
        raise WorkerError(f"{name} on {ranks} ranks ended with code {done.returncode}: {done.stdout[-2000:]}")
    results = json.loads(lines[-1].removeprefix(MARK))["ranks"]
    return {"mode": name, "processes": ranks, "agents": task["agents"], "ranks": results}


def launch(ranks: int, task: str) -> None:
    """Start the worker in processes that know of each other, and hand on what it reports."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    variables = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if json.loads(task)["stage"] is not None:
        variables |= {"ACCELERATE_USE_DEEPSPEED": "true", "DS_ACCELERATOR": "cpu"}
    with tempfile.TemporaryFile("w+") as output:
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", "benchmarking.scaling_plan_worker", task],
                env={**os.environ, **variables, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            for rank in range(ranks)
        ]
        for process in processes:
            process.wait()
        output.seek(0)
        print(output.read())


# The plan ------------------------------------------------------------------------------------------------------------

MODELS: dict[str, PretrainedConfig] = {
    "7B": AutoConfig.for_model(
        "llama",
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        max_position_embeddings=4096,
    ),
    "70B": AutoConfig.for_model(
        "llama",
        vocab_size=128256,
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        max_position_embeddings=8192,
    ),
}


@dataclass(frozen=True)
class Assumptions:
    """What is not measured.

    Attributes:
        memory: Of a GPU, bytes.
        flops: Of a GPU's bfloat16 products, peak, per second.
        utilisation: Share of them that a step reaches.
        nvlink: Bytes per second that a GPU sends inside a node of ``node`` GPUs.
        infiniband: Bytes per second that a GPU sends between nodes, each with an adapter of its own.
        node: GPUs of a node.
        pairs: Pairs per optimizer step.
        length: Tokens of each completion of a pair; no prompt is shared, which is the worst case.
        agents: Agents of the population.
        generation: Optimizer steps of an agent between tournaments.
    """

    memory: int = 80 * 10**9
    flops: float = 989e12
    utilisation: float = 0.4
    nvlink: float = 360e9
    infiniband: float = 40e9
    node: int = 8
    pairs: int = 64
    length: int = 2048
    agents: int = 8
    generation: int = 100

    def bandwidth(self, ranks: int) -> float:
        """Bytes per second that each of a number of ranks sends: a ring is as fast as its slowest link."""
        return self.nvlink if ranks <= self.node else self.infiniband


@dataclass(frozen=True)
class Planned:
    """A model on a number of GPUs in one way.

    Attributes:
        model: Name of the model.
        gpus: Number of GPUs.
        way: How.
        memory: That a GPU needs.
        fits: Whether it has it.
        sent: Bytes that a GPU sends in an optimizer step of one agent.
        communication: Seconds of it, none of it hidden behind computing.
        computing: Seconds of a step's products.
        round: Seconds until every agent has made a step; tournaments' share included.
    """

    model: str
    gpus: int
    way: str
    memory: MemoryEstimate
    fits: bool
    sent: float
    communication: float
    computing: float
    round: float


def step_seconds(sizes: ModelSizes, pairs: float, given: Assumptions) -> float:
    """Seconds in which one GPU computes a step on a number of pairs.

    ``6 P`` operations for a token and P weights: forward, forward again under checkpointing, and backward by the
    activations alone, as the weights are frozen; and for attention over T tokens, half of which see each other,
    ``2 T^2 Q`` in forward, again, and twice that in backward, for each layer.

    Args:
        sizes: Of the model.
        pairs: Pairs.
        given: The assumptions.
    """
    tokens = 2 * pairs * given.length
    products = 6 * sizes.base_elements * tokens
    attention = 2 * pairs * sizes.layers * 4 * 2 * given.length**2 * sizes.query
    return (products + attention) / (given.flops * given.utilisation)


def plan(model: str, sizes: ModelSizes, gpus: int, given: Assumptions) -> list[Planned]:
    """All ways to run a model on a number of GPUs."""
    rows = -(-given.pairs // gpus)  # of a GPU in a step, one for each micro-batch
    ways = {"DDP": 0, "ZeRO-1": 1, "ZeRO-2": 2, "ZeRO-3": 3}
    found = []
    for way, stage in ways.items():
        mode = Mode(stage, base_passes=2 if stage == 3 else 0)
        memory = _memory(sizes, Processes(gpus, zero_stage=stage, agents=given.agents), given)
        sent = expected_bytes(mode, sizes, gpus, rows)
        communication, computing = sent / given.bandwidth(gpus), step_seconds(sizes, rows, given)
        round_ = given.agents * (computing + communication)
        found.append(
            Planned(model, gpus, way, memory, memory.total <= given.memory, sent, communication, computing, round_)
        )
    memory = _memory(sizes, Processes(gpus, parallel="population", agents=given.agents), given)
    computing = step_seconds(sizes, given.pairs, given)
    # At a tournament the states of all agents, weights and two moments, go to all ranks.
    exchanged = given.agents * 3 * sizes.adapter_bytes / given.generation
    turns = -(-given.agents // gpus)
    communication = exchanged / given.bandwidth(gpus)
    fits = memory.total <= given.memory
    round_ = turns * computing + communication
    found.append(Planned(model, gpus, "population-parallel", memory, fits, exchanged, communication, computing, round_))
    return found


def _memory(sizes: ModelSizes, processes: Processes, given: Assumptions) -> MemoryEstimate:
    return estimate(sizes, Workload(1, given.length), processes)


def page(data: Mapping[str, Any], given: Assumptions) -> str:
    """The page: measured first, then the plan.

    Args:
        data: What the result file holds.
        given: The plan's assumptions.
    """
    tiny = _sizes(AutoConfig.for_model("llama", **TINY), RANK, torch.float32)
    parts = [
        "# What many processes send and hold",
        "## Measured",
        f"A step of {PAIRS} pairs of one agent, {MICRO_BATCH} pair in a micro-batch, on a Llama of "
        f"{tiny.base_elements:,} float32 weights ({tiny.base_elements * 4 / 1e6:.2f} MB) with an adapter of "
        f"{tiny.adapter_elements:,} ({tiny.adapter_bytes / 1e6:.3f} MB), gradient checkpointing, in real processes "
        "over gloo. Collectives are counted where torch dispatches them (operators of c10d, under a dispatch mode), "
        "as the bytes that each rank sends in a ring. The formula: (n - 1) / n times twice the adapter for each sum of "
        "gradients (once, in ZeRO-2 for each micro-batch), the adapter once more under ZeRO, and in ZeRO-3 the base "
        "twice for each micro-batch. Beyond it are the pairs' terms and messages that keep the ranks together. New "
        "pairs are scored under the reference too. Wire: bytes over the loopback of a network namespace in which "
        "nothing else runs, all ranks together, headers included.",
        markdown_table(*_sent_table(data["runs"], tiny)),
        "What a rank holds between steps, against the estimate that `agiledpo launch-check` makes, and the peak of "
        "tensors that a step makes beyond it:",
        markdown_table(*_held_table(data["runs"], tiny)),
    ]
    if data["runs"]:
        versions = ", ".join(f"{name} {number}" for name, number in data["versions"].items())
        parts.append(f"{sentence(data['machine'])}; {versions}; commit {data['runs'][-1]['commit'] or 'unknown'}.")
    parts += [
        "## What follows for 7B and 70B",
        "Calculated, not measured: the formulas above, the memory estimate, and these assumptions. GPUs of "
        f"{given.memory / 1e9:.0f} GB with {given.flops / 1e12:.0f} TFLOP/s in bfloat16, of which a step reaches "
        f"{100 * given.utilisation:.0f} %; a GPU sends {given.nvlink / 1e9:.0f} GB/s inside a node of {given.node} and "
        f"{given.infiniband / 1e9:.0f} GB/s between nodes (four fifths of NVLink 4 and of one 400 Gbit/s InfiniBand "
        "adapter for each GPU); latency is left out; nothing is hidden behind computing, which DeepSpeed's prefetching "
        f"partly does. {given.agents} agents, LoRA of rank 16 on all linear layers, bfloat16 base, gradient "
        f"checkpointing, one pair of twice {given.length} tokens in a micro-batch, {given.pairs} pairs in a step, "
        f"{given.generation} steps of each agent between tournaments. A round: every agent has made a step.",
    ]
    planned = [row for name, config in MODELS.items() for row in _plans(name, config, given)]
    parts += [markdown_table(*_plan_table(planned, given)), *_conclusions(planned, given)]
    return "\n\n".join(parts)


def _plans(name: str, config: PretrainedConfig, given: Assumptions) -> list[Planned]:
    sizes = _sizes(config, 16, torch.bfloat16)
    return [row for gpus in (8, 64) for row in plan(name, sizes, gpus, given)]


def _sizes(config: PretrainedConfig, rank: int, dtype: torch.dtype) -> ModelSizes:
    return count(config, LoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM"), dtype)


Table = tuple[list[str], list[list[object]]]


def _sent_table(runs: Sequence[Mapping[str, Any]], sizes: ModelSizes) -> Table:
    header = ["mode, ranks", "sent MB", "formula MB", "ratio", "new pairs MB", "collectives", "wire MB", "wire / sent"]
    rows: list[list[object]] = []
    for run in sorted(runs, key=lambda run: (list(MODES).index(run["mode"]), run["processes"])):
        first, ranks = run["ranks"][0], run["processes"]
        formula = expected_bytes(MODES[run["mode"]], sizes, ranks, PAIRS // ranks // MICRO_BATCH)
        everybody = sum(rank["sent"] for rank in run["ranks"])
        rows.append(
            [
                f"{run['mode']}, {ranks}",
                f"{first['sent'] / 1e6:.3f}",
                f"{formula / 1e6:.3f}",
                f"{first['sent'] / formula:.3f}",
                f"{first['first'] / 1e6:.3f}",
                sum(first["calls"].values()),
                f"{first['wire'] / 1e6:.3f}",
                f"{first['wire'] / everybody:.3f}",
            ]
        )
    return header, rows


def _held_table(runs: Sequence[Mapping[str, Any]], sizes: ModelSizes) -> Table:
    header = [
        "mode, ranks",
        "agents",
        "base kB",
        "adapters kB",
        "moments kB",
        "held / estimate",
        "peak kB",
        "estimate kB",
    ]
    rows: list[list[object]] = []
    workload = Workload(MICRO_BATCH, LENGTH, prompt_length=PROMPT, device="cpu")
    for run in sorted(runs, key=lambda run: (list(MODES).index(run["mode"]), run["processes"])):
        mode, held = MODES[run["mode"]], run["ranks"][0]["held"]
        # Moments are a matter of the stepper: those of stage 3 are whole on every rank until it is ZeRO's.
        processes = Processes(
            run["processes"],
            zero_stage=mode.stage or 0,
            agents=run["agents"],
            persistence_threshold=0,
            max_live_parameters=mode.zero.get("stage3_max_live_parameters", 10**9),
        )
        found = estimate(sizes, workload, processes)
        expected = found.base + found.adapters + found.references
        ours = held["base"] + held["adapters"] + held["references"]
        beyond = found.gathered + found.gradients + found.communication + found.activations + found.workspace
        rows.append(
            [
                f"{run['mode']}, {run['processes']}",
                run["agents"],
                f"{held['base'] / 1e3:.0f}",
                f"{(held['adapters'] + held['references']) / 1e3:.0f}",
                f"{held['moments'] / 1e3:.0f}",
                f"{ours / expected:.4f}",
                f"{run['ranks'][0]['peak'] / 1e3:.0f}",
                f"{beyond / 1e3:.0f}",
            ]
        )
    return header, rows


def _plan_table(planned: Sequence[Planned], given: Assumptions) -> Table:
    header = [
        "model, GPUs, way",
        "base GB",
        "agents GB",
        "step GB",
        "GPU GB",
        "sent GB a step",
        "sending s",
        "computing s",
        "round s",
    ]
    rows: list[list[object]] = []
    for row in planned:
        memory = row.memory
        agents = memory.adapters + memory.references + memory.moments
        rest = memory.total - memory.base - agents
        label = f"{row.model}, {row.gpus}, {row.way}"
        sizes = [f"{size / 1e9:.1f}" for size in (memory.base, agents, rest, memory.total)]
        if not row.fits:
            rows.append([label, *sizes[:3], f"{sizes[3]} does not fit", *[None] * 4])
            continue
        times = [f"{seconds:.3g}" for seconds in (row.communication, row.computing, row.round)]
        rows.append([label, *sizes, f"{row.sent / 1e9:.3g}", *times])
    return header, rows


def _conclusions(planned: Sequence[Planned], given: Assumptions) -> list[str]:
    said = [
        "Agents spread over ranks (population-parallel) send nothing in a step, but a GPU computes a whole step alone, "
        "and no more GPUs work than there are agents. With N agents, n GPUs, C seconds for one GPU to compute a step "
        "and S seconds to send, a round takes N (C / n + S) data-parallel and ceil(N / n) C population-parallel. Where "
        "n divides N the second is faster by N S; where n > N it is faster only if C (1 - N / n) < N S."
    ]
    for model in MODELS:
        for gpus in (8, 64):
            ways = [row for row in planned if (row.model, row.gpus) == (model, gpus) and row.fits]
            if not ways:
                said.append(f"{model} on {gpus}: nothing fits.")
                continue
            best = min(ways, key=lambda row: row.round)
            others = ", ".join(f"{row.way} {row.round:.3g}" for row in sorted(ways, key=lambda row: row.round))
            said.append(f"{model} on {gpus} GPUs: {best.way} is fastest (seconds of a round: {others}).")
    return said


def main() -> None:
    """Measure, calculate, and write the page."""
    arguments = _parse()
    if arguments.launch:
        launch(int(arguments.launch[0]), arguments.launch[1])
        return
    file, given = ResultFile("scaling_plan", arguments.output), Assumptions()
    if not arguments.plan_only:
        file.set(machine=describe_machine(1), versions=package_versions((*LIBRARIES, "deepspeed")))
        for name in arguments.modes:
            for ranks in arguments.ranks:
                if any((run["mode"], run["processes"]) == (name, ranks) for run in file.runs):
                    continue
                print(f"{name}, {ranks} ranks", flush=True)
                file.append(measure(name, ranks, own_network=not arguments.shared_network))
    file.set(
        plan=[
            {**vars(row), "memory": {**row.memory.parts, "total": row.memory.total}}
            for name, config in MODELS.items()
            for row in _plans(name, config, given)
        ],
        assumptions=vars(given),
    )
    file.write_markdown(page(file.data, given))
    print(file.markdown)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--modes", nargs="+", choices=MODES, default=list(MODES))
    add("--ranks", type=int, nargs="+", default=[2, 4])
    add("--plan-only", action="store_true", help="measure nothing")
    add("--shared-network", action="store_true", help="where network namespaces are not allowed")
    add("--output", type=Path, default=RESULTS, help="directory of the result files")
    add("--launch", nargs=2, metavar=("RANKS", "TASK"), help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
