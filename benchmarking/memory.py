"""Resident memory of this process, at its peak and now. A process that is new has the cleanest figures."""

import ctypes
import gc
import sys
from pathlib import Path

from agiledpo.surroundings import peak_resident_mb as peak_resident_mb


def forget_peak() -> None:
    """Let the kernel count this process's peak memory from now on (Linux; elsewhere it stays the whole process's)."""
    control = Path("/proc/self/clear_refs")
    if control.exists():
        control.write_text("5")


def settle() -> None:
    """Free what nobody uses and hand freed memory back to the kernel (where the C library can), so that RSS is held."""
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's, not musl's
        if trim is not None:
            trim(0)


def resident_mb() -> dict[str, float]:
    """Resident memory now (Linux only), in MB (10^6 bytes): ``resident`` and its part of mapped files, ``file``."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    sizes = {words[0]: int(words[1]) * 1024 / 1e6 for words in lines if words[0] in ("VmRSS:", "RssFile:")}
    return {"resident": sizes["VmRSS:"], "file": sizes["RssFile:"]}
