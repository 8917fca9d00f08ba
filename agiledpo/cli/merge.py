"""`agiledpo merge`: a trained adapter and its base model become one ordinary model."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from agiledpo.cli.reporting import plain_warnings, user_errors

DtypeName = Literal["bfloat16", "float16", "float32"]


def merge_command(
    checkpoint: Annotated[
        str, typer.Argument(help="A checkpoint, a PEFT adapter, or a run (its fittest agent).", show_default=False)
    ],
    output: Annotated[Path, typer.Argument(help="Directory to write; absent or empty.", show_default=False)],
    model: Annotated[
        str | None,
        typer.Option(
            help='Directory or name of the base model, or "embedded". Default: what the checkpoint names.',
            show_default=False,
        ),
    ] = None,
    dtype: Annotated[
        DtypeName | None,
        typer.Option(help="Of the weights that are written. Default: as the base model has them.", show_default=False),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="Directory or name. Default: the checkpoint's, or the base model's.", show_default=False),
    ] = None,
    max_shard_size: Annotated[
        str, typer.Option("--max-shard-size", "--max_shard_size", help="Largest file of weights.")
    ] = "5GB",
) -> None:
    """Write a trained adapter and its base model as one model, which Transformers and vLLM load without PEFT.

    The directory is complete or absent. Exit status 1 if the checkpoint cannot be used or the output is there already.
    """
    with user_errors(), plain_warnings():
        import torch

        from agiledpo.adapters.files import AdapterFileError
        from agiledpo.checkpoint import CheckpointError, merge
        from agiledpo.evaluation.subjects import model_path, policy_path

        try:
            path = policy_path(checkpoint)
            if path is None:
                raise ValueError("The base model itself has nothing to merge; pass a checkpoint.")
            merge(
                path,
                output,
                base_model=None if model is None else model_path(model),
                tokenizer=tokenizer,
                dtype=None if dtype is None else getattr(torch, dtype),
                max_shard_size=max_shard_size,
            )
        except (CheckpointError, AdapterFileError) as error:
            print(f"Error: {error}", file=sys.stderr)
            raise typer.Exit(1) from None
    files = sorted(file for file in output.rglob("*") if file.is_file())
    print(f"{path} merged into {output}:")
    for file in files:
        print(f"  {file.relative_to(output)}  {file.stat().st_size / 1e6:,.1f} MB")
    print(f"AutoModelForCausalLM.from_pretrained({str(output)!r}) loads it; so does `vllm serve {output}`.")
