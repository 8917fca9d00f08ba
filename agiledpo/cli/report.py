"""`agiledpo report`: one HTML file that shows what came of a run."""

from pathlib import Path
from typing import Annotated

import typer

from agiledpo.cli.reporting import user_errors


def report_command(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Directories of runs; several are compared.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="File to write.  [default: report.html in the run; of several report-with-<others>.html in the first]",
            show_default=False,
        ),
    ] = None,
    open_it: Annotated[bool, typer.Option("--open", help="Show it in the browser.")] = False,
) -> None:
    """Write the report of a run, or of several side by side, as one HTML file that works offline.

    It may be made while a run goes on. What a run did not record is left out, and the report says so.
    """
    with user_errors():
        from agiledpo.report import ReportError, RunRecord, write_report

        try:
            path = write_report([RunRecord.load(run) for run in runs], output)
        except (ImportError, ReportError) as error:
            raise OSError(str(error)) from None
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    if open_it:
        import webbrowser

        webbrowser.open(path.resolve().as_uri())
