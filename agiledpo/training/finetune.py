"""From the arguments of a training function to a run: everything is checked before anything is computed."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from agiledpo.algorithms.core.llm import LLMAlgorithm
from agiledpo.checkpoint.directory import check_destination, check_writable
from agiledpo.distributed.parallel import Parallel, homes_of_agents
from agiledpo.distributed.team import Team
from agiledpo.distributed.vigil import Vigil
from agiledpo.hpo.lineage import Lineage
from agiledpo.hpo.mutation import Mutations
from agiledpo.hpo.selection import Selection
from agiledpo.training.alike import check_alike, draw_alike
from agiledpo.training.checkpoints import RunCheckpoints
from agiledpo.training.display import display_for
from agiledpo.training.elite import EliteKeeper
from agiledpo.training.environments import Environments, Gym
from agiledpo.training.evolution import Evolution
from agiledpo.training.homes import Homes
from agiledpo.training.metrics_log import MetricsLog
from agiledpo.training.observer import Observer, Observers, Outline
from agiledpo.training.population import Agent, Population
from agiledpo.training.practice import Practice
from agiledpo.training.processes import check_agents_share, check_environments_share, check_places_shared, team_of
from agiledpo.training.retention import Retention
from agiledpo.training.run import Fitness, TrainingRun
from agiledpo.training.schedule import Schedule
from agiledpo.training.trackers import Trackers, Tracking
from agiledpo.training.validation import validation_metrics


def finetune(
    practice: Practice[Agent],
    pop: Sequence[Agent],
    env: Gym | None,
    *,
    env_fn: Callable[[], Gym] | None,
    tournament: Selection | None,
    mutation: Mutations | None,
    evo_steps: int | None,
    fitness: Fitness | None,
    num_epochs: int | None,
    max_steps: int | None,
    evaluation_interval: int | None,
    checkpoint_steps: int | None,
    checkpoint_path: str | Path | None,
    resume_from: str | Path | None,
    retention: Retention | None,
    save_elite: bool,
    elite_path: str | Path | None,
    lineage_path: str | Path | None,
    log_path: str | Path | None,
    observers: Sequence[Observer],
    trackers: Trackers,
    verbose: bool,
    accelerator: Accelerator | None,
    parallel: Parallel,
) -> tuple[Population[Agent], list[float]]:
    """Train agents of one algorithm: what the functions of :mod:`agiledpo.training.train_llm` do, and document."""
    agents = list(pop)
    _check_agents(agents, practice.algorithm)
    team = team_of(accelerator, agents)
    check_agents_share(team, agents)
    homes = Homes(homes_of_agents(parallel, agents[0].accelerator if accelerator is None else accelerator))
    _check_evolution(agents, tournament, mutation, evo_steps)
    if fitness is not None and not callable(fitness):
        practice.check_fitness(fitness)
    if tournament is not None and not callable(fitness):
        for agent in agents:
            practice.check_comparable(agent, practice.fitness[0] if fitness is None else fitness)
    if save_elite and elite_path is None:
        raise ValueError("save_elite=True needs elite_path, the directory to save to.")
    elite = EliteKeeper(Path(elite_path).absolute() if save_elite and elite_path is not None else None, team)
    lineage_file = None if lineage_path is None else Path(lineage_path)
    checkpoints = _checkpoints(checkpoint_steps, checkpoint_path, resume_from, retention, team)
    if checkpoints is not None:
        for agent in agents:
            agent.plain_arguments()  # what cannot be saved is found now, not after the first thousand steps
    log = None if log_path is None else MetricsLog(log_path)
    files = {
        **({} if lineage_file is None else {"lineage_path": lineage_file}),
        **({} if log is None else {"log_path": log.path}),
        **practice.files,
        **_files_of(observers),
    }
    if practice.files and not homes.is_one:
        raise ValueError(
            f"{', '.join(practice.files)} is one file, and with parallel='population' every process would write to it. "
            "Leave it out, or pass parallel='data'."
        )

    def check_files() -> None:
        _check_paths(elite.path, None if checkpoints is None else checkpoints.directory, files)
        if log is not None:
            log.check_place()
        if resume_from is None:
            _check_absent({name: path for name, path in files.items() if name != "lineage_path"})

    team.leader_does(check_files)
    environments = Environments.make(env, env_fn, len(agents))
    check_environments_share(team, environments)
    for environment in environments.all:
        for agent in agents:
            practice.check(agent, environment)
    evolution = None if tournament is None else Evolution(tournament, mutation)
    schedule = Schedule.make(
        environments.judge,
        num_epochs=num_epochs,
        max_steps=max_steps,
        evaluation_interval=evaluation_interval,
        checkpoint_steps=checkpoint_steps,
        evo_steps=evo_steps,
    )
    places = {"checkpoint_path": checkpoints, "elite_path": elite.path, "resume_from": resume_from, **files}
    call = {
        **vars(schedule),
        "fitness": "a function" if callable(fitness) else practice.fitness[0] if fitness is None else fitness,
        "retention": None if checkpoints is None else checkpoints.retention,
        "parallel": parallel,
        **({} if evolution is None else evolution.settings()),
        # The leader's paths count; whether there is something to save is for all to know.
        **{name: "given" for name, place in places.items() if place is not None},
    }
    check_alike(team, agents, environments, call)
    saves = [None if checkpoints is None else checkpoints.directory, elite.path and elite.path.parent]
    check_places_shared(team, agents, [directory for directory in saves if directory is not None])
    if evolution is not None:
        draw_alike(team, evolution)
    validated = validation_metrics(practice, environments.judge.validation_names)
    if checkpoints is not None:
        _check_metric(practice, checkpoints.retention, fitness, validated)
    outline = Outline(
        algorithm=practice.algorithm.__name__,
        unit=practice.unit,
        total_rows=schedule.total_rows,
        shown=practice.shown,
        fitness=str(call["fitness"]),
        validation_names=environments.judge.validation_names,
        settings={
            name: value if isinstance(value, (bool, int, float, str)) else str(value) for name, value in call.items()
        },
    )
    following: dict[str, Observer] = {f"observer {place}": observer for place, observer in enumerate(observers)}
    if verbose:
        following["display"] = display_for()
    if log is not None:
        following["log"] = log
    if trackers.names:
        theirs = agents[0].accelerator if accelerator is None else accelerator
        following["trackers"] = Tracking(trackers, started=() if theirs is None else theirs.trackers)

    def last_checkpoint() -> str | None:
        newest = None if checkpoints is None else checkpoints.newest
        return None if newest is None else str(newest)

    watched = Vigil(team.rank, team.size, same=team.same, last_checkpoint=last_checkpoint)
    with watched, nullcontext() if checkpoints is None else checkpoints.held(), Observers(following, team) as observer:
        found = None
        if checkpoints is not None and resume_from is not None:
            found = checkpoints.find(resume_from)
        elif checkpoints is not None:
            checkpoints.begin()
        run = TrainingRun(
            practice,
            Population(agents, Lineage(lineage_file, team=team)),
            environments,
            schedule,
            fitness=fitness,
            evolution=evolution,
            checkpoints=checkpoints,
            elite=elite,
            observer=observer,
            team=team,
            homes=homes,
        )
        observer.begins(replace(outline, resumes=found is not None), run.population)
        if found is not None and checkpoints is not None:
            checkpoints.take_up(run, *found)
            observer.said(f"Going on from {found[0]}, after {run.rows_done} of {schedule.total_rows} {practice.unit}s.")
        elif resume_from is not None:
            observer.said("Nothing has been saved yet, so the run begins at its beginning.")
            for line in team.leader_does(lambda: [_moved_aside(file) for file in files.values() if file.exists()]):
                observer.said(line)
        population = run.run()
    return population, [float("nan") if agent.diverged else agent.fitness[-1] for agent in population]


def _checkpoints(
    steps: int | None,
    path: str | Path | None,
    resume_from: str | Path | None,
    retention: Retention | None,
    team: Team,
) -> RunCheckpoints | None:
    if steps is None and path is None and resume_from is None:
        if retention is not None:
            raise ValueError("retention without checkpoint_steps or checkpoint_path: there is nothing to keep.")
        return None
    if path is None and resume_from is not None and resume_from != "latest":
        path = Path(resume_from).resolve().parent  # go on where that run was saved
    return RunCheckpoints(Path("saved_checkpoints" if path is None else path), retention or Retention(), team)


def _check_metric(
    practice: Practice[Any], retention: Retention, fitness: Fitness | None, validated: Sequence[str]
) -> None:
    """Check that the metric that checkpoints are judged by is measured."""
    name = retention.metric_name
    measured = ["fitness", *([] if callable(fitness) else practice.metrics), *validated]
    if not retention.keep_best or name in measured:
        return
    if callable(fitness) and name in practice.metrics:
        raise ValueError(
            f"retention.metric_name={name!r}, but with a function as fitness nothing else is measured on the test "
            f"split; use {_one_of(measured)}."
        )
    raise ValueError(f"retention.metric_name={name!r} is not measured; use {_one_of(measured)}.")


def _one_of(metrics: Sequence[str]) -> str:
    first, *others = metrics
    return f"{first!r} or one of {', '.join(others)}" if others else repr(first)


def _check_paths(elite: Path | None, checkpoints: Path | None, files: Mapping[str, Path]) -> None:
    if checkpoints is not None and checkpoints.exists() and not checkpoints.is_dir():
        raise FileExistsError(f"checkpoint_path={checkpoints} is a file; a directory is needed.")
    for (name, path), (other, place) in combinations(files.items(), 2):
        if path.resolve() == place.resolve():
            raise ValueError(f"{name} and {other} are the same file, {path}. Give each a file of its own.")
    directories = {"checkpoint_path": checkpoints, "elite_path": elite}
    for name, path in files.items():
        for other, directory in directories.items():
            if directory is not None and path.resolve() in (directory.resolve(), *directory.resolve().parents):
                raise ValueError(f"{name}={path} is a file, and {other}={directory} needs a directory there.")
        if checkpoints is not None and checkpoints.resolve() in path.resolve().parents:
            first = path.resolve().relative_to(checkpoints.resolve()).parts[0]
            if first.startswith("step_"):
                raise ValueError(f"{name}={path} is where a checkpoint of the run goes. Choose another place.")
    if elite is None:
        return
    check_destination(elite)
    check_writable(elite.parent)
    if checkpoints is not None and checkpoints.resolve() in elite.resolve().parents:
        first = elite.resolve().relative_to(checkpoints.resolve()).parts[0]
        if first.startswith("step_"):
            raise ValueError(f"elite_path={elite} is where a checkpoint of the run goes. Choose another place.")
    places = files if checkpoints is None else {"checkpoint_path": checkpoints, **files}
    for name, path in places.items():
        if elite.resolve() in (path.resolve(), *path.resolve().parents):
            raise ValueError(
                f"{name}={path} lies in {elite}, which each new elite replaces as a whole. Choose a place outside."
            )


def _check_absent(files: Mapping[str, Path]) -> None:
    for name, path in files.items():
        if path.exists() and path.stat().st_size:
            raise FileExistsError(
                f"{name}={path} holds what another run wrote. Move it away, choose another path, or resume that run."
            )


def _moved_aside(file: Path) -> str:
    """The file of a run that ended before its first checkpoint makes room, and is not lost; says where it is."""
    number = 1
    while (aside := file.with_name(f"{file.name}.{number}")).exists():
        number += 1
    file.rename(aside)
    return f"{file} is of the attempt before and is {aside} now."


def _files_of(observers: Sequence[Observer]) -> dict[str, Path]:
    """The files that observers write, each by a name for messages."""
    return {
        f"observers[{place}]" if number == 0 else f"observers[{place}], file {number + 1}": file
        for place, observer in enumerate(observers)
        for number, file in enumerate(observer.files)
    }


def _check_agents(agents: Sequence[LLMAlgorithm], algorithm: type[LLMAlgorithm]) -> None:
    if not agents:
        raise ValueError("pop is empty; pass at least one agent.")
    for agent in agents:
        if not isinstance(agent, algorithm):
            raise ValueError(f"pop holds a {type(agent).__name__}; this function trains {algorithm.__name__} agents.")
        if agent.diverged is not None:
            raise ValueError(
                f"Agent {agent.index} has diverged and does not learn any more: {agent.diverged} Leave it out, or put "
                "a clone of another agent in its place."
            )
    if len({agent.index for agent in agents}) < len(agents):
        raise ValueError(f"The agents' indices {[agent.index for agent in agents]} are not distinct; pass index=...")


def _check_evolution(
    agents: Sequence[LLMAlgorithm], tournament: Selection | None, mutation: Mutations | None, evo_steps: int | None
) -> None:
    if (tournament is None) is not (evo_steps is None):
        raise ValueError(
            f"evo_steps={evo_steps} with tournament={tournament}: evolution needs both, evo_steps as the batches in a "
            "generation and tournament to select. Pass both, or neither."
        )
    if tournament is None:
        if mutation is not None:
            raise ValueError("mutation without tournament and evo_steps would never happen. Pass all three, or none.")
        return
    if tournament.population_size != len(agents):
        raise ValueError(
            f"The tournament's population_size={tournament.population_size}, but pop holds {len(agents)} agents; make "
            "them equal."
        )
    tournament.check(agents)
    if mutation is not None:
        mutation.check(agents)
        for agent in agents:
            agent.check_hyperparameters()
