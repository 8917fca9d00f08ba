"""What each process of a launch is and runs on, and how long they take to tell each other something."""

import socket
import statistics
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import psutil
import torch
import torch.distributed as dist
from accelerate import Accelerator

from agiledpo import __version__

_PACKAGES = ("torch", "transformers", "peft", "accelerate", "deepspeed")
_SMALL, _REPEATS_SMALL, _REPEATS_LARGE = 8, 20, 3
# A message that keeps a link busy: on an accelerator, and on a CPU, where links are slower.
_LARGE = {"cuda": 2**26, "cpu": 2**23}


@dataclass(frozen=True)
class RankFacts:
    """One process.

    Attributes:
        rank: Its number.
        local_rank: Its number on its host.
        host: Its host.
        device: Where it computes.
        device_name: What that is.
        visible_devices: Devices of the kind that it sees; 1 for a CPU.
        total: Memory of the device, bytes.
        free: What of it nobody uses, bytes.
        versions: Of the packages that matter; NCCL's where there is any.
        model: Digest of the model's configuration that it read.
        problem: Why it could not read it.
    """

    rank: int
    local_rank: int
    host: str
    device: str
    device_name: str
    visible_devices: int
    total: int
    free: int
    versions: Mapping[str, str]
    model: str | None
    problem: str | None


@dataclass(frozen=True)
class AllReduce:
    """A sum over all ranks that was really made.

    Attributes:
        size: Bytes of the message.
        seconds: Median time.
        bandwidth: Bytes per second that each rank sent: ``2 (n - 1) / n`` of the message, as the best algorithms do
            (Patarasu & Yuan 2009, https://doi.org/10.1016/j.jpdc.2008.09.002, theorem 1), over the time.
    """

    size: int
    seconds: float
    bandwidth: float


def inspect_rank(accelerator: Accelerator, *, model: str | None, problem: str | None) -> RankFacts:
    """Look at this process.

    Args:
        accelerator: Accelerate's handle.
        model: Digest of the model's configuration.
        problem: Why there is none.
    """
    device = accelerator.device
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        name, visible = torch.cuda.get_device_name(device), torch.cuda.device_count()
    else:
        memory = psutil.virtual_memory()
        free, total, name, visible = memory.available, memory.total, "CPU", 1
    return RankFacts(
        rank=accelerator.process_index,
        local_rank=accelerator.local_process_index,
        host=socket.gethostname(),
        device=str(device),
        device_name=name,
        visible_devices=visible,
        total=total,
        free=free,
        versions=_versions(device),
        model=model,
        problem=problem,
    )


def gather(facts: RankFacts) -> list[RankFacts]:
    """The facts of all ranks, in their order."""
    if not dist.is_initialized():
        return [facts]
    found: list[RankFacts] = [facts] * dist.get_world_size()
    dist.all_gather_object(found, facts)
    return found


def available(facts: Sequence[RankFacts]) -> int:
    """Memory that the rank with the least has, bytes; ranks on the CPU of one host share it."""
    return min(rank.free // (1 if _has_device(rank) else sum(r.host == rank.host for r in facts)) for rank in facts)


def time_all_reduce(device: torch.device) -> list[AllReduce]:
    """Sum over all ranks a message of a few bytes, whose time is latency, and one of many, whose time is bandwidth.

    Args:
        device: Where this rank's message is.

    Returns:
        Both; nothing where there is one process.

    Raises:
        RuntimeError: The sum is wrong, or a rank did not answer.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return []
    large = _LARGE["cuda" if device.type == "cuda" else "cpu"]
    return [_time(size, repeats, device) for size, repeats in ((_SMALL, _REPEATS_SMALL), (large, _REPEATS_LARGE))]


def _time(size: int, repeats: int, device: torch.device) -> AllReduce:
    ranks = dist.get_world_size()
    expected, seconds = ranks * (ranks + 1) / 2, []
    for _ in range(repeats + 1):  # the first opens connections
        message = torch.full((size // 4,), dist.get_rank() + 1.0, device=device)
        dist.barrier()
        _synchronise(device)
        started = time.perf_counter()
        dist.all_reduce(message)
        _synchronise(device)
        seconds.append(time.perf_counter() - started)
        if not bool((message == expected).all()):
            raise RuntimeError(f"The sum of 1 to {ranks} over the ranks came out as {float(message[0])}.")
    median = statistics.median(seconds[1:])
    return AllReduce(size, median, 2 * (ranks - 1) / ranks * size / median)


def disagreements(facts: Sequence[RankFacts]) -> list[str]:
    """What a run would trip over because ranks are not alike, in sentences.

    Args:
        facts: Of all ranks.
    """
    found = []
    for package in sorted({name for rank in facts for name in rank.versions}):
        found += _differing(facts, package, [rank.versions.get(package, "not installed") for rank in facts])
    found += _differing(facts, "device", [_kind(rank) for rank in facts])
    found += _differing(facts, "visible devices", [rank.visible_devices for rank in facts])
    found += _differing(facts, "model configuration", [rank.model or "none" for rank in facts])
    places: dict[tuple[str, str], list[int]] = {}
    for rank in facts:
        if _has_device(rank):
            places.setdefault((rank.host, rank.device), []).append(rank.rank)
    found += [
        f"Ranks {', '.join(map(str, ranks))} share {device} on {host}."
        for (host, device), ranks in places.items()
        if len(ranks) > 1
    ]
    return found


def _differing(facts: Sequence[RankFacts], what: str, values: Sequence[Hashable]) -> list[str]:
    ranks: dict[Hashable, list[int]] = {}
    for rank, value in zip(facts, values, strict=True):
        ranks.setdefault(value, []).append(rank.rank)
    if len(ranks) == 1:
        return []
    parts = [f"{held} on {_ranks(numbers)}" for held, numbers in ranks.items()]
    return [f"Ranks differ in {what}: {'; '.join(parts)}."]


def _ranks(numbers: Sequence[int]) -> str:
    if len(numbers) == 1:
        return f"rank {numbers[0]}"
    if len(numbers) == numbers[-1] - numbers[0] + 1:
        return f"ranks {numbers[0]} to {numbers[-1]}"
    return f"ranks {', '.join(map(str, numbers))}"


def _kind(rank: RankFacts) -> str:
    # Hosts may well have different memories; devices of one kind do not.
    return f"{rank.device_name} with {rank.total / 2**30:.0f} GiB" if _has_device(rank) else rank.device_name


def _has_device(rank: RankFacts) -> bool:
    return not rank.device.startswith("cpu")


def _versions(device: torch.device) -> dict[str, str]:
    found = {"agiledpo": __version__}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    if device.type == "cuda" and dist.is_nccl_available():
        found["NCCL"] = ".".join(map(str, torch.cuda.nccl.version()))
    return found


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
