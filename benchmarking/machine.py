"""The machine and the software that a figure belongs to."""

import subprocess
from pathlib import Path
from typing import Any

from agiledpo.surroundings import cpu_name, describe_machine, gpu_name, package_versions, usable_cores

__all__ = [
    "LIBRARIES",
    "PACKAGES",
    "REPOSITORY",
    "commit",
    "cpu_name",
    "describe_machine",
    "gpu_name",
    "package_versions",
    "sentence",
    "usable_cores",
]

REPOSITORY = Path(__file__).resolve().parent.parent
LIBRARIES = ("torch", "transformers", "peft", "datasets", "accelerate")
PACKAGES = (*LIBRARIES, "agiledpo", "trl", "agilerl", "liger-kernel")


def commit() -> str:
    """The commit that is measured, with ``+`` behind it if tracked files were changed since; "" outside of git."""
    try:
        head = _git("rev-parse", "--short=10", "HEAD")
        return head + ("+" if _git("status", "--porcelain", "--untracked-files=no", "--", "agiledpo") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def sentence(machine: dict[str, Any]) -> str:
    """The machine in one line, for the head of a table."""
    parts = [
        machine["cpu"],
        f"{machine['threads']} threads on {machine['cores']} cores",
        f"{machine['memory_gb']:.0f} GB",
        machine["gpu"] or "no GPU",
        f"Python {machine['python']}",
    ]
    return ", ".join(parts)


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=REPOSITORY, check=True, capture_output=True, text=True
    ).stdout.strip()
