"""From runs to one HTML file that needs nothing else."""

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from agiledpo.disk import complete_or_absent
from agiledpo.report import curves, panels
from agiledpo.report.chart import Chart
from agiledpo.report.lives import Lives
from agiledpo.report.record import RunRecord
from agiledpo.report.sampled import questions
from agiledpo.report.seen import Seen
from agiledpo.report.summary import Summary, differing, flat
from agiledpo.report.tree import tree_chart

# As many colours as the style sheet has.
MOST_RUNS = 6


@dataclass(frozen=True)
class Section:
    """A part of the report.

    Attributes:
        key: Identifier in the page.
        title: Headline.
        charts: What is drawn.
        folded: Whether it is shown on request only.
        note: A sentence below the headline.
    """

    key: str
    title: str
    charts: Sequence[Chart]
    folded: bool = False
    note: str = ""


@dataclass(frozen=True)
class Colophon:
    """What a run was made with.

    Attributes:
        run: The run.
        facts: Names and values by headline: command, model, data, machine, versions.
    """

    run: RunRecord
    facts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def write_report(runs: RunRecord | Sequence[RunRecord], output: str | Path | None = None) -> Path:
    """Write the report of a run, or of several that are compared, as one HTML file.

    The file is complete or absent, holds everything that it needs, and asks the network for nothing.

    Args:
        runs: A run, or up to six.
        output: The file; None for ``report.html`` in the run's directory, or in the first one's, of several,
            ``report-with-<names of the others>.html``. A file that is there is replaced.

    Returns:
        The file.

    Raises:
        ImportError: Plotly or Jinja is not installed.
        OSError: The file cannot be written.
        ValueError: There are no runs, or too many to tell apart.
    """
    shown = [runs] if isinstance(runs, RunRecord) else list(runs)
    if not 1 <= len(shown) <= MOST_RUNS:
        raise ValueError(f"A report is of 1 to {MOST_RUNS} runs, got {len(shown)}.")
    names = "".join(f"-{run.path.resolve().name}" for run in shown[1:])
    path = shown[0].path / (f"report-with{names}.html" if names else "report.html") if output is None else Path(output)
    page = _render(_distinct(shown))
    with complete_or_absent(path, overwrite=True) as draft:
        draft.write(page.encode(errors="replace"))  # half a surrogate pair in an answer is no character
    return path


def _distinct(runs: Sequence[RunRecord]) -> list[RunRecord]:
    """Runs with names of their own: of equal directory names the parents tell which is which."""
    counts = Counter(run.name for run in runs)
    named: list[RunRecord] = []
    for number, run in enumerate(runs, start=1):
        name = run.name
        if counts[name] > 1:
            name = f"{run.path.resolve().parent.name}/{name}"
        if any(name == other.name for other in named):
            name = f"{name} ({number})"
        named.append(replace(run, name=name))
    return named


def _render(runs: Sequence[RunRecord]) -> str:
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
        from plotly.offline import get_plotlyjs, get_plotlyjs_version
    except ImportError as error:
        raise ImportError(
            "A report needs Plotly and Jinja; install them with: pip install 'agiledpo[report]'."
        ) from error
    compared = len(runs) > 1
    seen = [Seen(run, Lives.of(run), number, f"{run.name}: " if compared else "") for number, run in enumerate(runs)]
    summaries = [Summary.of(run) for run in runs]
    sections = [section for section in _sections(seen, summaries) if section.charts]
    templates = PackageLoader("agiledpo.report")
    environment = Environment(
        loader=templates,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    figures = {chart.key: chart.figure() for section in sections for chart in section.charts}
    style, script = (templates.get_source(environment, name)[0] for name in ("report.css", "report.js"))
    plotly = get_plotlyjs()
    from agiledpo import __version__

    return environment.get_template("report.html").render(
        title=" and ".join(run.name for run in runs),
        runs=runs,
        summaries=summaries,
        compared=compared,
        sections=sections,
        seen=seen,
        questions=list(questions(seen)),
        differing=differing(runs) if compared else [],
        figures_side_by_side=_side_by_side(summaries),
        colophons=[Colophon(run, _facts(run)) for run in runs],
        data=_embedded(figures),
        style=style,
        script=script,
        plotly=plotly,
        # Only these two scripts may run, whatever an answer of a model holds.
        allowed=" ".join(f"'sha256-{_digest(text)}'" for text in (plotly, script)),
        made=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        version=__version__,
        plotly_version=get_plotlyjs_version(),
    )


def _sections(seen: Sequence[Seen], summaries: Sequence[Summary]) -> Iterator[Section]:
    def drawn(which: Sequence[curves.Curve]) -> list[Chart]:
        return [chart for chart in (curves.draw(curve, seen) for curve in which) if chart is not None]

    what = list(dict.fromkeys(summary.what for summary in summaries))
    fitness = panels.fitness_chart(seen, what[0] if len(what) == 1 else "each run's own measure")
    validation = panels.validation_chart(seen)
    yield Section("held-out", "On held-out data", [chart for chart in (fitness, validation) if chart is not None])
    yield Section("learning", "Learning", drawn(curves.LEARNING))
    trees = [chart for chart in map(tree_chart, seen) if chart is not None]
    yield Section("population", "Population and hyperparameters", [*trees, *panels.hyperparameter_charts(seen)])
    yield Section("generations", "What the model writes", [*panels.sample_charts(seen), *drawn(curves.GENERATIONS)])
    yield Section("speed", "Speed and memory", [*drawn(curves.SPEED), *panels.speed_charts(seen)])
    yield Section("others", "All other figures of the log", drawn(curves.other_curves(seen)), folded=True)


def _side_by_side(summaries: Sequence[Summary]) -> list[tuple[str, list[str]]]:
    told = [summary.figures() for summary in summaries]
    names = dict.fromkeys(name for each in told for name in each)
    return [(name, [each.get(name, "–") for each in told]) for name in names]


def _facts(run: RunRecord) -> dict[str, dict[str, str]]:
    about = dict(run.about)
    told: dict[str, dict[str, str]] = {}
    names = ("algorithm", "status", "command", "started", "ended", "processes")
    told["run"] = {
        "directory": str(run.path.resolve()),
        **{n: str(about[n]) for n in names if about.get(n) is not None},
    }
    for name in ("model", "data", "machine", "versions"):
        if isinstance(about.get(name), Mapping):
            told[name] = {key: _fact(value) for key, value in flat(about[name]).items()}
    return told


def _fact(value: Any) -> str:
    return (
        f"{value:,}"
        if isinstance(value, int) and not isinstance(value, bool)
        else "none"
        if value is None
        else str(value)
    )


def _embedded(value: Any) -> str:
    """JSON that cannot end the element that it is in."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"), ensure_ascii=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
