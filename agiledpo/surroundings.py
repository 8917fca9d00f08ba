"""The machine and the software that a run, or a figure, belongs to."""

import os
import platform
import resource
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

LIBRARIES = ("agiledpo", "torch", "transformers", "peft", "datasets", "accelerate", "deepspeed", "liger-kernel", "vllm")


def usable_cores() -> int:
    """Cores that this process may use."""
    # Not everywhere is there an affinity to ask for.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe_machine(threads: int | None = None) -> dict[str, Any]:
    """What a reader must know of the machine.

    Args:
        threads: Threads that the measured work uses; None for as many as there are cores.

    Returns:
        ``cpu``, ``cores``, ``threads``, ``memory_gb``, ``gpu`` (None without), ``os``, ``python``.
    """
    return {
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "threads": threads or usable_cores(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "gpu": gpu_name(),
        "os": platform.platform(),
        "python": platform.python_version(),
    }


def cpu_name() -> str:
    """The processor's model name, with family and model: a hypervisor often hides the rest of the name."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return platform.processor() or platform.machine()
    first = cpuinfo.read_text().split("\n\n", 1)[0]
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first.splitlines())}
    if "model name" not in facts:
        return platform.machine()
    numbers = [f"{name.removeprefix('cpu ')} {facts[name]}" for name in ("cpu family", "model") if name in facts]
    return f"{facts['model name']} ({', '.join(numbers)})"


def gpu_name() -> str | None:
    """The first CUDA device, or None."""
    import torch  # here, because a script that only starts others needs no torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def peak_memory_mb(device: "torch.device") -> float:
    """The most memory that this process has held so far: on a CUDA device its tensors, elsewhere resident; MB.

    Args:
        device: Where the process computes.
    """
    import torch  # as above

    return torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else peak_resident_mb()


def peak_resident_mb() -> float:
    """Largest resident set of this process so far, in MB (10^6 bytes)."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not getrusage: on Linux its maximum survives exec, so a small process started by a large one reports the
        # large one's.
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6  # bytes there, kibibytes elsewhere


def package_versions(packages: Sequence[str] = LIBRARIES) -> dict[str, str]:
    """Versions of those packages that are installed in this environment."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
