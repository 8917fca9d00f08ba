"""Train as a configuration says, and write the run's directory."""

import shlex
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from accelerate import Accelerator
from typing_extensions import override

from agiledpo.algorithms.core.llm import LLMAlgorithm
from agiledpo.config import Config
from agiledpo.distributed.team import Team
from agiledpo.launch.checking import check
from agiledpo.launch.directory import About, RunDirectory
from agiledpo.launch.places import with_absolute_paths
from agiledpo.launch.preparing import Prepared, prepare
from agiledpo.launch.resuming import check_changes
from agiledpo.launch.settings import retention_of, trackers_of
from agiledpo.training.observer import Observer, Outline
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
        FileExistsError: Something else is in the directory.
        ValueError: Something in the configuration is out of range, does not go together, or cannot change when a run
            goes on.
    """
    check(config)
    if resume:
        check_changes(config, directory)
    return train_checked(config, directory, resume=resume, accelerator=accelerator, observers=observers)


def train_checked(
    config: Config,
    directory: RunDirectory,
    *,
    resume: bool = False,
    accelerator: Accelerator | None = None,
    observers: Sequence[Observer] = (),
) -> Population[Any]:
    """The same as :func:`train` for a configuration that was checked already."""
    team = Team.of(accelerator)

    def claim() -> None:
        directory.check_usable(resume=resume)
        if not resume or not directory.is_run():
            directory.write_config(with_absolute_paths(config).to_yaml())

    team.leader_does(claim)
    with ExitStack() as stack:
        about: About | None = None
        if team.leads:
            about = stack.enter_context(directory.recorded(config.algorithm, processes=team.size, resumed=resume))
        prepared = prepare(config, accelerator, stack)
        following = [*_samples(config, directory, prepared, team), *observers]
        if about is not None:
            about.values.update(model=prepared.model, data=prepared.data)
            about.tell()
        # Last, so that what other observers save keeps its name.
        following.append(_Acceptance(config, directory, about))
        return _finetune(config, directory, prepared, accelerator, resume=resume, observers=following)


class _Acceptance(Observer):
    """Writes what the run goes by once it was taken up with it, for what is refused is not that; in the leader only."""

    def __init__(self, config: Config, directory: RunDirectory, about: About | None) -> None:
        self._config, self._directory, self._about = config, directory, about

    @property
    @override
    def resume_command(self) -> str:
        return f"agiledpo resume {shlex.quote(str(self._directory.path))}"

    @override
    def begins(self, outline: Outline, agents: Sequence[LLMAlgorithm]) -> None:
        if not outline.resumes:
            self._accept()

    @override
    def resumed(self, rows_done: int) -> None:
        self._accept()

    def _accept(self) -> None:
        self._directory.write_config(with_absolute_paths(self._config).to_yaml())
        if self._about is not None:
            self._about.taken_up()


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
        observers=observers,
        **({"rollouts_path": directory.rollouts} if config.parts.judges else {}),
        **settings,
    )
    return population


def _samples(config: Config, directory: RunDirectory, prepared: Prepared, team: Team) -> list[Observer]:
    """Who writes answers to look at; one process can, and several leave it.

    Also who writes none is there, so that checkpoints know how far the file is when some are wanted again.
    """
    settings = config.seeded("samples")
    if not team.is_alone:
        settings["count"] = 0
    return [Samples(directory.samples, prepared.env, **settings)]


def set_threads(config: Config) -> None:
    """Compute with as many threads as a configuration says.

    Args:
        config: The configuration.
    """
    if config.values["threads"] is not None:
        torch.set_num_threads(config.values["threads"])
