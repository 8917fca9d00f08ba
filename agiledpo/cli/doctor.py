"""`agiledpo doctor`: what is there on this machine, and whether it works."""

import json
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from agiledpo.doctor import Examination

_MARKS = {"ok": "ok", "note": "note", "warning": "WARNING", "error": "ERROR"}
_STYLES = {"ok": "green", "note": "cyan", "warning": "yellow", "error": "bold red"}


def doctor_command(
    network: Annotated[bool, typer.Option("--network", help="Also try to reach the Hugging Face Hub.")] = False,
    format: Annotated[Literal["table", "json"], typer.Option(help="For people or for programs.")] = "table",
) -> None:
    """Look at Python, libraries, devices, memory, disk, caches and extras, and make one step of DPO on a tiny model.

    Whatever is not as it should be comes with a remedy. Exit status 1 only if training cannot work.
    """
    from rich.console import Console

    from agiledpo.doctor import examine

    examination = examine(network=network)
    if format == "json":
        print(json.dumps(examination.to_dict(), indent=2))
    else:
        _print(examination, Console(highlight=False))
    if not examination.can_train:
        raise typer.Exit(1)


def _print(examination: "Examination", console: "Console") -> None:
    from rich.box import SIMPLE
    from rich.table import Table
    from rich.text import Text

    table = Table("", "", "", box=SIMPLE, show_header=False)
    area = ""
    for finding in examination.findings:
        if finding.area != area:
            area = finding.area
            table.add_section()
        table.add_row(
            Text(finding.name),
            Text(_MARKS[finding.status], style=_STYLES[finding.status]),
            Text(finding.said + (f"\n{finding.remedy}" if finding.remedy else "")),
        )
    console.print(table)
    counts = {status: sum(finding.status == status for finding in examination.findings) for status in _MARKS}
    verdict = "Training works here." if examination.can_train else "Training cannot work here."
    console.print(
        f"{verdict} {counts['error']} errors, {counts['warning']} warnings, {counts['note']} notes, {counts['ok']} ok."
    )
