"""Devices that compute, threads, memory and disk."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from agiledpo.cache import cache_directory
from agiledpo.doctor.finding import Finding
from agiledpo.surroundings import cpu_name, usable_cores

if TYPE_CHECKING:
    import torch

_GIB = 2**30
_LITTLE_MEMORY, _LITTLE_DISK = 2 * _GIB, 2 * _GIB
# Side of the matrices that are multiplied, and how often: some milliseconds each.
_SIDE = {"cpu": 768, "cuda": 4096, "mps": 2048}
_REPETITIONS = 5
# Of a gradient in float64, which no device rounds to TF32; mps has float32 only.
_TOLERANCE, _TOLERANCE_FLOAT32 = 1e-10, 1e-2


def check_devices() -> Iterator[Finding]:
    """Every device multiplies matrices forward and backward, rightly and in how many milliseconds."""
    import torch

    names = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        names.append("mps")
    for name in names:
        device = torch.device(name)
        label = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
        try:
            _check_product(device)
            full, half = (_milliseconds(device, dtype) for dtype in (torch.float32, torch.bfloat16))
        except (RuntimeError, ValueError) as error:
            remedy = "Install a torch that is made for this device: https://pytorch.org/get-started."
            yield Finding("devices", name, "error" if name == "cpu" else "warning", f"{label}: {error}", remedy)
            continue
        side = _SIDE[device.type]
        said = f"{label}; {side} x {side} product {full:.1f} ms in float32, {half:.1f} ms in bfloat16"
        if half > full:
            yield Finding("devices", name, "note", said, "bfloat16 is the slower one here; load models in float32.")
        else:
            yield Finding("devices", name, "ok", said)
    if len(names) == 1:
        built = torch.version.cuda is not None
        remedy = (
            "This torch is made for CUDA and sees no GPU: look at nvidia-smi and CUDA_VISIBLE_DEVICES."
            if built
            else "This torch is made for CPUs. Where there is a GPU, install one for CUDA."
        )
        yield Finding("devices", "GPU", "note", "none; small models train on a CPU", remedy)


def _check_product(device: "torch.device") -> None:
    """The gradient of the sum of A B by A has the row sums of B in every row."""
    import torch

    generator = torch.Generator().manual_seed(0)
    dtype, tolerance = (torch.float32, _TOLERANCE_FLOAT32) if device.type == "mps" else (torch.float64, _TOLERANCE)
    left, right = (torch.randn(64, 64, generator=generator).to(device, dtype) for _ in range(2))
    left.requires_grad_(True)
    (left @ right).sum().backward()
    assert left.grad is not None
    error = float((left.grad - right.sum(1)).abs().max())
    if not error < tolerance:
        raise ValueError(f"a gradient is wrong by {error:.2g}")


def _milliseconds(device: "torch.device", dtype: "torch.dtype") -> float:
    import torch

    matrix = torch.ones(_SIDE[device.type], _SIDE[device.type], device=device, dtype=dtype)
    wait: Callable[[], object] = (lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else (lambda: None)
    times = []
    for _ in range(_REPETITIONS):
        started = time.perf_counter()
        (matrix @ matrix).sum().item()
        wait()
        times.append(time.perf_counter() - started)
    return 1000 * min(times)


def check_threads() -> Iterator[Finding]:
    """Whether torch takes as many threads as there are cores, and gives way to others."""
    import torch

    cores, threads = usable_cores(), torch.get_num_threads()
    if threads > cores:
        yield Finding(
            "devices",
            "threads",
            "warning",
            f"torch takes {threads} threads, and this process may use {cores} cores",
            f"Set OMP_NUM_THREADS={cores}.",
        )
    else:
        yield Finding("devices", "threads", "ok", f"{threads} of {cores} cores")
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0  # not on Windows
    policy = os.environ.get("OMP_WAIT_POLICY", "").lower()
    said = f"load {load:.1f} on {os.cpu_count()} cores, OMP_WAIT_POLICY={policy or 'unset'}"
    # Threads that wait actively take their cores from whoever else computes.
    if load > 0.5 * (os.cpu_count() or 1) and policy != "passive":
        yield Finding("devices", "shared machine", "note", said, "Others compute here: set OMP_WAIT_POLICY=passive.")
    else:
        yield Finding("devices", "shared machine", "ok", said)


def check_memory() -> Iterator[Finding]:
    """Memory that is free."""
    memory = psutil.virtual_memory()
    said = f"{memory.available / _GIB:.1f} of {memory.total / _GIB:.1f} GiB free"
    if memory.available < _LITTLE_MEMORY:
        yield Finding("storage", "memory", "warning", said, "The embedded model needs about 2 GiB: end other programs.")
    else:
        yield Finding("storage", "memory", "ok", said)


def check_disk() -> Iterator[Finding]:
    """Room and permission where caches and runs are written."""
    from huggingface_hub.constants import HF_HUB_CACHE

    places = {
        "current directory": Path.cwd(),
        "AgileDPO's cache": cache_directory("tokenized").parent,
        "Hugging Face's cache": Path(HF_HUB_CACHE),
    }
    remedies = {
        "current directory": "Work in another directory, or make room.",
        "AgileDPO's cache": "Set AGILEDPO_CACHE to another directory, or make room.",
        "Hugging Face's cache": "Set HF_HOME to another directory, or make room.",
    }
    for name, place in places.items():
        there = next(folder for folder in (place, *place.parents) if folder.exists())
        free = shutil.disk_usage(there).free
        said = f"{place}: {free / _GIB:.1f} GiB free"
        if not os.access(there, os.W_OK | os.X_OK):
            yield Finding("storage", name, "warning", f"{place} cannot be written to", remedies[name])
        elif free < _LITTLE_DISK:
            yield Finding("storage", name, "warning", said, remedies[name])
        else:
            yield Finding("storage", name, "ok", said)
