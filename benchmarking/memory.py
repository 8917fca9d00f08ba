"""Peak resident memory of a process. A peak never goes down, so every configuration needs a process of its own."""

import resource
import sys
from pathlib import Path


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
