"""`agiledpo pairs`: scored rollouts become preference pairs."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.bar import Bar
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from agiledpo.cli.reporting import plain_warnings, user_errors

if TYPE_CHECKING:
    from agiledpo.data.rollouts import Distribution, PairStatistics

# What the library's enumerations hold, which importing would import Transformers.
StrategyName = Literal["same_prompt", "adjacent", "min_gap", "all_pairs", "stratified"]
FormatName = Literal["messages", "text", "ranked"]
MultiStepName = Literal["skip", "final"]
OnInvalid = Literal["raise", "skip"]

_BAR = 30
_EXAMPLE_LENGTH = 300


def pairs_command(
    input: Annotated[
        Path, typer.Option("--input", "-i", help="Rollouts, one JSON object per line; .gz is read too.", dir_okay=False)
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Pairs to write, one JSON object per line.")],
    strategy: Annotated[StrategyName, typer.Option(help="Which rollouts become pairs.")] = "same_prompt",
    min_gap: Annotated[
        float, typer.Option("--min-gap", "--min_gap", help="Smallest difference of rewards; a tie is never a pair.")
    ] = 0.2,
    high_threshold: Annotated[
        float, typer.Option("--high-threshold", "--high_threshold", help="stratified: smallest reward of a chosen one.")
    ] = 0.7,
    low_threshold: Annotated[
        float, typer.Option("--low-threshold", "--low_threshold", help="stratified: largest reward of a rejected one.")
    ] = 0.4,
    max_pairs: Annotated[
        int | None,
        typer.Option(
            "--max-pairs",
            "--max_pairs",
            help="Most pairs, chosen at random. Default: all; stratified: as many as chosen ones.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of that random choice.")] = 42,
    format: Annotated[
        FormatName, typer.Option(help="Lists of messages, plain texts, or NeMo RL's ranked completions.")
    ] = "messages",
    multi_step: Annotated[
        MultiStepName,
        typer.Option("--multi-step", "--multi_step", help="Of several steps: skip, or use the final one."),
    ] = "skip",
    on_invalid: Annotated[
        OnInvalid, typer.Option("--on-invalid", "--on_invalid", help="Stop at the first invalid line, or count them.")
    ] = "raise",
    statistics: Annotated[
        Path | None, typer.Option(help="Write all figures to this JSON file too.", show_default=False, dir_okay=False)
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an output, and statistics, that exist.")
    ] = False,
) -> None:
    """Make preference pairs of NeMo Gym's rollouts.

    Exit status 1 if there are none, or if the input cannot be used.
    """
    with user_errors():
        from agiledpo.data.rollouts import make_pairs
        from agiledpo.disk import check_place

        if statistics is not None:
            if statistics.resolve() in (input.resolve(), output.resolve()):
                raise ValueError(f"--statistics ({statistics}) is the input or the output; choose another file.")
            check_place(statistics, "--statistics", overwrite=overwrite)
        with plain_warnings():
            figures = make_pairs(
                input,
                output,
                strategy=strategy,
                min_gap=min_gap,
                high_threshold=high_threshold,
                low_threshold=low_threshold,
                max_pairs=max_pairs,
                seed=seed,
                format=format,
                multi_step=multi_step,
                on_invalid=on_invalid,
                overwrite=overwrite,
            )
    _print(figures)
    if statistics is not None:
        with user_errors():
            _write_statistics(figures, statistics, overwrite=overwrite)
    if figures.output is None:
        raise typer.Exit(1)


def _write_statistics(figures: "PairStatistics", path: Path, *, overwrite: bool) -> None:
    from agiledpo.data.rollouts.writing import drafted

    with drafted(path, overwrite=overwrite) as file:
        json.dump(figures.to_dict(), file, indent=2)
        file.write("\n")


def _print(figures: "PairStatistics") -> None:
    console = Console(highlight=False)
    console.print(Text(f"{figures.input}: {figures.pairs:,} pairs by {figures.strategy}"))
    console.print(_counts(figures))
    if figures.output is None:
        return
    console.print(_distributions(figures))
    if figures.gaps is not None:
        console.print(_histogram(figures.gaps))
    console.print(_example(Path(figures.output)))


def _counts(figures: "PairStatistics") -> Table:
    table = Table(show_header=False, box=SIMPLE)
    table.add_column()
    table.add_column(justify="right")
    rows = [("lines", figures.lines), ("blank lines", figures.blank_lines)]
    rows += [(f"left out: {reason}", entry.count) for reason, entry in figures.left_out.items()]
    rows += [
        ("usable rollouts", figures.rollouts),
        ("only the last message used", figures.final_only),
        ("prompts", figures.prompts),
        ("prompts with one rollout", figures.single_rollout_prompts),
        ("no pair: equal rewards", figures.ties),
        (f"no pair: gap below {figures.min_gap:g}", figures.small_gaps),
        ("no pair: same completion", figures.identical_completions),
        ("no pair: beyond --max-pairs", figures.over_limit),
        ("pairs", figures.pairs),
        ("pairs whose prompts differ", figures.prompts_differ),
    ]
    always = ("lines", "usable rollouts", "prompts", "pairs")
    for name, count in rows:
        if count or name in always:
            table.add_row(Text(name), f"{count:,}")
    return table


def _distributions(figures: "PairStatistics") -> Table:
    table = Table(box=SIMPLE)
    for heading in ("reward", "mean", "min", "10 %", "25 %", "median", "75 %", "90 %", "max"):
        table.add_column(heading, justify="left" if heading == "reward" else "right")
    for name, values in (
        ("gap", figures.gaps),
        ("chosen", figures.chosen_rewards),
        ("rejected", figures.rejected_rewards),
        ("all", figures.rewards),
    ):
        if values is not None:
            table.add_row(name, *(f"{number:.3f}" for number in (values.mean, *values.quantiles)))
    return table


def _histogram(gaps: "Distribution") -> Table:
    table = Table("gap", "pairs", "", box=SIMPLE)
    for lower, upper, count in zip(gaps.edges[:-1], gaps.edges[1:], gaps.counts, strict=True):
        bar = Bar(max(gaps.counts), 0, count, width=_BAR)
        table.add_row(f"{lower:.3f} to {upper:.3f}", f"{count:,}", bar)
    return table


def _example(output: Path) -> Text:
    with open(output, encoding="utf-8") as file:
        row: dict[str, Any] = json.loads(file.readline())
    lines = [f"\nThe first pair of {output}:"]
    for key, value in row.items():
        text = json.dumps(value, ensure_ascii=False)
        lines.append(f"  {key}: {text if len(text) <= _EXAMPLE_LENGTH else text[:_EXAMPLE_LENGTH] + ' ...'}")
    return Text("\n".join(lines))
