"""The checkpoints of a run: a directory of steps, of which the newest complete one can be taken up again."""

import math
import re
import shutil
import uuid
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from filelock import FileLock, Timeout

from agiledpo.checkpoint.directory import MANIFEST, check_writable, settle
from agiledpo.checkpoint.errors import CheckpointError
from agiledpo.checkpoint.manifest import Manifest, later, now
from agiledpo.checkpoint.run import read_run, restore_agents, save_run
from agiledpo.distributed.team import Team
from agiledpo.training.retention import Retention, Saved

if TYPE_CHECKING:
    from agiledpo.training.run import TrainingRun

_STEP = re.compile(r"step_(\d+)")
_LEFT = re.compile(r"\.(step_\d+)\.")


class RunCheckpoints:
    """Saves a run every now and then, keeps what is worth keeping, and finds what a later process goes on from.

    All processes of a run call the same methods. The leader alone looks at the directory and writes; the others learn
    what came of it, and need not see the directory.

    Args:
        directory: Holds one directory ``step_<rows>`` for each checkpoint.
        retention: Which of them are kept.
        team: The processes of the run; None for one.

    Attributes:
        directory: As given, as an absolute path.
        retention: As given.
    """

    def __init__(self, directory: Path, retention: Retention, team: Team | None = None) -> None:
        self.directory = directory.absolute()  # whatever changes the working directory later
        self.retention = retention
        self._team = Team.alone() if team is None else team
        self._run = uuid.uuid4().hex
        self._protected: Path | None = None
        self._current: Path | None = None

    @property
    def judges(self) -> bool:
        """Whether agents have to be evaluated for a checkpoint, because the best ones are kept."""
        return self.retention.keep_best > 0

    @property
    def present(self) -> list[Path]:
        """Checkpoints in the directory, oldest first; whether they are intact is not looked at."""
        return [path for path, manifest in self._entries() if manifest is not None]

    @property
    def newest(self) -> Path | None:
        """The newest of them; None if there is none, or this process does not see the directory."""
        return next(reversed(self.present), None)

    def last(self) -> Path | None:
        """The newest as the leader sees it; all processes ask together."""
        return self._team.leader_does(lambda: self.newest)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from writing to the directory; a process that is killed lets go of it.

        Raises:
            RuntimeError: Another process has it.
        """
        with ExitStack() as holding:  # nothing, but in the leader
            self._team.leader_does(lambda: self._hold(holding))
            yield

    def _hold(self, holding: ExitStack) -> None:
        check_writable(self.directory)
        lock = FileLock(self.directory / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise RuntimeError(
                f"Another process writes checkpoints to {self.directory}. Wait for it or stop it, or choose another "
                "checkpoint_path."
            ) from None
        holding.callback(lock.release)

    def begin(self) -> None:
        """Check that a new run may be saved here, before anything is computed.

        Raises:
            FileExistsError: An earlier run is here.
            OSError: Nothing can be written.
        """
        if (newest := self.last()) is not None:
            raise FileExistsError(
                f"{self.directory} holds checkpoints of an earlier run, {newest.name} the newest. Pass "
                "resume_from='latest' to go on with that run, or another checkpoint_path for a new one."
            )

    def find(self, resume_from: str | Path) -> tuple[Path, dict[str, Any]] | None:
        """Read the checkpoint that a run goes on from.

        Args:
            resume_from: A checkpoint's directory, or ``"latest"`` for the newest complete one here.

        Returns:
            Its directory and state; None if ``"latest"`` finds that nothing has ever been saved here.

        Warns:
            UserWarning: A newer one is damaged, and why.

        Raises:
            CheckpointError: The checkpoint is damaged or none; with ``"latest"``: all are.
            FileExistsError: The checkpoint is of another run than those in the directory.
        """
        taken = self._team.leader_does(lambda: self._found(resume_from))
        if taken is None:
            return None
        self._run, self._current = taken.run or self._run, taken.path if taken.is_here else None
        self._protected = taken.path.resolve()
        return taken.path, taken.state

    def _found(self, resume_from: str | Path) -> "_Taken | None":
        self._settle()
        if resume_from != "latest":
            path = Path(resume_from).resolve()
            self._check_is_step(path)
            return self._taken(path, read_run(path))
        damaged = []
        for path, _ in reversed(self._entries()):
            try:
                state = read_run(path)
            except (CheckpointError, OSError) as error:
                damaged.append(f"{path.name}: {error}")
                continue
            if damaged:
                warnings.warn(
                    f"Going on from {path}, because what is newer is damaged. " + " ".join(damaged), stacklevel=3
                )
            return self._taken(path, state)
        if damaged:
            raise CheckpointError(
                f"No checkpoint in {self.directory} is complete. {' '.join(damaged)} To begin anew, choose another "
                "checkpoint_path."
            )
        return None

    def _taken(self, path: Path, state: dict[str, Any]) -> "_Taken":
        """Go on with the run of a checkpoint."""
        run = Manifest.read(path).run
        others = [other.name for other, manifest in self._entries() if manifest is not None and manifest.run != run]
        if others:
            raise FileExistsError(
                f"{self.directory} holds checkpoints of another run than {path}, {others[-1]} the newest. Pass "
                "another checkpoint_path."
            )
        return _Taken(path, state, run, is_here=path.parent.resolve() == self.directory.resolve())

    def _check_is_step(self, path: Path) -> None:
        if path.is_dir() and not (path / MANIFEST).exists() and any(path.glob("step_*")):
            raise CheckpointError(
                f"{path} holds the checkpoints of a run. Pass one of them as resume_from, or 'latest' with "
                f"checkpoint_path='{path}'."
            )

    def take_up(self, run: "TrainingRun[Any]", path: Path, state: dict[str, Any]) -> None:
        """Bring a run to the state of a checkpoint.

        Args:
            run: Made with the same arguments as the one that was saved.
            path: The checkpoint's directory.
            state: What :meth:`find` read there.

        Raises:
            ValueError: The run was made with other agents, environments or strategies.
        """
        with self._team.speaking_once():
            run.check_state(state, agents=len(state["agents"]))
            run.place(state)  # what may be refused comes before the agents change
            restore_agents(path, state["agents"], run.population, self._team)
            run.load_loop_state_dict(state)

    def save(self, run: "TrainingRun[Any]") -> Path | None:
        """Save a run as it is between two batches, and remove what is not to be kept.

        Args:
            run: The run.

        Returns:
            The checkpoint's directory, as the leader names it; None if it could not be written, because the disk is
            full for one. What was saved before is intact then, and the run can go on.

        Warns:
            UserWarning: It could not be written.
        """
        path, is_current = self._team.leader_does(lambda: self._place(run.rows_done))
        if is_current:  # nothing has been learned since
            return path
        metrics = run.metrics if run.measured_at == run.rows_done else None
        try:
            save_run(
                path,
                run.loop_state_dict(),
                run.population,
                metrics=metrics,
                tokenizer=run.environments.judge.tokenizer,
                run=self._run,
                created=self._team.leader_does(self._stamp),
                team=self._team,
                at_hand=lambda agent: run.homes.at_hand(run.population, agent),
            )
        except OSError as error:
            newest = self.last()
            before = "Nothing had been saved before" if newest is None else f"{newest} is intact"
            said = f"{path} could not be written: {error}. {before}; the run goes on."
            # Where warnings are errors all processes have it.
            self._team.leader_does(lambda: warnings.warn(said, stacklevel=4))
            return None
        self._current = path
        self._team.leader_does(self._prune)
        return path

    def _place(self, rows: int) -> tuple[Path, bool]:
        """Where a run is saved, and whether that is what it was taken up from, or saved last."""
        path = self.directory / f"step_{rows}"
        return path, self._current is not None and path.resolve() == self._current.resolve()

    def _stamp(self) -> str:
        """The time, but later than all checkpoints', whatever the clocks of the machines that wrote them say."""
        written = [manifest.created for _, manifest in self._entries() if manifest is not None]
        if not written or written[-1] < now():
            return now()
        return later(written[-1])

    def _settle(self) -> None:
        """Finish what processes that were killed left undone, whichever step they were at."""
        left = {match[1] for path in self.directory.iterdir() if (match := _LEFT.match(path.name))}
        for name in left:
            settle(self.directory / name)

    def _prune(self) -> None:
        for path in self.retention.expendable(self._saved()):
            if self._protected is not None and path.resolve() == self._protected:
                continue
            # What is half removed must not look like a checkpoint.
            doomed = path.with_name(f".{path.name}.removed")
            try:
                path.rename(doomed)
            except OSError as error:
                warnings.warn(f"{path} could not be removed: {error}.", stacklevel=3)
        for doomed in self.directory.glob(".step_*.removed"):
            shutil.rmtree(doomed, ignore_errors=True)

    def _saved(self) -> list[Saved]:
        name = self.retention.metric_name
        return [
            Saved(path, _rows(path), manifest.metrics.get(name, math.nan))
            for path, manifest in self._entries()
            if manifest is not None
        ]

    def _entries(self) -> list[tuple[Path, Manifest | None]]:
        """Directories of checkpoints and their manifests, oldest first.

        Not by their numbers: a run that was taken up at an older step writes later ones anew. What has no manifest that
        can be read counts as the newest, so that it is looked at and reported.
        """
        if not self.directory.is_dir():
            return []
        paths = [path for path in self.directory.iterdir() if _STEP.fullmatch(path.name) and path.is_dir()]
        entries = [(path, _manifest(path)) for path in paths]
        return sorted(
            entries, key=lambda entry: (entry[1] is None, "" if entry[1] is None else entry[1].created, _rows(entry[0]))
        )


class _Taken(NamedTuple):
    """A checkpoint that a run goes on from.

    Attributes:
        path: Its directory.
        state: The run's state there.
        run: Name of its run.
        is_here: Whether it lies among those that the run will write.
    """

    path: Path
    state: dict[str, Any]
    run: str | None
    is_here: bool


def _rows(path: Path) -> int:
    match = _STEP.fullmatch(path.name)
    assert match is not None
    return int(match[1])


def _manifest(path: Path) -> Manifest | None:
    try:
        return Manifest.read(path)
    except (CheckpointError, OSError):
        return None
