"""The directory of a run: what it goes by, what came of it, and where everything is."""

import json
import os
import shlex
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from traceback import extract_tb, format_exception
from typing import Any

import agiledpo
from agiledpo.disk import flush
from agiledpo.surroundings import describe_machine, package_versions

CONFIG, ABOUT = "config.yaml", "about.json"

_PACKAGE = Path(agiledpo.__file__).parent
_NOT_THE_USERS = (_PACKAGE, *(Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")))


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

    def has_checkpoint(self) -> bool:
        """Whether the run that is here can be gone on with from a later place than its beginning."""
        return any(self.checkpoints.glob("step_*"))

    def check_usable(self, *, resume: bool) -> None:
        """Check that a run may be written here.

        Args:
            resume: It may be the run that is here already.

        Raises:
            FileExistsError: Something else is here.
        """
        if not (resume and self.is_run()):
            self.check_free()

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
    def recorded(self, algorithm: str, *, processes: int, resumed: bool = False) -> Iterator["About"]:
        """Keep ``about.json`` up to date while a run goes on.

        What it says of a run that was begun before stays until that run is taken up: see :meth:`About.taken_up`.

        Args:
            algorithm: ``"dpo"`` and so on.
            processes: How many make the run.
            resumed: The run goes on with what is there, so that it began, and took its time, before.

        Yields:
            What the file says.
        """
        began, before = time.monotonic(), self._seconds_before() if resumed else 0.0
        values: dict[str, Any] = {
            "algorithm": algorithm,
            "command": _command(),
            "started": (self._said().get("started") if resumed else None) or _now(),
            "ended": None,
            "seconds": None,
            "status": "running",
            "error": None,
            "traceback": None,
            "model": None,
            "data": {},
            "machine": describe_machine(),
            "versions": package_versions(),
            "processes": processes,
        }
        about = About(self.about, values, waits=resumed and self.about.exists() and not self._came_to_nothing())
        about.tell()
        try:
            yield about
        except BaseException as error:
            stopped = isinstance(error, KeyboardInterrupt | SystemExit)
            values["status"] = "interrupted" if stopped else "failed"
            values["error"] = None if stopped else f"{type(error).__name__}: {error}"
            if not stopped and not about.waits and not is_refusal(error):
                values["traceback"] = "".join(format_exception(error))
                error.add_note(f"The traceback is in {self.about}.")
            raise
        else:
            values["status"] = "finished"
        finally:
            values["ended"], values["seconds"] = _now(), round(before + time.monotonic() - began, 1)
            about.tell()

    def _seconds_before(self) -> float:
        """Of the attempts before this one, which resumes them; of one that was killed as far as the log knows."""
        seconds = self._said().get("seconds")
        if isinstance(seconds, int | float):
            return float(seconds)
        total = last = 0.0
        for elapsed in self._elapsed():
            if elapsed < last:  # each attempt counts from its own beginning
                total += last
            last = elapsed
        return total + last

    def _elapsed(self) -> Iterator[float]:
        if not self.metrics.exists():
            return
        with self.metrics.open(encoding="utf-8") as file:
            for line in file:
                with suppress(ValueError):  # the last line of a process that was killed
                    elapsed = json.loads(line).get("time/elapsed_seconds")
                    if isinstance(elapsed, int | float):
                        yield elapsed

    def _said(self) -> dict[str, Any]:
        """What ``about.json`` says; nothing where there is none, or it is no such file."""
        try:
            found = json.loads(self.about.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


class About:
    """What ``about.json`` says.

    Args:
        file: The file.
        values: What it is to say.
        waits: Leave the file as it is until the run was taken up.

    Attributes:
        values: As given.
        waits: Whether the file is still left as it is.
    """

    def __init__(self, file: Path, values: dict[str, Any], *, waits: bool) -> None:
        self.values = values
        self.waits = waits
        self._file = file

    def taken_up(self) -> None:
        """The run goes on: from now on the file is about this attempt."""
        self.waits = False
        self.tell()

    def tell(self) -> None:
        """Write the file, unless it waits."""
        if not self.waits:
            _replace(self._file, json.dumps(self.values, indent=2, ensure_ascii=False) + "\n")


def is_refusal(error: BaseException) -> bool:
    """Whether an error is a sentence of this package about what it was given, and not the fault of code that it called.

    Args:
        error: The error, as it was caught.
    """
    place = _places(error)[-1:]
    if not place or not place[0].is_relative_to(_PACKAGE):
        return False
    cause = error.__cause__
    while cause is not None:
        if not all(any(path.is_relative_to(known) for known in _NOT_THE_USERS) for path in _places(cause)):
            return False
        cause = cause.__cause__
    return True


def _places(error: BaseException) -> list[Path]:
    """The files that an error came through, from the outermost to the one that raised it."""
    frames = extract_tb(error.__traceback__)
    return [Path(frame.filename) for frame in frames if not frame.filename.startswith("<")]  # of Python's own


def fresh_directory(algorithm: str, parent: Path = Path("runs")) -> RunDirectory:
    """Make a directory for a new run, named by algorithm and time.

    Args:
        algorithm: ``"dpo"`` and so on.
        parent: Where runs are.
    """
    name = f"{algorithm}-{datetime.now():%Y-%m-%d-%H%M%S}"
    parent.mkdir(parents=True, exist_ok=True)
    path, number = parent / name, 2
    while True:
        try:
            path.mkdir()
        except FileExistsError:  # another run's that began in the same second
            path, number = parent / f"{name}-{number}", number + 1
        else:
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
