"""The Markdown page of ``compare_peers``, made from its result file alone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarking.machine import sentence
from benchmarking.matrix_rate import key
from benchmarking.peers.configurations import CONFIGURATIONS, MATRIX, PEERS
from benchmarking.results import markdown_table
from benchmarking.workload import REFERENCE, TRAINING, MatrixWork

HEADER = (
    "system",
    "pairs/s",
    "tokens/s",
    "× fastest peer",
    "of GEMM floor",
    "peak RSS, MB",
    "÷ smallest TRL",
    "loss off by",
    "LoRA",
    "runs",
)


def report(data: dict[str, Any]) -> str:
    """The Markdown page of a result file."""
    parts = ["# DPO through AgileDPO, TRL and AgileRL", _EXPLANATION]
    for identity, workload in data.get("workloads", {}).items():
        runs = [entry for entry in data["runs"] if entry["workload"] == identity]
        if any("seconds" in entry for entry in runs):
            parts += _section(workload, runs)
    return "\n\n".join(parts)


_EXPLANATION = (
    "Written by `python -m benchmarking.compare_peers`. Medians over runs, each in a fresh process; systems took "
    "turns. Time is that of all optimizer steps but the first, the reference pass included in every configuration. "
    "Tokens count a pair's prompt once. The GEMM floor is the time that the model's matrix products alone need (prompt "
    "once, head at completion tokens only, one reference pass) at the rate measured in the same session with the "
    "fastest product that torch offers here. *Loss off by*: largest difference of a step's loss from AgileDPO's in the "
    "same dtype; all adapters start from the same weights. *LoRA*: dtype of the adapter's weights."
)


def _section(workload: dict[str, Any], runs: list[dict[str, Any]]) -> list[str]:
    """Heading, facts and a table per dtype of one workload."""
    sizes = workload["sizes"]
    prompts = "short prompts" if workload["short_prompts"] else "prompts as they are"
    parts = [
        f"## {workload['model']}, {workload['source']}, {prompts}",
        f"{sizes['pairs']} pairs of {sizes['prompt']:.0f} prompt, {sizes['chosen']:.0f} chosen and "
        f"{sizes['rejected']:.0f} rejected tokens on average; batch {workload['batch_size']}, at most "
        f"{workload['max_length']} tokens, LoRA r=16 on all linear layers. {sentence(workload['machine'])}.",
    ]
    for dtype in dict.fromkeys(entry["dtype"] for entry in runs):
        of_dtype = [entry for entry in runs if entry["dtype"] == dtype]
        if any("seconds" in entry for entry in of_dtype):
            parts += _table(dtype, workload, of_dtype)
    versions = [
        f"{name}: " + ", ".join(f"{package} {number}" for package, number in entry["versions"].items())
        for name, entry in {CONFIGURATIONS[e["config"]].system: e for e in runs if "seconds" in e}.items()
    ]
    failed = [f"`{entry['config']}` failed in {entry['dtype']}" for entry in runs if "error" in entry]
    return [*parts, "Versions. " + "; ".join(versions) + ".", *failed]


def _table(dtype: str, workload: dict[str, Any], runs: list[dict[str, Any]]) -> list[str]:
    by_config = {
        name: found
        for name in CONFIGURATIONS
        if (found := [entry for entry in runs if entry["config"] == name and "seconds" in entry])
    }
    floor = floor_pairs_per_second(
        workload, [entry for entry in runs if entry["config"] == MATRIX and "rates" in entry]
    )
    speeds = {name: median(entry["pairs"] / entry["seconds"] for entry in found) for name, found in by_config.items()}
    peaks = {name: median(entry["peak_mb"] for entry in found) for name, found in by_config.items()}
    peer = max((speed for name, speed in speeds.items() if CONFIGURATIONS[name].system in PEERS), default=None)
    smallest = min((peak for name, peak in peaks.items() if CONFIGURATIONS[name].system == "trl"), default=None)
    ours = by_config.get("agiledpo")
    rows = []
    for name, found in by_config.items():
        tokens = median(entry["tokens"] / entry["seconds"] for entry in found)
        rows.append(
            [
                CONFIGURATIONS[name].label,
                f"{speeds[name]:.2f}",
                f"{tokens:.0f}",
                None if peer is None else f"{speeds[name] / peer:.2f}",
                None if floor is None else f"{100 * speeds[name] / floor.pairs_per_second:.0f} %",
                f"{peaks[name]:.0f}",
                None if smallest is None else f"{peaks[name] / smallest:.2f}",
                None if ours is None else f"{loss_difference(found[0]['losses'], ours[0]['losses']):.0e}",
                "/".join(dict.fromkeys(entry["lora_dtype"] for entry in found)),
                len(found),
            ]
        )
    parts = [f"### {dtype}", markdown_table(HEADER, rows)]
    if floor is not None:
        parts.append(
            f"GEMM floor: {floor.operations_per_pair / 1e9:.0f} GFLOP a pair ({floor.training_share / 1e9:.0f} to "
            f"train, the rest for the reference) at {floor.rate / 1e9:.0f} GFLOP/s ({floor.products}): "
            f"{floor.pairs_per_second:.2f} pairs/s."
        )
    first = [entry["losses"][0] for found in by_config.values() for entry in found]
    parts.append(f"Loss of the first step, all runs: {min(first):.4f} to {max(first):.4f}; ln 2 is {math.log(2):.4f}.")
    return parts


@dataclass(frozen=True)
class Floor:
    """What the machine's matrix products allow.

    Attributes:
        pairs_per_second: At most this many, reference included.
        operations_per_pair: Useful operations of a pair, reference included.
        training_share: Those of them that train.
        rate: Mean operations per second over them.
        products: The fastest way to compute each shape.
    """

    pairs_per_second: float
    operations_per_pair: float
    training_share: float
    rate: float
    products: str


def floor_pairs_per_second(workload: dict[str, Any], measured: list[dict[str, Any]]) -> Floor | None:
    """The floor of a workload from its measurements of the matrix rate; None without any.

    Args:
        workload: From `Workload.describe`, with ``work``.
        measured: Runs with ``rates``: operations per second by shape and by way to compute the product.
    """
    if not measured:
        return None
    work = _from_json(workload["work"])
    sizes = workload["sizes"]
    rates, ways = {}, set()
    for shape in work.shapes:
        by_way = {
            way: median(entry["rates"][key(shape)][way] for entry in measured)
            for way in measured[0]["rates"][key(shape)]
        }
        way = max(by_way, key=lambda name: by_way[name])
        rates[shape] = by_way[way]
        ways.add(way)
    tokens, completions, pairs = sizes["tokens"], sizes["completion_tokens"], sizes["pairs"]
    seconds = work.floor_seconds(tokens, completions, rates)
    operations = work.operations(tokens, completions, TRAINING + REFERENCE)
    return Floor(
        pairs_per_second=pairs / seconds,
        operations_per_pair=operations / pairs,
        training_share=work.operations(tokens, completions, TRAINING) / pairs,
        rate=operations / seconds,
        products=", ".join(sorted(ways)),
    )


def loss_difference(losses: Sequence[float], others: Sequence[float]) -> float:
    """Largest difference of two runs' losses at the same step."""
    return max(abs(one - other) for one, other in zip(losses, others, strict=True))


def _from_json(data: dict[str, Any]) -> MatrixWork:
    return MatrixWork({(rows, out): count for rows, out, count in data["decoder"]}, tuple(data["head"]))
