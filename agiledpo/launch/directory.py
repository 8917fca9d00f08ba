"""The directory of a run: what it goes by, what came of it, and where everything is."""

import json
import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from agiledpo.disk import flush
from agiledpo.surroundings import describe_machine, package_versions

CONFIG, ABOUT = "config.yaml", "about.json"


class RunDirectory:
    """Files of one run.

    Args:
        path: The directory.

    Attributes:
        path: As given.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def config(self) -> Path:
        """The configuration, which can be run again."""
        return self.path / CONFIG

    @property
    def about(self) -> Path:
        """What run it is: see :meth:`recorded`."""
        return self.path / ABOUT

    @property
    def metrics(self) -> Path:
        """All figures."""
        return self.path / "metrics.jsonl"

    @property
    def lineage(self) -> Path:
        """Where the agents come from."""
        return self.path / "lineage.jsonl"

    @property
    def rollouts(self) -> Path:
        """What agents answered while they learned from it."""
        return self.path / "rollouts.jsonl"

    @property
    def samples(self) -> Path:
        """Answers to held-out prompts, to look at."""
        return self.path / "samples.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Where the run can be taken up again."""
        return self.path / "checkpoints"

    @property
    def elite(self) -> Path:
        """The fittest agent."""
        return self.path / "elite"

    def is_run(self) -> bool:
        """Whether a run is here."""
        return self.config.exists()

    def check_free(self) -> None:
        """Check that a new run may be written here.

        Raises:
            FileExistsError: Something is here.
        """
        if self._came_to_nothing():
            return
        if self.is_run():
            raise FileExistsError(
                f"{self.path} holds a run. Go on with it (agiledpo resume {self.path}), or choose another --run."
            )
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise FileExistsError(f"{self.path} exists and is no run. Choose another --run.")

    def _came_to_nothing(self) -> bool:
        """Whether all that is here is a run that failed before it began, for its data were misspelt."""
        if not self.is_run() or {path.name for path in self.path.iterdir()} - {CONFIG, ABOUT}:
            return False
        return bool(self._said().get("status") == "failed")

    def write_config(self, text: str) -> None:
        """Write the configuration.

        Args:
            text: YAML.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        _replace(self.config, text)

    def algorithm(self) -> str:
        """Name of the algorithm of the run that is here.

        Raises:
            FileNotFoundError: No run is here.
            ValueError: It does not say.
        """
        if not self.is_run():
            raise FileNotFoundError(f"{self.path} holds no run: there is no {self.config}.")
        algorithm = self._said().get("algorithm")
        if not isinstance(algorithm, str):
            raise ValueError(
                f"{self.about} does not say which algorithm the run is of. Pass it: agiledpo train ALGORITHM --resume "
                f"--run {self.path}."
            )
        return algorithm

    @contextmanager
    def recorded(self, algorithm: str, *, processes: int, resumed: bool = False) -> Iterator[dict[str, Any]]:
        """Keep ``about.json`` up to date while a run goes on.

        Args:
            algorithm: ``"dpo"`` and so on.
            processes: How many make the run.
            resumed: The run goes on with what is there, so that it began, and took its time, before.

        Yields:
            What the file says; what is added there is written at the end, and by :meth:`write_about`.
        """
        began, before = time.monotonic(), self._seconds_before() if resumed else 0.0
        about: dict[str, Any] = {
            "algorithm": algorithm,
            "command": _command(),
            "started": (self._said().get("started") if resumed else None) or _now(),
            "ended": None,
            "seconds": None,
            "status": "running",
            "error": None,
            "model": None,
            "data": {},
            "machine": describe_machine(),
            "versions": package_versions(),
            "processes": processes,
        }
        self.write_about(about)
        try:
            yield about
        except BaseException as error:
            stopped = isinstance(error, KeyboardInterrupt | SystemExit)
            about["status"] = "interrupted" if stopped else "failed"
            about["error"] = None if stopped else f"{type(error).__name__}: {error}"
            raise
        else:
            about["status"] = "finished"
        finally:
            about["ended"], about["seconds"] = _now(), round(before + time.monotonic() - began, 1)
            self.write_about(about)

    def write_about(self, about: Mapping[str, Any]) -> None:
        """Write ``about.json``.

        Args:
            about: What it says.
        """
        _replace(self.about, json.dumps(about, indent=2, ensure_ascii=False) + "\n")

    def _seconds_before(self) -> float:
        """Of the attempts before this one, which resumes them."""
        seconds = self._said().get("seconds")
        return float(seconds) if isinstance(seconds, int | float) else 0.0

    def _said(self) -> dict[str, Any]:
        """What ``about.json`` says; nothing where there is none, or it is no such file."""
        try:
            found = json.loads(self.about.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


def fresh_directory(algorithm: str, parent: Path = Path("runs")) -> RunDirectory:
    """A directory for a new run, named by algorithm and time.

    Args:
        algorithm: ``"dpo"`` and so on.
        parent: Where runs are.
    """
    name = f"{algorithm}-{datetime.now():%Y-%m-%d-%H%M%S}"
    path, number = parent / name, 2
    while path.exists():
        path, number = parent / f"{name}-{number}", number + 1
    return RunDirectory(path)


def _replace(file: Path, text: str) -> None:
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    draft.write_text(text, encoding="utf-8")
    flush(draft)
    draft.replace(file)


def _command() -> str:
    return shlex.join(["agiledpo", *sys.argv[1:]])


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
