"""`agiledpo evaluate`: what a trained policy is worth."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from agiledpo.cli.reporting import plain_warnings, user_errors

DtypeName = Literal["bfloat16", "float16", "float32", "float64"]
# `agiledpo.evaluation.subjects.ReferenceName`, which importing would import Transformers.
ReferenceName = Literal["own", "base"]


def evaluate_command(
    checkpoint: Annotated[
        str,
        typer.Argument(help='A checkpoint, a PEFT adapter, a run (its fittest agent), or "base" for the base model.'),
    ],
    data: Annotated[
        list[str],
        typer.Option(
            help="Preference pairs: a file, a directory, or a name on the Hub; NAME=FILE gives them a name. Repeat it "
            "for more.",
            metavar="[NAME=]FILE",
            show_default=False,
        ),
    ],
    against: Annotated[
        str | None, typer.Option(help='Another checkpoint on the same base, or "base".', show_default=False)
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help='Directory or name of the base model, or "embedded". Default: what the checkpoint names.',
            show_default=False,
        ),
    ] = None,
    beta: Annotated[
        float | None,
        typer.Option(
            help="Of the probabilities sigmoid(beta * margin). Default: that of each one's DPO, else 0.1.",
            show_default=False,
        ),
    ] = None,
    reference: Annotated[
        ReferenceName, typer.Option(help="What margins are held against: the policy's own reference, or the base.")
    ] = "own",
    samples: Annotated[
        int, typer.Option(min=0, help="Held-out prompts to answer, for KL from the base and win rate; 0 for none.")
    ] = 0,
    reward: Annotated[
        str | None,
        typer.Option(
            help="Function that decides who wins, module:function or file.py:function; called with completion, answer "
            "and question.",
            show_default=False,
        ),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            help="Command that decides who wins: it reads JSON lines with prompt, answer_a and answer_b, and writes "
            '{"winner": "a"}, "b" or "tie" for each.',
            show_default=False,
        ),
    ] = None,
    judge_each: Annotated[
        bool, typer.Option("--judge-each", "--judge_each", help="Start the command for each comparison, not once.")
    ] = False,
    judge_timeout: Annotated[
        float,
        typer.Option(
            "--judge-timeout",
            "--judge_timeout",
            help="Most seconds without a verdict, from the start or the last verdict; a judge that answers only at the "
            "end needs as many as all comparisons take.",
        ),
    ] = 60.0,
    both_orders: Annotated[
        bool, typer.Option("--both-orders", "--both_orders", help="Judge each pair of answers in both orders.")
    ] = False,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", "--max_new_tokens", min=1, help="Most tokens of an answer.")
    ] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="Of the sampling; 0 is greedy.")] = 1.0,
    top_p: Annotated[float, typer.Option("--top-p", "--top_p", help="Of the sampling.")] = 1.0,
    max_rows: Annotated[
        int | None,
        typer.Option("--max-rows", "--max_rows", min=1, help="Only the first so many rows.", show_default=False),
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(
            "--max-length",
            "--max_length",
            min=2,
            help="Leave out pairs of more tokens. Default: what the model can read.",
            show_default=False,
        ),
    ] = None,
    batch_size: Annotated[
        int, typer.Option("--batch-size", "--batch_size", min=1, help="Pairs in a forward pass.")
    ] = 8,
    dtype: Annotated[
        DtypeName | None,
        typer.Option(
            help="Of the base weights. Default: the checkpoint's, else that of the files.", show_default=False
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Where to compute. Default: the first GPU, or the CPU.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Of prompts, answers and orders.")] = 0,
    format: Annotated[Literal["table", "json"], typer.Option(help="For people or for programs.")] = "table",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write everything to this JSON file too.", show_default=False)
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")] = False,
) -> None:
    """Measure a trained policy on held-out pairs, and on what it answers.

    Preference accuracy, margins, calibration and accuracy without the advantage of length; with --samples the KL from
    the base model; with --against, and --reward or --judge, the win rate. Every figure has a 95 % confidence interval
    over prompts. Exit status 1 if a file cannot be used.
    """
    with user_errors(), plain_warnings():
        import torch
        from datasets import disable_progress_bars
        from rich.console import Console

        from agiledpo.adapters.files import AdapterFileError
        from agiledpo.checkpoint import CheckpointError
        from agiledpo.disk import check_place, complete_or_absent
        from agiledpo.evaluation import evaluate
        from agiledpo.evaluation.judges import load_function
        from agiledpo.evaluation.rendering import print_evaluation

        if output is not None:
            check_place(output, "--output", overwrite=overwrite)
        if not sys.stderr.isatty():
            disable_progress_bars()
        try:
            evaluation = evaluate(
                checkpoint,
                _named(data),
                against=against,
                model=model,
                beta=beta,
                reference=reference,
                samples=samples,
                reward=None if reward is None else load_function(reward),
                judge=judge,
                judge_each=judge_each,
                judge_timeout=judge_timeout,
                both_orders=both_orders,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                top_p=top_p,
                max_rows=max_rows,
                max_length=max_length,
                batch_size=batch_size,
                dtype=None if dtype is None else getattr(torch, dtype),
                device=device,
                seed=seed,
            )
        except (CheckpointError, AdapterFileError) as error:
            print(f"Error: {error}", file=sys.stderr)
            raise typer.Exit(1) from None
        content: dict[str, Any] = evaluation.to_dict()
        if output is not None:
            with complete_or_absent(output, overwrite=overwrite) as file:
                file.write(json.dumps(content, indent=2, ensure_ascii=False).encode() + b"\n")
    if format == "json":
        print(json.dumps(content, indent=2, ensure_ascii=False))
    else:
        print_evaluation(evaluation, Console(highlight=False))


def _named(data: Sequence[str]) -> dict[str, Any]:
    """Datasets by name: NAME=FILE, or the file's own name."""
    named: dict[str, Any] = {}
    for text in data:
        name, separator, file = text.partition("=")
        if not separator or Path(text).exists():
            name, file = Path(text).stem or text, text
        if not name or not file:
            raise ValueError(f"--data {text}: write FILE or NAME=FILE.")
        if name in named:
            raise ValueError(f"--data names {name!r} twice; give them names: NAME=FILE.")
        named[name] = file
    return named
