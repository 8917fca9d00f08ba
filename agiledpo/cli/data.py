"""`agiledpo data ...`: look at data before training on them."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from agiledpo.cli.reporting import plain_warnings, user_errors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What `agiledpo.data.convert.FORMATS` holds, which importing would import Transformers.
FormatName = Literal["pairs", "text", "implicit", "ranked", "demonstrations"]
# `agiledpo.data.ranked.PAIRINGS`, for the same reason.
PairingName = Literal["best_worst", "adjacent", "all"]

data_app = typer.Typer(
    name="data", help="Check preference data, and write them in another format.", no_args_is_help=True
)


@data_app.command()
def check(
    file: Annotated[str, typer.Argument(help="Training data: a file, a directory, or a name on the Hub.")],
    test: Annotated[
        str | None, typer.Option(help="Test data, to look for training data in them.", show_default=False)
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="Directory or name of the model's tokenizer: count tokens, and find errors that only it shows.",
            show_default=False,
        ),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Which split of FILE.", show_default=False)] = None,
    test_split: Annotated[
        str | None, typer.Option("--test-split", "--test_split", help="Which split of --test.", show_default=False)
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="The published dataset that the rows are of, such as HelpSteer3.", show_default=False),
    ] = None,
    prompt_key: Annotated[
        str | None, typer.Option("--prompt-key", "--prompt_key", help="Column of the prompt.", show_default=False)
    ] = None,
    chosen_key: Annotated[
        str | None,
        typer.Option("--chosen-key", "--chosen_key", help="Column of the chosen completion.", show_default=False),
    ] = None,
    rejected_key: Annotated[
        str | None,
        typer.Option("--rejected-key", "--rejected_key", help="Column of the rejected completion.", show_default=False),
    ] = None,
    pairing: Annotated[PairingName, typer.Option(help="Which pairs to make of ranked completions.")] = "best_worst",
    config: Annotated[
        str | None, typer.Option(help="Configuration of what is on the Hub, FILE or --test.", show_default=False)
    ] = None,
    chat_template_kwargs: Annotated[
        str | None,
        typer.Option(
            "--chat-template-kwargs",
            "--chat_template_kwargs",
            metavar="JSON",
            help="What training tells the chat template, such as '{\"enable_thinking\": false}'; with --tokenizer.",
            show_default=False,
        ),
    ] = None,
    examples: Annotated[int, typer.Option(min=0, help="Rows to show of everything that is found.")] = 3,
    format: Annotated[Literal["table", "json"], typer.Option(help="For people or for programs.")] = "table",
    strict: Annotated[bool, typer.Option("--strict", help="Fail on warnings too.")] = False,
) -> None:
    """Look for what training would refuse, and for what it would learn although nobody means it.

    Counts rows by what is wrong with them, duplicates, contradictions and test data that training has seen, and tells
    how well length alone predicts the labels. Exit status 1 if training would refuse the data (with --strict, also on
    warnings), 2 for options that cannot be.
    """
    with user_errors():
        from datasets import disable_progress_bars
        from rich.console import Console

        from agiledpo.data.checks import check_preferences
        from agiledpo.data.checks.rendering import print_report
        from agiledpo.data.loaded_rows import LoadedRows
        from agiledpo.data.loading import load_preferences

        def load(source: str, split: str | None, dataset_name: str) -> LoadedRows:
            return load_preferences(
                source,
                split=split,
                name=name,
                prompt_key=prompt_key,
                chosen_key=chosen_key,
                rejected_key=rejected_key,
                pairing=pairing,
                config=None if source != file and Path(source).exists() else config,
                dataset_name=dataset_name,
            )

        on_terminal = sys.stderr.isatty()
        if not on_terminal:
            disable_progress_bars()
        report = check_preferences(
            load(file, split, "train"),
            test=None if test is None else load(test, test_split, "test"),
            tokenizer=None if tokenizer is None else _load_tokenizer(tokenizer),
            chat_template_kwargs=None if chat_template_kwargs is None else _mapping(chat_template_kwargs),
            examples=examples,
            show_progress=on_terminal,
        )
    if format == "json":
        print(json.dumps(report.to_dict(), indent=2))
    else:
        print_report(report, Console(highlight=False))
    if not report.passes(strict=strict):
        raise typer.Exit(1)


def _mapping(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ValueError(f"--chat-template-kwargs is not JSON ({error}): {text!r}") from None
    if not isinstance(value, dict):
        raise ValueError(f"--chat-template-kwargs must be an object of JSON, such as {{}}, got {text!r}")
    return value


def _load_tokenizer(name: str) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(name)


@data_app.command()
def convert(
    file: Annotated[str, typer.Argument(help="Data to convert: a file, a directory, or a name on the Hub.")],
    output: Annotated[Path, typer.Argument(help="File to write, one JSON object per line.")],
    to: Annotated[FormatName, typer.Option(help="The format to write.")],
    split: Annotated[str | None, typer.Option(help="Which split of FILE.", show_default=False)] = None,
    name: Annotated[
        str | None,
        typer.Option(help="The published dataset that the rows are of, such as HelpSteer3.", show_default=False),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")] = False,
) -> None:
    """Write preference data in another format.

    Every row is checked as it is for training; exit status 1 if one cannot be converted, and then nothing is written.
    """
    with user_errors(), plain_warnings():
        from datasets import disable_progress_bars

        from agiledpo.data import DatasetError
        from agiledpo.data.convert import convert as converted_rows
        from agiledpo.data.convert import json_lines
        from agiledpo.data.loading import load_preferences
        from agiledpo.data.rollouts.writing import check_output, drafted

        if not sys.stderr.isatty():
            disable_progress_bars()
        check_output(output, Path(file), overwrite=overwrite)
        data = load_preferences(file, split=split, name=name, dataset_name="given")
        try:
            rows = converted_rows(data.dataset, to, layout=data.layout, name="given")
            lines = json_lines(rows, name="given")
        except DatasetError as error:
            raise data.locate(error) from error
        with drafted(output, overwrite=overwrite) as draft:
            for line in lines:
                draft.write(line + "\n")
    print(f"{output}: {len(rows):,} rows in the format {to}")
