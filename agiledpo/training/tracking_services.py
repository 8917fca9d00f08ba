"""What differs between trackers: how each is made, and how a run is found again."""

import importlib.util
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.tracking import GeneralTracker, MLflowTracker, TensorBoardTracker, TrackioTracker, WandBTracker
from typing_extensions import override

if TYPE_CHECKING:
    from agiledpo.training.trackers import Trackers


class Service(ABC):
    """A kind of tracker.

    Attributes:
        name: Accelerate's.
        package: What is imported.
        distribution: What is installed to have it.
    """

    name: str
    package: str
    distribution: str

    def check_installed(self) -> None:
        """Check that the package is there.

        Raises:
            ModuleNotFoundError: It is not.
        """
        if importlib.util.find_spec(self.package) is None:
            raise ModuleNotFoundError(
                f"trackers names {self.name!r}, and the package {self.package} is not installed: pip install "
                f"{self.distribution}, or pip install 'agiledpo[trackers]' for all.",
                name=self.package,
            )

    @abstractmethod
    def make(self, trackers: "Trackers", run_name: str, run: str | None, rows_done: int | None) -> GeneralTracker:
        """Make a tracker that has not started.

        Args:
            trackers: What the user wants.
            run_name: Name of a new run.
            run: The run to go on with, as :meth:`run_of` had it; None for a new one.
            rows_done: Rows after which it goes on; None at the beginning.
        """

    @abstractmethod
    def run_of(self, tracker: Any) -> str:
        """By what a tracker that has started would find its run again."""

    def mark_failed(self, tracker: Any) -> None:  # noqa: B027, not every service can say so
        """Note that the run did not reach its end."""


class TensorBoard(Service):
    """Event files in a directory."""

    name, package, distribution = "tensorboard", "tensorboard", "tensorboard"

    @override
    def make(self, trackers: "Trackers", run_name: str, run: str | None, rows_done: int | None) -> GeneralTracker:
        parent = Path("runs" if trackers.directory is None else trackers.directory).absolute()
        place = parent / run_name if run is None else Path(run)
        # What was written after the point that the run goes on from, or begins anew at, is written again.
        purge = {"purge_step": 0 if rows_done is None else rows_done + 1} if place.exists() else {}
        return TensorBoardTracker(place.name, place.parent, **purge, **trackers.init_kwargs.get(self.name, {}))

    @override
    def run_of(self, tracker: TensorBoardTracker) -> str:
        return str(tracker.logging_dir)


class WandB(Service):
    """Weights & Biases."""

    name, package, distribution = "wandb", "wandb", "wandb"

    @override
    def make(self, trackers: "Trackers", run_name: str, run: str | None, rows_done: int | None) -> GeneralTracker:
        arguments: dict[str, Any] = {"name": run_name} if run is None else {"id": run, "resume": "allow"}
        if trackers.directory is not None:
            Path(trackers.directory).mkdir(parents=True, exist_ok=True)  # else W&B takes another place
            arguments["dir"] = str(trackers.directory)
        return WandBTracker(trackers.project, **{**arguments, **trackers.init_kwargs.get(self.name, {})})

    @override
    def run_of(self, tracker: WandBTracker) -> str:
        return str(tracker.run.id)

    @override
    def mark_failed(self, tracker: WandBTracker) -> None:
        tracker.run.finish(exit_code=1)


class MLflow(Service):
    """MLflow, with the store that ``MLFLOW_TRACKING_URI`` names."""

    name, package, distribution = "mlflow", "mlflow", "mlflow-skinny"

    @override
    def make(self, trackers: "Trackers", run_name: str, run: str | None, rows_done: int | None) -> GeneralTracker:
        arguments = {"run_name": run_name} if run is None else {"run_id": run}
        return MLflowTracker(trackers.project, **{**arguments, **trackers.init_kwargs.get(self.name, {})})

    @override
    def run_of(self, tracker: MLflowTracker) -> str:
        return str(tracker.active_run.info.run_id)

    @override
    def mark_failed(self, tracker: MLflowTracker) -> None:
        import mlflow

        mlflow.end_run("FAILED")


class Trackio(Service):
    """Trackio, which finds a run by its name."""

    name, package, distribution = "trackio", "trackio", "trackio"

    @override
    def make(self, trackers: "Trackers", run_name: str, run: str | None, rows_done: int | None) -> GeneralTracker:
        arguments = {"name": run_name} if run is None else {"name": run, "resume": "allow"}
        return TrackioTracker(trackers.project, **{**arguments, **trackers.init_kwargs.get(self.name, {})})

    @override
    def run_of(self, tracker: TrackioTracker) -> str:
        return str(tracker.run.name)


SERVICES: dict[str, Service] = {service.name: service for service in (TensorBoard(), WandB(), MLflow(), Trackio())}
