"""`agiledpo launch-check`: look at a launch before waiting in a queue for it."""

import json
import sys
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from agiledpo.cli.reporting import user_errors

if TYPE_CHECKING:
    from agiledpo.distributed.launch_check import LaunchReport

DtypeName = Literal["bfloat16", "float16", "float32"]
ReferenceName = Literal["shared", "own", "base"]


def launch_check_command(
    model: Annotated[
        str,
        typer.Option(help="Directory or name of the base model; only its configuration is read.", show_default=False),
    ],
    lora_r: Annotated[int, typer.Option("--lora-r", "--lora_r", min=1, help="LoRA's rank.")] = 16,
    target_modules: Annotated[
        str,
        typer.Option("--target-modules", "--target_modules", help="all-linear, or names separated by commas."),
    ] = "all-linear",
    lora_dropout: Annotated[
        float,
        typer.Option(
            "--lora-dropout", "--lora_dropout", min=0.0, max=1.0, help="Above 0, far more is kept for backward."
        ),
    ] = 0.0,
    population: Annotated[int, typer.Option(min=1, help="Number of agents.")] = 1,
    parallel: Annotated[
        Literal["data", "population"],
        typer.Option(help="Every agent on all ranks, or agents spread over the ranks."),
    ] = "data",
    reference: Annotated[
        ReferenceName,
        typer.Option(help="One adapter that all agents share, as long as it does not move; their own; or the base."),
    ] = "shared",
    batch_size: Annotated[
        int, typer.Option("--batch-size", "--batch_size", min=1, help="Rows per optimizer step, of all ranks together.")
    ] = 16,
    micro_batch_size: Annotated[
        int | None,
        typer.Option(
            "--micro-batch-size",
            "--micro_batch_size",
            min=1,
            help="Rows in one forward pass of a rank. Default: all that it has.",
            show_default=False,
        ),
    ] = None,
    max_length: Annotated[
        int, typer.Option("--max-length", "--max_length", min=1, help="Most tokens of a prompt with a completion.")
    ] = 1024,
    prompt_length: Annotated[
        int,
        typer.Option("--prompt-length", "--prompt_length", min=0, help="Those of the prompt, which a pair shares."),
    ] = 0,
    completions: Annotated[
        int, typer.Option(min=1, help="Completions of a row: 2 for DPO, 1 for SFT, GRPO's group size.")
    ] = 2,
    dtype: Annotated[DtypeName, typer.Option(help="Of the base weights.")] = "bfloat16",
    gradient_checkpointing: Annotated[
        bool,
        typer.Option(
            "--gradient-checkpointing/--no-gradient-checkpointing",
            "--gradient_checkpointing/--no_gradient_checkpointing",
            help="Compute layers again in backward.",
        ),
    ] = True,
    zero_stage: Annotated[
        int | None,
        typer.Option(
            "--zero-stage",
            "--zero_stage",
            min=0,
            max=3,
            help="DeepSpeed's stage to estimate for. Default: that of the launch.",
            show_default=False,
        ),
    ] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds to wait for processes that are missing.")] = 60.0,
    format: Annotated[Literal["table", "json"], typer.Option(help="For people or for programs.")] = "table",
) -> None:
    """See who takes part in a launch, whether they understand each other, and whether a run fits into their memory.

    Start it as the training will be started (accelerate launch, torchrun, srun), or by itself. No weight is loaded.
    Exit status 1 if the run would not fit, a process is missing, or the ranks differ in versions or devices; 2 for
    options that cannot be.
    """
    with user_errors():
        import torch
        from peft import LoraConfig

        from agiledpo.distributed.joining import NotAllHereError
        from agiledpo.distributed.launch_check import PlannedRun, check_launch

        names = [name.strip() for name in target_modules.split(",")]
        run = PlannedRun(
            model=model,
            dtype={"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}[dtype],
            lora=LoraConfig(
                r=lora_r,
                target_modules=target_modules if target_modules == "all-linear" else names,
                lora_dropout=lora_dropout,
                task_type="CAUSAL_LM",
            ),
            population=population,
            references={"shared": 1, "own": population, "base": 0}[reference],
            parallel=parallel,
            batch_size=batch_size,
            micro_batch_size=micro_batch_size,
            max_length=max_length,
            prompt_length=prompt_length,
            completions=completions,
            gradient_checkpointing=gradient_checkpointing,
            zero_stage=zero_stage,
        )
        try:
            report = check_launch(run, timeout=timeout)
        except NotAllHereError as error:
            if error.speaks:
                print(f"Error: {error}", file=sys.stderr)
            raise typer.Exit(1) from None
    if report.speaks and format == "json":
        print(json.dumps(report.to_dict(), indent=2))
    elif report.speaks:
        _print(report, model)
    if not report.passes:
        raise typer.Exit(1)


def _print(report: "LaunchReport", model: str) -> None:
    console = Console(highlight=False)
    stage = f", ZeRO stage {report.zero_stage}" if report.zero_stage else ""
    backend = "" if report.backend is None else f", {report.backend}"
    count = len(report.ranks)
    console.print(Text(f"{count} process{'es' * (count > 1)}: {_kind(report)}{stage}{backend}"))
    console.print(_ranks(report))
    versions = ", ".join(f"{name} {version}" for name, version in report.ranks[0].versions.items())
    console.print(Text(f"Versions: {versions}"))
    for timing in report.all_reduce:
        console.print(
            Text(
                f"All-reduce of {_bytes(timing.size)}: {timing.seconds * 1e3:.3g} ms, "
                f"{timing.bandwidth / 1e9:.3g} GB/s sent by each rank"
            )
        )
    if report.sizes is not None and report.estimate is not None:
        console.print(Text(f"\n{_workload(report, model)}"))
        console.print(_memory(report))
        console.print(Text(_verdict(report)))
    for problem in report.problems:
        print(f"Error: {problem}", file=sys.stderr)


def _kind(report: "LaunchReport") -> str:
    return "not distributed" if report.distributed_type == "NO" else report.distributed_type


def _ranks(report: "LaunchReport") -> Table:
    table = Table("rank", "host", "device", "", box=SIMPLE)
    table.add_column("memory", justify="right")
    table.add_column("free", justify="right")
    for rank in report.ranks:
        table.add_row(
            str(rank.rank), rank.host, rank.device, Text(rank.device_name), _bytes(rank.total), _bytes(rank.free)
        )
    return table


def _workload(report: "LaunchReport", model: str) -> str:
    sizes, workload, processes = report.sizes, report.workload, report.processes
    assert sizes is not None
    assert workload is not None
    assert processes is not None
    spread = "" if processes.ranks == 1 else f", {processes.parallel}-parallel on {processes.ranks} ranks"
    again = "with" if workload.gradient_checkpointing else "without"
    return (
        f"{model}: {sizes.name}, {sizes.base_elements:,} parameters in {str(sizes.dtype).removeprefix('torch.')}, "
        f"{sizes.adapter_elements:,} in an adapter; {processes.agents} agent{'s' * (processes.agents > 1)}{spread}; "
        f"{workload.micro_batch_size} row{'s' * (workload.micro_batch_size > 1)} or {workload.tokens:,} tokens in a "
        f"forward pass, {again} gradient checkpointing."
    )


def _memory(report: "LaunchReport") -> Table:
    assert report.estimate is not None
    table = Table("memory of a rank", box=SIMPLE)
    table.add_column("estimated", justify="right")
    for name, size in report.estimate.parts.items():
        if size:
            table.add_row(_PARTS[name], _bytes(size))
    table.add_section()
    table.add_row("at the peak", _bytes(report.estimate.total))
    table.add_row("there is", _bytes(report.available))
    return table


_PARTS = {
    "base": "base weights",
    "gathered": "base weights gathered for a time",
    "adapters": "actors",
    "references": "references",
    "gradients": "gradients of one agent",
    "moments": "optimizer states",
    "communication": "message buffers",
    "activations": "activations",
    "workspace": "workspace of one formula",
    "context": "context of the device",
}


def _verdict(report: "LaunchReport") -> str:
    assert report.estimate is not None
    if report.fits:
        return f"It fits, with {_bytes(report.available - report.estimate.total)} to spare."
    missing = f"It does not fit: {_bytes(report.estimate.total - report.available)} too much."
    if not report.ways_out:
        return f"{missing} Nothing here makes it fit; take devices with more memory, or a smaller base model."
    ways = "\n".join(f"  {way.change} ({_bytes(way.total)})" for way in report.ways_out)
    return f"{missing} Any of these makes it fit:\n{ways}"


def _bytes(size: float) -> str:
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size >= unit:
            return f"{size / unit:,.1f} {name}"
    return f"{size:.0f} B"
