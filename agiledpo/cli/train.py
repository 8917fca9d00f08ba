"""`agiledpo train dpo|sft|grpo` and `agiledpo resume`."""

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from agiledpo.config import Config
    from agiledpo.launch.directory import RunDirectory

# What is no option is handed on, so that `--beta=0.1` can be told how it is written.
_SETTINGS = {"ignore_unknown_options": True}

train_app = typer.Typer(name="train", help="Train agents: dpo, sft or grpo.", no_args_is_help=True)

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="Parameters, such as beta=0.05 lora.r=32 model.name=... data.train=...; --print-config shows them all.",
        show_default=False,
    ),
]
Files = Annotated[
    list[Path] | None,
    typer.Option("--config", "-c", help="YAML file; of several a later one wins.", show_default=False, dir_okay=False),
]
Run = Annotated[
    Path | None,
    typer.Option("--run", help="Directory of the run. Default: runs/ALGORITHM-TIME.", show_default=False),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with what is in --run, or begin if nothing is.")]
PrintConfig = Annotated[
    bool, typer.Option("--print-config", "--print_config", help="Show every parameter with its value, and stop.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", "--dry_run", help="Check the configuration, load model and data, and stop.")
]


@train_app.command(context_settings=_SETTINGS)
def dpo(
    overrides: Overrides = None,
    config: Files = None,
    run: Run = None,
    resume: Resume = False,
    print_config: PrintConfig = False,
) -> None:
    """Learn from preference pairs. Without arguments: SmolLM2 learns to answer briefly, in a few minutes."""
    _train("dpo", overrides, config, run, resume=resume, print_config=print_config)


@train_app.command(context_settings=_SETTINGS)
def sft(
    overrides: Overrides = None,
    config: Files = None,
    run: Run = None,
    resume: Resume = False,
    print_config: PrintConfig = False,
) -> None:
    """Learn completions by maximum likelihood. Without arguments: SmolLM2 learns the embedded answers."""
    _train("sft", overrides, config, run, resume=resume, print_config=print_config)


@train_app.command(context_settings=_SETTINGS)
def grpo(
    overrides: Overrides = None,
    config: Files = None,
    run: Run = None,
    resume: Resume = False,
    print_config: PrintConfig = False,
) -> None:
    """Learn from the rewards of own answers. Without arguments: SmolLM2 is rewarded for brief answers."""
    _train("grpo", overrides, config, run, resume=resume, print_config=print_config)


def resume_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Directory of the run.", show_default=False)],
    overrides: Overrides = None,
) -> None:
    """Go on with a run from its newest checkpoint, with its own config.yaml."""
    with usage_errors():
        from agiledpo.launch.directory import RunDirectory

        directory = RunDirectory(run)
        with run_errors():
            algorithm = directory.algorithm()
    _train(algorithm, overrides, [directory.config], run, resume=True, print_config=False)


def _train(
    algorithm: str,
    overrides: Sequence[str] | None,
    files: Sequence[Path] | None,
    run: Path | None,
    *,
    resume: bool,
    print_config: bool,
) -> None:
    with usage_errors():
        from agiledpo.config import load_config
        from agiledpo.launch.directory import RunDirectory, fresh_directory

        if resume and run is None:
            raise ValueError("--resume goes on with the run in --run DIR; say which.")
        files = list(files or [])
        if resume and run is not None and not files and RunDirectory(run).is_run():
            files = [RunDirectory(run).config]
        config = load_config(algorithm, files, overrides or [])
    if print_config:
        print(config.to_yaml(), end="")
        return
    directory = fresh_directory(algorithm) if run is None else RunDirectory(run)
    _run(config, directory, resume=resume)


def _run(config: "Config", directory: "RunDirectory", *, resume: bool) -> None:
    from agiledpo.launch.train import check, train
    from agiledpo.training.interruption import TrainingInterrupted

    with usage_errors():
        check(config)
    if config.is_example:
        _say("No model or data given: this is the embedded example. --print-config shows its parameters.")
    _say(f"Run: {directory.path}")
    try:
        with run_errors():
            train(config, directory, resume=resume)
    except TrainingInterrupted:
        _say(f"To go on: agiledpo resume {shlex.quote(str(directory.path))}")
        raise
    place = shlex.quote(str(directory.path))
    _say(
        f"Finished. The fittest agent's adapter is in {directory.elite}/actor.\nTo look at it: agiledpo report {place}"
    )


def _say(text: str) -> None:
    print(text, flush=True)


@contextmanager
def usage_errors() -> Iterator[None]:
    """Say what is wrong with options and configuration.

    Raises:
        typer.Exit: Something is (exit status 2).
    """
    try:
        yield
    except (ValueError, TypeError, FileExistsError) as error:
        print(f"Error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None


@contextmanager
def run_errors() -> Iterator[None]:
    """Say what is wrong with data, files or the run.

    Raises:
        typer.Exit: Something is (exit status 1).
    """
    try:
        yield
    except (ValueError, TypeError, OSError, ArithmeticError, RuntimeError, ImportError) as error:
        print(f"Error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
