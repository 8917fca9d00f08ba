"""`agiledpo train dpo|sft|grpo` and `agiledpo resume`."""

import os
import shlex
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from agiledpo.cli.completion import complete_parameter

if TYPE_CHECKING:
    from agiledpo.config import Config

# What is no option is handed on, so that `--beta=0.1` can be told how it is written.
_SETTINGS = {"ignore_unknown_options": True}

train_app = typer.Typer(
    name="train",
    help="Train agents: dpo, sft or grpo. Without arguments each is a small example.",
    no_args_is_help=True,
)

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="Parameters, such as beta=0.05 lora.r=32 model.name=... data.train=...; --print-config shows them all.",
        show_default=False,
        autocompletion=complete_parameter,
    ),
]
Files = Annotated[
    list[Path] | None,
    typer.Option("--config", "-c", help="YAML file; of several a later one wins.", show_default=False),
]
Run = Annotated[
    Path | None,
    typer.Option(
        "--run",
        "--run-dir",  # torchrun takes --run for an abbreviation of its own --run-path
        "--run_dir",
        help="Directory of the run. Default: runs/ALGORITHM-TIME. With torchrun write --run-dir.",
        show_default=False,
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with what is in --run; begin if nothing is.")]
PrintConfig = Annotated[
    bool, typer.Option("--print-config", "--print_config", help="Show every parameter with its value, and stop.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", "--dry_run", help="Check everything, load model and data, and stop.")
]


@train_app.command(context_settings=_SETTINGS)
def dpo(
    overrides: Overrides = None,
    config: Files = None,
    run: Run = None,
    resume: Resume = False,
    print_config: PrintConfig = False,
    dry_run: DryRun = False,
) -> None:
    """Learn from preference pairs. Without arguments SmolLM2 learns to answer briefly, in a few minutes."""
    _train("dpo", overrides, config, run, resume=resume, print_config=print_config, dry_run=dry_run)


@train_app.command(context_settings=_SETTINGS)
def sft(
    overrides: Overrides = None,
    config: Files = None,
    run: Run = None,
    resume: Resume = False,
    print_config: PrintConfig = False,
    dry_run: DryRun = False,
) -> None:
    """Learn completions by maximum likelihood. Without arguments SmolLM2 learns the embedded answers."""
    _train("sft", overrides, config, run, resume=resume, print_config=print_config, dry_run=dry_run)


@train_app.command(context_settings=_SETTINGS)
def grpo(
    overrides: Overrides = None,
    config: Files = None,
    run: Run = None,
    resume: Resume = False,
    print_config: PrintConfig = False,
    dry_run: DryRun = False,
) -> None:
    """Learn from the rewards of own answers. Without arguments SmolLM2 is rewarded for brief answers."""
    _train("grpo", overrides, config, run, resume=resume, print_config=print_config, dry_run=dry_run)


def resume_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Directory of the run.", show_default=False)],
    overrides: Overrides = None,
) -> None:
    """Go on with a run from its newest checkpoint, with its own config.yaml."""
    with _usage_errors():
        from agiledpo.launch.directory import RunDirectory

        algorithm = RunDirectory(run).algorithm()
    _train(algorithm, overrides, None, run, resume=True)


def _train(
    algorithm: str,
    overrides: Sequence[str] | None,
    files: Sequence[Path] | None,
    run: Path | None,
    *,
    resume: bool,
    print_config: bool = False,
    dry_run: bool = False,
) -> None:
    with _usage_errors():
        from agiledpo.config import load_config
        from agiledpo.launch.checking import check
        from agiledpo.launch.directory import RunDirectory
        from agiledpo.launch.resuming import check_changes

        if resume and run is None:
            raise ValueError("--resume goes on with the run in --run DIR; say which.")
        if resume and run is not None and not files and RunDirectory(run).is_run():
            files = [RunDirectory(run).config]
        config = load_config(algorithm, files or [], overrides or [])
        if not print_config:
            check(config)
        if resume and run is not None and not print_config:
            check_changes(config, RunDirectory(run))
    if print_config:
        print(config.to_yaml(), end="")
    elif dry_run:
        _try_out(config)
    else:
        _run(config, run, resume=resume)


def _try_out(config: "Config") -> None:
    from agiledpo.launch.preparing import prepare
    from agiledpo.launch.train import set_threads

    set_threads(config)
    with _run_errors(), _plain_warnings(), ExitStack() as stack:
        prepared = prepare(config, None, stack)
    if os.environ.get("RANK", "0") != "0":
        return
    rows = ", ".join(f"{figures['rows']:,} {split}" for split, figures in prepared.data.items())
    agents = len(prepared.agents)
    print(f"Model: {prepared.model['name']}, {prepared.model['parameters']:,} parameters")
    print(f"Rows: {rows}")
    print(f"Agents: {agents}, each to {prepared.agents[0].describe_objective()}")
    print("Nothing was trained or written.")


def _run(config: "Config", run: Path | None, *, resume: bool) -> None:
    from agiledpo.distributed.team import Team
    from agiledpo.launch.directory import RunDirectory, fresh_directory
    from agiledpo.launch.model import launched_accelerator
    from agiledpo.launch.train import set_threads, train_checked

    set_threads(config)
    accelerator = launched_accelerator()
    team = Team.of(accelerator)
    # The clocks of several machines may differ.
    place = team.leader_does(lambda: str(fresh_directory(config.algorithm).path if run is None else run))
    directory, shown = RunDirectory(place), shlex.quote(place)

    def say(text: str) -> None:
        if team.leads:
            print(text, flush=True)

    if config.is_example:
        say("Neither model nor data given: this is the embedded example. --print-config shows what it is.")
    with _run_errors():
        team.leader_does(lambda: directory.check_usable(resume=resume))
    say(f"The run is in {shown}")
    with _run_errors(), _terminable(), _plain_warnings():
        train_checked(config, directory, resume=resume, accelerator=accelerator)
    if config.values["train"]["save_elite"]:
        say(f"The fittest agent's adapter is in {shown}/elite/actor.")
    say(f"To look at the run: agiledpo report {shown}")


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end the process as Ctrl-C does, so that the run's directory says so; training looks after itself."""

    def stop(number: int, frame: object) -> NoReturn:
        sys.exit(128 + number)

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Print warnings as sentences, when they come, without the line of code that they come from."""
    previous = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"Warning: {message}\n"
    try:
        yield
    finally:
        warnings.formatwarning = previous


@contextmanager
def _usage_errors() -> Iterator[None]:
    """Say what is wrong with options and configuration, once however many processes have it.

    Raises:
        typer.Exit: Something is (exit status 2).
    """
    try:
        yield
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"Error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None


@contextmanager
def _run_errors() -> Iterator[None]:
    """Say what is wrong with data, files or the run.

    Raises:
        typer.Exit: Something is (exit status 1).
    """
    try:
        yield
    except (ValueError, OSError, ArithmeticError, RuntimeError, ImportError) as error:
        rank = os.environ.get("RANK", "0")
        notes = "".join(f"\n{note}" for note in getattr(error, "__notes__", ()))
        print(f"Error{'' if rank == '0' else f' in process {rank}'}: {error}{notes}", file=sys.stderr)
        raise typer.Exit(1) from None
