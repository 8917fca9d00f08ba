"""AgileRL's arguments for trackers."""

import difflib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict

from accelerate.tracking import GeneralTracker

from agiledpo.training.trackers import ToTrackers, Trackers
from agiledpo.training.tracking_services import SERVICES


class AgileRLTracking(TypedDict, total=False):
    """What AgileRL's training functions call trackers; ``trackers=Trackers(...)`` says the same in one place.

    What is said of W&B or TensorBoard counts only with ``wb=True`` or ``tensorboard=True``.

    Attributes:
        wb: Weights & Biases, as ``trackers=["wandb"]``.
        wandb_api_key: Its key; None for that of ``wandb login`` or ``WANDB_API_KEY``.
        wandb_project: Its project; None for ``"agiledpo"``.
        wandb_entity: The user or team.
        wandb_run_name: Name of the run.
        wandb_kwargs: More arguments for ``wandb.init``.
        tensorboard: TensorBoard, as ``trackers=["tensorboard"]``.
        tensorboard_log_dir: Where its files go.
        init_hp: What to record as the run's configuration.
    """

    wb: bool
    wandb_api_key: str | None
    wandb_project: str | None
    wandb_entity: str | None
    wandb_run_name: str | None
    wandb_kwargs: Mapping[str, Any] | None
    tensorboard: bool
    tensorboard_log_dir: str | Path | None
    init_hp: Mapping[str, Any] | None


def trackers_from(trackers: ToTrackers, agilerl: AgileRLTracking) -> Trackers:
    """Join this library's and AgileRL's ways to name trackers.

    Args:
        trackers: This library's.
        agilerl: AgileRL's.

    Raises:
        ModuleNotFoundError: A tracker's package is not installed.
        TypeError: An argument is none of AgileRL's.
        ValueError: Both name the same tracker.
    """
    for name in agilerl.keys() - AgileRLTracking.__annotations__.keys():
        close = difflib.get_close_matches(name, AgileRLTracking.__annotations__, n=1)
        raise TypeError(f"unexpected keyword argument {name!r}" + (f"; did you mean {close[0]}?" if close else "."))
    chosen = Trackers.of(trackers)
    names, arguments = list(chosen.names), {name: dict(values) for name, values in chosen.init_kwargs.items()}
    changes: dict[str, Any] = {}
    if agilerl.get("wb"):
        _add("wandb", "wb", names)
        arguments["wandb"] = _wandb_arguments(agilerl)
        changes["project"] = agilerl.get("wandb_project") or chosen.project
        changes["run_name"] = agilerl.get("wandb_run_name") or chosen.run_name
    if agilerl.get("tensorboard"):
        _add("tensorboard", "tensorboard", names)
        changes["directory"] = agilerl.get("tensorboard_log_dir") or chosen.directory
    config = {**chosen.config, **(agilerl.get("init_hp") or {})}
    return replace(chosen, names=names, init_kwargs=arguments, config=config, **changes)


def _add(name: str, argument: str, names: list[str | GeneralTracker]) -> None:
    if name in names:
        raise ValueError(f"{argument}=True and trackers both name {name}. Leave one of them out.")
    SERVICES[name].check_installed()
    names.append(name)


def _wandb_arguments(agilerl: AgileRLTracking) -> dict[str, Any]:
    arguments = dict(agilerl.get("wandb_kwargs") or {})
    if (entity := agilerl.get("wandb_entity")) is not None:
        arguments["entity"] = entity
    if (key := agilerl.get("wandb_api_key")) is not None:
        import wandb

        arguments["settings"] = wandb.Settings(api_key=key)
    return arguments
