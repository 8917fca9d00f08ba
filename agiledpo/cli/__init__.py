"""The command `agiledpo`. Importing it imports no model code: commands import what they need when they run."""

import io
import os
import sys

import typer

from agiledpo.cli.data import data_app
from agiledpo.cli.doctor import doctor_command
from agiledpo.cli.evaluate import evaluate_command
from agiledpo.cli.launch_check import launch_check_command
from agiledpo.cli.merge import merge_command
from agiledpo.cli.pairs import pairs_command
from agiledpo.cli.report import report_command
from agiledpo.cli.train import resume_command, train_app

app = typer.Typer(
    name="agiledpo",
    help="Preference-tune a population of LoRA agents on one shared language model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(train_app)
app.command("resume")(resume_command)
app.command("pairs")(pairs_command)
app.command("launch-check")(launch_check_command)
app.command("report")(report_command)
app.add_typer(data_app)
app.command("evaluate")(evaluate_command)
app.command("merge")(merge_command)
app.command("doctor")(doctor_command)


# With a callback, a single command keeps its name.
@app.callback()
def _commands() -> None:
    pass


def main() -> None:
    """Run the command line of this process."""
    # Before torch is imported: threads that wait without spinning, far faster where others use the machine too.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # A terminal that lacks a character shows a question mark; it is no reason to fail.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    app()
