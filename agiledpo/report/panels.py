"""Charts of what is not simply a figure that agents log: fitness, hyperparameters, pace, sample answers."""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

from agiledpo.hpo.family_tree import value_text
from agiledpo.report.chart import Chart, axes, error_bars, error_text, finite, joined
from agiledpo.report.curves import draw_agents, key_of
from agiledpo.report.record import Answer
from agiledpo.report.seen import Seen, changed_parameters, row_axis
from agiledpo.report.series import Series, mean_of_finite

# Numbers on a logarithmic axis.
_MOST_TICKS = 6

_VALIDATION = re.compile(r"validation-(.+)_accuracy")


def fitness_chart(runs: Sequence[Seen], what: str) -> Chart | None:
    """Held-out fitness with standard errors.

    Args:
        runs: The runs.
        what: What the fitness is.
    """
    if not any(seen.run.evaluated for seen in runs):
        return None
    chart = Chart(
        "fitness",
        f"Fitness: {what}",
        "Each agent on the whole test split; bars are one standard error. Differences within the bars are noise. The "
        "best of several noisy figures flatters itself; the diamond is the final split, by which nothing was chosen.",
        layout=axes(row_axis(runs), "fitness"),
        height=260,
    )
    for seen in runs:
        fitness = seen.run.agents.get(("eval", "fitness"), {})
        errors = seen.run.agents.get(("eval", "fitness_error"), {})
        lines = seen.lives.lines(fitness)
        hover = seen.hover("fitness")
        chart.bundle(lines.gone, colour=f"{seen.colour}-gone", name="replaced", hover=hover, width=0.8)
        chart.bundle(lines.living, colour=f"{seen.colour}-other", name="others", hover=hover, width=1.1)
        series, agents = joined(lines.elite)
        if series:
            known = {index: dict(zip(e.steps, e.values, strict=True)) for index, e in errors.items()}
            bars = [known.get(a, {}).get(step, math.nan) for a, step in zip(agents, series.steps, strict=True)]
            chart.line(
                series,
                colour=seen.colour,
                name="best agent and its ancestors",
                hover=seen.hover("fitness", extra="{error}"),
                agents=agents,
                errors=bars,
                markers=True,
                legend=seen.prefix.rstrip(": ") or None,
            )
        final = seen.run.series.get("final/fitness")
        if final is not None:
            told = seen.run.series.get("final/fitness_error")
            error = math.nan if told is None else told.values[-1]
            diamond = {
                "type": "scatter",
                "mode": "markers",
                "x": list(final.steps[-1:]),
                "y": [finite(final.values[-1])],
                "name": f"{seen.prefix}final split",
                "showlegend": True,
                "marker": {"symbol": "diamond-open", "size": 11, "color": seen.colour, "line": {"width": 2}},
                "hovertemplate": f"{seen.prefix}final split %{{y:.5g}}{error_text(error)}<extra></extra>",
            }
            if math.isfinite(error):
                diamond["error_y"] = error_bars([error], seen.colour)
            chart.add(diamond)
    return chart


def validation_chart(runs: Sequence[Seen]) -> Chart | None:
    """Accuracy on the validation sets.

    Args:
        runs: The runs.
    """
    chart = Chart(
        "validation",
        "Accuracy on validation sets",
        "The fittest agent at each evaluation, on sets by which nothing is selected. Bars, where the number of pairs "
        "is known, are one standard error as if pairs were independent: too short where several share a prompt.",
        layout=axes(row_axis(runs), "share right"),
    )
    dashes = ("solid", "dash", "dot", "dashdot", "longdash")
    for seen in runs:
        found = [
            (match[1], series)
            for name, series in seen.run.series.items()
            # "validation-x_mean_token_accuracy" is another figure of the set x; each set has a loss.
            if (match := _VALIDATION.fullmatch(name)) and f"validation-{match[1]}_loss" in seen.run.series
        ]
        for number, (name, series) in enumerate(found):
            pairs = seen.run.series.get(f"validation-{name}_pairs")
            errors = None
            if pairs is not None and len(pairs) == len(series):
                errors = [
                    math.sqrt(max(p * (1 - p), 0) / (n - 1)) if n > 1 else math.nan
                    for p, n in zip(series.values, pairs.values, strict=True)
                ]
            chart.line(
                series,
                colour=seen.colour,
                name=name,
                hover=f"{seen.prefix}{name} %{{y:.4g}}<br>%{{x:,}} {seen.run.unit}<extra></extra>",
                errors=errors,
                markers=True,
                dash=dashes[number % len(dashes)],
                legend=f"{seen.prefix}{name}",
                width=1.8,
            )
    return chart if chart.traces else None


def hyperparameter_charts(runs: Sequence[Seen]) -> Iterator[Chart]:
    """Learning rate, beta, and every hyperparameter that ever differed between agents or changed.

    Args:
        runs: The runs.
    """
    for name in dict.fromkeys(["lr", "beta", *changed_parameters(runs)]):
        values = [v for seen in runs for s in seen.run.agents.get(("train", name), {}).values() for v in s.values]
        values = [value for value in values if math.isfinite(value)]
        if not values:
            continue
        shown = "learning rate" if name == "lr" else name
        low, high = min(values), max(values)
        log = low > 0 and (name in ("lr", "beta") or high / low >= 10)
        chart = Chart(
            f"parameter-{key_of(name)}",
            shown[:1].upper() + shown[1:],
            "Where a line steps, a mutation or a schedule changed it; children begin with their parent's value."
            if high > low
            else "One value throughout.",
            layout=axes(row_axis(runs), f"{shown}{', log scale' if log else ''}"),
            height=180,
        )
        if log:
            chart.layout["yaxis"] |= _log_axis(low, high)
        for seen in runs:
            draw_agents(chart, seen, "train", name, shown, shape="hv", legend=seen.prefix.rstrip(": ") or None)
        yield chart


def _log_axis(low: float, high: float) -> dict[str, Any]:
    """A logarithmic axis around these values, with a few round numbers on it that read well."""
    room = max(0.12 * math.log10(high / low), 0.12)
    start, stop = math.log10(low) - room, math.log10(high) + room
    decades = range(math.floor(start), math.ceil(stop) + 1)
    for digits in ((1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        ticks = [float(f"{digit}e{decade}") for decade in decades for digit in digits]
        ticks = [tick for tick in ticks if start <= math.log10(tick) <= stop]
        if len(ticks) <= _MOST_TICKS:
            break
    return {
        "type": "log",
        "range": [start, stop],
        "tickvals": ticks or [low, high],
        "ticktext": [value_text(tick) for tick in ticks or [low, high]],
    }


def speed_charts(runs: Sequence[Seen]) -> Iterator[Chart]:
    """Rows per second, and the peak of memory.

    Args:
        runs: The runs.
    """
    chart = Chart(
        "rows-per-second",
        "Pace of the whole run",
        "Rows that each agent got through per second of wall time, evaluation, evolution and samples included.",
        layout=axes(row_axis(runs), "rows/s per agent"),
    )
    for seen in runs:
        elapsed = seen.run.series.get("time/elapsed_seconds")
        if elapsed is None or len(elapsed) < 2:
            continue
        points = list(zip(elapsed.steps, elapsed.values, strict=True))
        rates = [(b - a) / (u - t) if u > t else math.nan for (a, t), (b, u) in pairwise(points)]
        for place in seen.run.attempts:  # a new attempt counts from its own beginning
            rates[place - 1] = math.nan
        pace = Series(elapsed.steps[1:], rates)
        chart.line(
            pace,
            colour=seen.colour,
            name="pace",
            hover=f"{seen.prefix}%{{y:.4g}} rows/s<br>%{{x:,}} {seen.run.unit}<extra></extra>",
            legend=seen.prefix.rstrip(": ") or None,
            width=1.6,
        )
    if chart.traces:
        yield chart
    memory = Chart(
        "memory",
        "Memory",
        "The most that the process has held so far, of its GPU where it has one, otherwise resident; in 10^6 bytes.",
        layout=axes(row_axis(runs), "MB"),
    )
    for seen in runs:
        for name, series in seen.run.series.items():
            if name == "system/peak_memory_mb":
                memory.line(
                    series,
                    colour=seen.colour,
                    name=name,
                    hover=f"{seen.prefix}{name} %{{y:.4g}}<extra></extra>",
                    legend=f"{seen.prefix}{name}",
                    width=1.6,
                )
    if memory.traces:
        yield memory


def sample_charts(runs: Sequence[Seen]) -> Iterator[Chart]:
    """Length and KL drift of the sample answers.

    Args:
        runs: The runs.
    """
    parts: Sequence[tuple[str, str, str, str, Callable[[Answer], float]]] = (
        (
            "sample-length",
            "Length of sample answers",
            "tokens",
            "Line: mean over the prompts; dots: single answers. Before training the untrained model answers.",
            lambda answer: float(answer.tokens),
        ),
        (
            "sample-kl",
            "KL drift of sample answers",
            "nats per token",
            "KL(actor || reference) over the whole vocabulary, mean over the tokens of the answers. It is 0 while the "
            "policy is the reference; sudden growth is a policy that forgets what it was. Answers whose KL is not "
            "finite are left out.",
            lambda answer: answer.kl_per_token,
        ),
    )
    for key, title, unit, caption, value in parts:
        chart = Chart(key, title, caption, layout=axes(row_axis(runs), unit, rangemode="tozero"))
        for seen in runs:
            answers = seen.run.answers
            if not answers:
                continue
            at: defaultdict[float, list[float]] = defaultdict(list)
            for answer in answers:
                at[answer.step].append(value(answer))
            means = Series(list(at), [mean_of_finite(each) for each in at.values()])
            chart.add(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "x": [a.step for a in answers],
                    "y": [finite(value(a)) for a in answers],
                    "name": "answers",
                    "showlegend": False,
                    "marker": {"color": f"{seen.colour}-other", "size": 4},
                    "customdata": [a.row for a in answers],
                    "hovertemplate": f"{seen.prefix}row %{{customdata}}: %{{y:.4g}}<extra></extra>",
                }
            )
            chart.line(
                means,
                colour=seen.colour,
                name="mean",
                hover=f"{seen.prefix}mean %{{y:.4g}}<br>%{{x:,}} {seen.run.unit}<extra></extra>",
                markers=True,
                legend=seen.prefix.rstrip(": ") or None,
            )
        if chart.traces:
            yield chart
