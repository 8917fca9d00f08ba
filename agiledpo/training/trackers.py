"""The figures of a run in experiment trackers, through Accelerate."""

import datetime
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

from accelerate import PartialState
from accelerate.tracking import GeneralTracker
from typing_extensions import override

from agiledpo.algorithms.core.llm import LLMAlgorithm
from agiledpo.training.observer import Outline
from agiledpo.training.recorder import Number, Recorder
from agiledpo.training.tracking_services import SERVICES, Service

Plain = bool | int | float | str


@dataclass(frozen=True)
class Trackers:
    """Where a run's figures go beside its log, under the same names, and what is told with them.

    Args:
        names: ``"tensorboard"``, ``"wandb"``, ``"mlflow"`` and ``"trackio"``, or tracker objects of Accelerate's, such
            as one of your own (a :class:`accelerate.tracking.GeneralTracker`). A tracker in ``accelerator.trackers`` is
            used as it is; any other is started with the run and finished with it.
        project: The project, which MLflow calls an experiment.
        run_name: The run's name; None for the algorithm and the time.
        directory: Where TensorBoard's files go (``<directory>/<run_name>``, in ``./runs`` by default) and W&B's. The
            others go by their own settings: ``MLFLOW_TRACKING_URI``, ``TRACKIO_DIR``.
        config: What to record as the run's configuration, beside its settings and the agents' hyperparameters.
        init_kwargs: Arguments for Accelerate's tracker by its name, ``{"wandb": {"tags": ["dpo"]}}``.

    Raises:
        ModuleNotFoundError: A tracker's package is not installed; the message says how to get it.
        TypeError: What is no name is no tracker either.
        ValueError: A name is unknown, or there twice.
    """

    names: Sequence[str | GeneralTracker]
    project: str = "agiledpo"
    run_name: str | None = None
    directory: str | Path | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    init_kwargs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", (self.names,) if isinstance(self.names, str) else tuple(self.names))
        for name in self.names:
            if isinstance(name, GeneralTracker):
                continue
            if not isinstance(name, str):
                raise TypeError(f"trackers holds {name!r}; pass names, or objects of accelerate's GeneralTracker.")
            if name not in SERVICES:
                raise ValueError(
                    f"trackers names {name!r}; there are {', '.join(SERVICES)}. For any other pass an object of "
                    "accelerate's GeneralTracker."
                )
            SERVICES[name].check_installed()
        names = [name for name in self.names if isinstance(name, str)]
        if unknown := sorted(self.init_kwargs.keys() - set(names)):
            raise ValueError(
                f"init_kwargs are for {', '.join(unknown)}, and trackers names {', '.join(names) or 'none'}."
            )
        if len(set(names)) < len(names):
            raise ValueError(f"trackers names one twice: {', '.join(names)}.")

    @classmethod
    def of(cls, trackers: "ToTrackers") -> "Trackers":
        """What the ``trackers`` of a training function stands for."""
        if isinstance(trackers, Trackers):
            return trackers
        return cls((trackers,) if isinstance(trackers, GeneralTracker) else trackers)


ToTrackers: TypeAlias = Trackers | str | GeneralTracker | Sequence[str | GeneralTracker]


class Tracking(Recorder):
    """Hands the figures of a run to trackers.

    One that cannot be started ends the run before it begins. One that fails later is left out with a warning, and the
    run goes on. A run that is taken up again goes on in the same runs of W&B, MLflow and Trackio, and in TensorBoard's
    directory.

    Args:
        trackers: Which.
        started: Trackers that somebody else has started, and will finish.
    """

    def __init__(self, trackers: Trackers, started: Sequence[GeneralTracker] = ()) -> None:
        super().__init__()
        self._trackers = trackers
        self._started = started
        self._open: dict[str, GeneralTracker] = {}
        self._services: dict[str, Service] = {}
        self._runs: dict[str, str] = {}
        self._outline: Outline
        self._agents: Sequence[LLMAlgorithm] = ()

    @override
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for name, tracker in list(self._open.items()):
            self._try(name, partial(self._finish, name, tracker, failed=kind is not None))
        self._open.clear()

    @override
    def begins(self, outline: Outline, agents: Sequence[LLMAlgorithm]) -> None:
        super().begins(outline, agents)
        self._outline, self._agents = outline, agents
        if not outline.resumes:
            self._start(rows_done=None)

    @override
    def resumed(self, rows_done: int) -> None:
        super().resumed(rows_done)
        self._start(rows_done)

    @override
    def record(self, step: int, figures: Mapping[str, Number]) -> None:
        for name, tracker in list(self._open.items()):
            self._try(name, partial(tracker.log, dict(figures), step=step))

    @override
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "runs": dict(self._runs)}

    @override
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._runs = dict(state.get("runs", {}))

    def _start(self, rows_done: int | None) -> None:
        if not PartialState._shared_state:
            # Accelerate's trackers ask it who leads. By itself it would take a GPU where the agents use none.
            PartialState(cpu=self._device.type == "cpu")
        now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        run_name = self._trackers.run_name or f"{self._outline.algorithm}-{now}"
        for place, given in enumerate(self._trackers.names):
            if isinstance(given, GeneralTracker):
                name, goes_on = f"{given.name} {place}", False
                if any(given is tracker for tracker in self._started):
                    self._open[name] = given
                    continue
                tracker = given
            else:
                name, run = given, self._runs.get(given)
                goes_on = run is not None
                service = self._services[name] = SERVICES[name]
                tracker = service.make(self._trackers, run_name, run, rows_done)
            try:
                tracker.start()
                if not goes_on:  # what is recorded of a run is recorded once
                    tracker.store_init_configuration(self._configuration())
            except Exception as error:
                error.add_note(f"The tracker {name} could not be started; correct that, or leave it out of trackers.")
                raise
            self._open[name] = tracker
            if name in self._services:
                self._runs[name] = self._services[name].run_of(tracker)

    def _finish(self, name: str, tracker: GeneralTracker, *, failed: bool) -> None:
        if any(tracker is other for other in self._started):
            return
        if failed and name in self._services:
            self._services[name].mark_failed(tracker)
        tracker.finish()

    def _try(self, name: str, do: Callable[[], None]) -> None:
        """A tracker's failure must not cost the run."""
        try:
            do()
        except Exception as error:
            self._open.pop(name, None)
            warnings.warn(
                f"The tracker {name} failed and is left out from here on: {type(error).__name__}: {error}. The run "
                "goes on, and so does its log if there is one (log_path).",
                stacklevel=3,
            )

    def _configuration(self) -> dict[str, Plain]:
        """Plain values by name: the call's, the agents' where they differ, and what the user adds."""
        outline = self._outline
        config: dict[str, Any] = {
            "algorithm": outline.algorithm,
            "agents": len(self._agents),
            **(outline.settings or {}),
        }
        names = dict.fromkeys(name for agent in self._agents for name in agent.hyperparameters)
        for name in names:
            values = [agent.hyperparameters.get(name) for agent in self._agents]
            if all(value == values[0] for value in values):
                config[name] = values[0]
            else:
                config |= {
                    f"agent_{agent.index}/{name}": value for agent, value in zip(self._agents, values, strict=True)
                }
        # Hyperparameters are the agents', whatever a configuration says that they were made by.
        given = {name: value for name, value in _flat(self._trackers.config) if name not in names}
        return {name: _plain(value) for name, value in {**config, **given}.items()}


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Values of a nested configuration, by names such as ``lora/r``, by which trackers can filter."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}/")
        else:
            yield prefix + name, value


def _plain(value: Any) -> Plain:
    """What every tracker takes: TensorBoard has no None, and YAML no infinity that all read."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, (bool, int, float, str)) else str(value)
