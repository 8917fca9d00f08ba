"""A virtual environment for each system that is compared, so that none has to live with another's versions."""

import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

from benchmarking.machine import REPOSITORY

CONSTRAINTS = REPOSITORY / "constraints.txt"

REQUIREMENTS: dict[str, list[str]] = {
    "agiledpo": ["--constraint", str(CONSTRAINTS), "--editable", str(REPOSITORY)],
    "trl": ["--constraint", str(CONSTRAINTS), "trl", "peft"],
    # Transformers, PEFT and datasets as AgileRL's `llm` extra pins them, without the rest of that extra, which needs a
    # GPU (vllm, deepspeed, bitsandbytes, liger-kernel).
    "agilerl": ["agilerl==2.8.4", "torch==2.13.0", "transformers==5.14.1", "peft==0.19.1", "datasets==5.0.0"],
}


def environment(system: str, directory: Path) -> Path:
    """The Python of a system's environment, which is created or renewed if its requirements changed.

    Args:
        system: A key of `REQUIREMENTS`.
        directory: Where environments are kept.

    Raises:
        RuntimeError: pip failed; the message has its last lines.
    """
    home = directory / system
    python = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    marker = home / "installed.txt"
    wanted = _fingerprint(system)
    if marker.exists() and marker.read_text() == wanted:
        return python
    print(f"Creating the environment of {system} in {home} ...", file=sys.stderr, flush=True)
    venv.create(home, with_pip=True, clear=True)
    done = subprocess.run(
        [str(python), "-m", "pip", "install", "--quiet", *REQUIREMENTS[system]],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        last = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
        raise RuntimeError(f"pip could not install {' '.join(REQUIREMENTS[system])} into {home}:\n{last}")
    marker.write_text(wanted)
    return python


def _fingerprint(system: str) -> str:
    """Changes whenever the environment has to be made anew."""
    text = " ".join(REQUIREMENTS[system]) + CONSTRAINTS.read_text()
    return f"{sys.version}\n{hashlib.sha256(text.encode()).hexdigest()}\n"
