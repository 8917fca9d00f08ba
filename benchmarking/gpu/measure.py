"""Interleaved measurements: each repeat runs every system once, each on a freshly made model."""

import gc
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from agiledpo.scoring import PreferenceBatch
from benchmarking.gpu.flops import useful_flops
from benchmarking.gpu.shapes import Shape, make_model
from benchmarking.gpu.synthetic import Lengths, make_batches
from benchmarking.gpu.systems import SYSTEMS, Training
from benchmarking.gpu.timing import Run


@dataclass(frozen=True)
class Setting:
    """Where and how often everything is measured.

    Attributes:
        device: Where the models are.
        dtype: Of their weights.
        lengths: Of the pairs.
        steps: Timed steps in each repeat.
        warm_up: Steps before them.
        repeats: Runs of each system.
    """

    device: torch.device
    dtype: torch.dtype
    lengths: Lengths
    steps: int
    warm_up: int
    repeats: int


@dataclass(frozen=True)
class Point:
    """One point of the sweep: a shape, pairs per step, gradient checkpointing."""

    shape: Shape
    batch_size: int
    checkpointing: bool


@dataclass(frozen=True)
class Result:
    """One system at one point; rates are of the median repeat.

    Attributes:
        shape: Name of the shape.
        batch_size: Pairs per step.
        checkpointing: Gradient checkpointing.
        system: Name of the system.
        seconds: Seconds per step, of each repeat.
        pairs_per_second: Pairs trained on per second.
        tokens_per_second: Their tokens per second, a pair's prompt counted once.
        flops_per_second: Useful operations per second.
        peak_bytes: Most memory that tensors took, weights included; None on a CPU.
        losses: Mean loss of each step of the first repeat, warm-up included.
        problem: Why there are no figures ("out of memory"); None if there are.
    """

    shape: str
    batch_size: int
    checkpointing: bool
    system: str
    seconds: Sequence[float] = ()
    pairs_per_second: float = 0.0
    tokens_per_second: float = 0.0
    flops_per_second: float = 0.0
    peak_bytes: int | None = None
    losses: Sequence[float] = ()
    problem: str | None = None


def sweep(shapes: Iterable[Shape], batch_sizes: Sequence[int], checkpointing: Sequence[bool]) -> Iterator[Point]:
    """All points, small models first."""
    for shape in shapes:
        for batch_size in batch_sizes:
            for checkpoint in checkpointing:
                yield Point(shape, batch_size, checkpoint)


def measure(point: Point, systems: Sequence[str], setting: Setting) -> list[Result]:
    """Measure systems at one point, on the same batches from the same weights."""
    batches = make_batches(setting.warm_up + setting.steps, point.batch_size, setting.lengths, point.shape.vocabulary)
    runs: dict[str, list[Run]] = {name: [] for name in systems}
    peaks: dict[str, int] = {}
    failed: set[str] = set()
    for _ in range(setting.repeats):
        for name in systems:
            if name in failed:
                continue
            try:
                run, peak = run_once(name, point, batches, setting)
            except torch.cuda.OutOfMemoryError:
                failed.add(name)
                continue
            finally:
                free(setting.device)
            runs[name].append(run)
            if peak is not None:
                peaks[name] = max(peak, peaks.get(name, 0))
    timed = batches[setting.warm_up :]
    pairs, tokens = sum(map(len, timed)), sum(batch.tokens for batch in timed)
    flops = useful_flops(point.shape, timed)
    results = []
    for name in systems:
        place = (point.shape.name, point.batch_size, point.checkpointing, name)
        if name in failed:
            results.append(Result(*place, problem="out of memory"))
            continue
        seconds = statistics.median(run.seconds for run in runs[name])
        results.append(
            Result(
                *place,
                seconds=[run.seconds / setting.steps for run in runs[name]],
                pairs_per_second=pairs / seconds,
                tokens_per_second=tokens / seconds,
                flops_per_second=flops / seconds,
                peak_bytes=peaks.get(name),
                losses=runs[name][0].losses,
            )
        )
    return results


def run_once(name: str, point: Point, batches: Sequence[PreferenceBatch], setting: Setting) -> tuple[Run, int | None]:
    """Make a model, let one system train it on the batches, and return its run and peak memory, bytes."""
    cuda = setting.device.type == "cuda"
    model = make_model(point.shape, setting.device, setting.dtype)
    if cuda:
        torch.cuda.reset_peak_memory_stats(setting.device)
    run = SYSTEMS[name](model, batches, Training(point.batch_size, point.checkpointing, warm_up=setting.warm_up))
    return run, torch.cuda.max_memory_allocated(setting.device) if cuda else None


def free(device: torch.device) -> None:
    """Give back what the last system held."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def profile(name: str, point: Point, setting: Setting, rows: int = 25) -> str:
    """A table of what took most time in two steps of a system, after a run in which kernels are chosen and compiled."""
    cuda = setting.device.type == "cuda"
    activities = [torch.profiler.ProfilerActivity.CPU, *([torch.profiler.ProfilerActivity.CUDA] if cuda else [])]
    batches = make_batches(2, point.batch_size, setting.lengths, point.shape.vocabulary)
    training = Training(point.batch_size, point.checkpointing, warm_up=0)
    try:
        SYSTEMS[name](make_model(point.shape, setting.device, setting.dtype), batches, training)
        free(setting.device)
        model = make_model(point.shape, setting.device, setting.dtype)
        with torch.profiler.profile(activities=activities) as profiler:
            SYSTEMS[name](model, batches, training)
    finally:
        free(setting.device)
    key = "self_device_time_total" if cuda else "self_cpu_time_total"
    return str(profiler.key_averages().table(sort_by=key, row_limit=rows, max_name_column_width=60))
