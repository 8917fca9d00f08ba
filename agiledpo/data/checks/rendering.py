"""Show a check in the terminal."""

from collections.abc import Iterator
from pathlib import Path

from rich.bar import Bar
from rich.box import SIMPLE
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from agiledpo.data.checks.findings import Finding, Severity, Sighting
from agiledpo.data.checks.histogram import class_name
from agiledpo.data.checks.report import CheckReport, DatasetFigures

# Bars get what the numbers leave of the line.
_NUMBERS, _SHORTEST_BAR, _LONGEST_BAR = 56, 6, 24
_STYLES = {Severity.ERROR: "bold red", Severity.WARNING: "yellow", Severity.NOTE: "cyan"}


def print_report(report: CheckReport, console: Console) -> None:
    """Print figures, histograms and findings.

    Args:
        report: The report.
        console: Where.
    """
    console.print(_figures_table(report))
    for figures in report.datasets:
        if figures.lengths:
            bar = min(max((console.width - _NUMBERS) // 3, _SHORTEST_BAR), _LONGEST_BAR)
            console.print(_histogram(figures, bar))
    for finding in report.findings:
        console.print(_finding(finding))
    console.print(_verdict(report))


def _figures_table(report: CheckReport) -> Table:
    table = Table(box=SIMPLE)
    table.add_column("", no_wrap=True)
    for figures in report.datasets:
        table.add_column(figures.name, justify="right", overflow="fold")
    columns = [dict(_figures(figures)) for figures in report.datasets]
    for name in columns[0]:
        table.add_row(name, *(Text(column.get(name, "–")) for column in columns))
    return table


def _figures(figures: DatasetFigures) -> Iterator[tuple[str, str]]:
    """Names and values of the first table, the same names for every dataset."""
    if figures.files:
        yield "file", Path(figures.files[0]).name if len(figures.files) == 1 else f"{len(figures.files):,} files"
    yield "format", f"{figures.form}: {', '.join(figures.columns)}"
    yield "rows", f"{figures.rows:,}"
    yield "unusable rows", f"{figures.unusable_rows:,}"
    yield "rows without preference", f"{figures.rows_without_preference:,}"
    yield "pairs", f"{figures.pairs:,}"
    yield "distinct prompts", f"{figures.distinct_prompts:,}"
    bias = figures.length_bias
    if bias is not None:
        low, high = bias.longer_interval
        yield "chosen is longer by", f"{bias.mean_difference:.1f} ± {bias.standard_error:.1f}"
        yield '"longer is better" is right', _interval(bias.longer_accuracy, low, high)
        yield '"shorter is better" is right', _interval(1 - bias.longer_accuracy, 1 - high, 1 - low)
        yield "pairs of equal length", f"{bias.equal:,}"
    for number, opening in enumerate(figures.openings, start=1):
        yield (
            f"first words, {number}",
            f'"{opening.words}": chosen {opening.chosen:.1%}, rejected {opening.rejected:.1%}',
        )


def _interval(share: float, low: float, high: float) -> str:
    return f"{share:.1%} ({100 * low:.1f}–{high:.1%})"


def _histogram(figures: DatasetFigures, bar: int) -> Table:
    """A row for each class of lengths, and the quantiles below; bars as wide as asked for."""
    table = Table(box=SIMPLE, title=f"{figures.name}: lengths in {figures.length_unit}", title_justify="left")
    table.add_column(figures.length_unit, justify="right", no_wrap=True)
    for part in figures.lengths:
        table.add_column(part, width=bar)
        table.add_column("pairs", justify="right", no_wrap=True)
    counts = [lengths.counts for lengths in figures.lengths.values()]
    occupied = [number for number in range(len(counts[0])) if any(of_part[number] for of_part in counts)]
    largest = max(max(of_part) for of_part in counts)
    for number in range(occupied[0], occupied[-1] + 1):
        cells: list[RenderableType] = []
        for of_part in counts:
            count = of_part[number]
            cells += [Bar(largest, 0, count, width=bar), f"{count:,}" if count else ""]
        table.add_row(class_name(number), *cells)
    table.add_section()
    for percentile, label in ((50, "median"), (99, "99 %"), (100, "longest")):
        cells = []
        for part_figures in figures.lengths.values():
            cells += ["", f"{part_figures.quantiles[percentile]:,}"]
        table.add_row(label, *cells)
    return table


def _finding(finding: Finding) -> Group:
    head = Text()
    head.append(f"{finding.severity}", style=_STYLES[finding.severity])
    head.append(f" {finding.dataset}: {finding.problem}: ")
    head.append(f"{finding.count:,} of {finding.total:,} {finding.unit} ({finding.share:.2%})", style="bold")
    head.append(f". {finding.remedy}")
    return Group(head, *(Text(f"    {_where(example, finding)}", style="dim") for example in finding.examples))


def _where(example: Sighting, finding: Finding) -> str:
    where = str(example.place)
    if example.other is not None:
        leaked = finding.check in ("leaked_pairs", "swapped_test_pairs", "leaked_prompts", "nearly_leaked_prompts")
        where += f" (train {example.other})" if leaked else f" (and {example.other})"
    return f"{where}: {example.excerpt!r}" if example.excerpt else where


def _verdict(report: CheckReport) -> Text:
    counts = ((Severity.ERROR, "error"), (Severity.WARNING, "warning"), (Severity.NOTE, "note"))
    said = ", ".join(
        f"{report.count(severity)} {name}{'s' * (report.count(severity) != 1)}" for severity, name in counts
    )
    return Text(f"{said}.", style="bold" if report.passes(strict=True) else _STYLES[report.findings[0].severity])
