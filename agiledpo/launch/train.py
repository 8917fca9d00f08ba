"""Train as a configuration says, and write the run's directory."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from accelerate import Accelerator

from agiledpo.config import Config
from agiledpo.distributed.team import Team
from agiledpo.launch.checking import check
from agiledpo.launch.directory import RunDirectory
from agiledpo.launch.preparing import Prepared, prepare
from agiledpo.launch.settings import retention_of, trackers_of
from agiledpo.training.observer import Observer
from agiledpo.training.population import Population
from agiledpo.training.samples import Samples


def train(
    config: Config,
    directory: RunDirectory,
    *,
    resume: bool = False,
    accelerator: Accelerator | None = None,
    observers: Sequence[Observer] = (),
) -> Population[Any]:
    """Train as a configuration says.

    Args:
        config: The configuration.
        directory: Where everything is written.
        resume: Go on from the newest checkpoint in the directory, at the beginning if there is none.
        accelerator: Accelerate's handle, where several processes train together.
        observers: Who else follows the run.

    Returns:
        The agents.

    Raises:
        DatasetError: The data cannot be used.
        FileExistsError: Another run is in the directory.
        ValueError: Something in the configuration is out of range, or does not go together.
    """
    check(config)
    team = Team.of(accelerator)

    def claim() -> str | None:
        if not resume:
            directory.check_free()
        previous = directory.config.read_text(encoding="utf-8") if directory.is_run() else None
        directory.write_config(config.to_yaml())
        return previous

    previous = team.leader_does(claim)
    with ExitStack() as stack:
        about: dict[str, Any] = {}
        if team.leads:
            about = stack.enter_context(directory.recorded(config.algorithm, processes=team.size, resumed=resume))
        try:
            prepared = prepare(config, accelerator, stack)
            about["model"], about["data"] = prepared.model, prepared.data
            if team.leads:
                directory.write_about(about)
            return _finetune(config, directory, prepared, accelerator, resume=resume, observers=observers)
        except Exception:
            # What a run was refused to go on with is not what it goes by.
            if previous is not None:
                team.leader_does(lambda: directory.write_config(previous))
            raise


def _finetune(
    config: Config,
    directory: RunDirectory,
    prepared: Prepared,
    accelerator: Accelerator | None,
    *,
    resume: bool,
    observers: Sequence[Observer],
) -> Population[Any]:
    settings = config.section("train")
    settings.pop("retention")
    settings.pop("fitness")
    evolution = prepared.evolution
    population: Population[Any]
    population, _ = config.parts.finetune(
        prepared.agents,
        prepared.env,
        tournament=None if evolution is None else evolution.selection,
        mutation=None if evolution is None else evolution.mutation,
        evo_steps=None if evolution is None else evolution.evo_steps,
        fitness=prepared.fitness,
        retention=retention_of(config),
        elite_path=directory.elite,
        checkpoint_path=directory.checkpoints,
        lineage_path=directory.lineage,
        log_path=directory.metrics,
        trackers=trackers_of(config, directory.path),
        resume_from="latest" if resume else None,
        accelerator=accelerator,
        observers=[*observers, *_samples(config, directory, prepared, Team.of(accelerator))],
        **({"rollouts_path": directory.rollouts} if config.parts.judges else {}),
        **settings,
    )
    return population


def _samples(config: Config, directory: RunDirectory, prepared: Prepared, team: Team) -> list[Observer]:
    """Who writes answers to look at; one process can, and several leave it."""
    settings = config.seeded("samples")
    if settings["count"] == 0 or not team.is_alone:
        return []
    return [Samples(directory.samples, prepared.env, **settings)]


def set_threads(config: Config) -> None:
    """Compute with as many threads as a configuration says.

    Args:
        config: The configuration.
    """
    if config.values["threads"] is not None:
        torch.set_num_threads(config.values["threads"])
