"""What this machine has: checked before anything heavy is imported."""

import importlib.metadata
import importlib.util

from packaging.version import Version

# Lowest versions, as in setup.py. On a machine without pip's metadata for agiledpo nobody else would check them.
REQUIRED = {
    "torch": "2.6",
    "transformers": "5.23",
    "peft": "0.21",
    "accelerate": "1.15",
    "datasets": "5.0",
    "gymnasium": "1.0",
    "safetensors": "0.4",
    "numpy": "1.26",
    "tqdm": "4.66",
}


class UnsuitableMachineError(RuntimeError):
    """This machine cannot run the benchmark; the message says what to install."""


def check_requirements(required: dict[str, str], *, any_version: bool = False) -> None:
    """Check that packages are installed and new enough.

    Args:
        required: Lowest version by package.
        any_version: Check only that they are there.

    Raises:
        UnsuitableMachineError: Some are not; one sentence names all of them.
    """
    problems = []
    for package, lowest in required.items():
        version = installed_version(package)
        if version is None:
            problems.append(f"{package}>={lowest} is missing")
        elif not any_version and Version(version) < Version(lowest):
            problems.append(f"{package} is {version}, at least {lowest} is needed")
    if problems:
        raise UnsuitableMachineError(
            f"This machine cannot run the benchmark: {'; '.join(problems)}. Put wheels into a folder and run "
            "`bash benchmarking/gpu/run.sh --wheels FOLDER`, or pass --any-version to try older ones."
        )


def installed_version(package: str) -> str | None:
    """Version of an installed package, None if it is not installed."""
    if importlib.util.find_spec(package) is None:
        return None
    try:
        return importlib.metadata.version(package.replace("_", "-"))
    except importlib.metadata.PackageNotFoundError:
        return "0"
