"""Charts as plain dictionaries that plotly.js draws.

Colours are names such as ``@run0``, which the page replaces by those of the light or the dark theme: the colour says
which run, width and strength which agent.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agiledpo.report.series import Series

Trace = dict[str, Any]

# Points of a chart's emphasised lines, each, and of all its other lines together.
POINTS = 1200
POINTS_WITH_BARS = 150
POINTS_OF_OTHERS = 5000


@dataclass
class Chart:
    """One drawing with its words.

    Attributes:
        key: Identifier in the page.
        title: What is shown.
        caption: What it means and how to read it.
        traces: What is drawn.
        layout: The axes.
        height: CSS pixels.
        thinned: Whether points were left out.
        top: Room above the axes, CSS pixels; None for what a legend needs.
    """

    key: str
    title: str
    caption: str
    traces: list[Trace] = field(default_factory=list)
    layout: dict[str, Any] = field(default_factory=dict)
    height: int = 210
    thinned: bool = False
    top: int | None = None

    def add(self, trace: Trace) -> None:
        """Draw one more thing."""
        self.traces.append(trace)

    def line(
        self,
        series: Series,
        *,
        colour: str,
        name: str,
        hover: str,
        width: float = 2.2,
        dash: str = "solid",
        errors: Sequence[float] | None = None,
        markers: bool = False,
        agents: Sequence[int] | None = None,
        shape: str = "linear",
        legend: str | None = None,
    ) -> None:
        """Draw one line.

        Args:
            series: Its points.
            colour: Its colour.
            name: What the legend and hovering call it.
            hover: What hovering says of a point, plotly's template.
            width: Pixels.
            dash: Plotly's name of a dash.
            errors: Standard errors, NaN where one is not known; None for none. Where the hover template has
                ``{error}``, hovering says those that are known.
            markers: Draw the points as well.
            agents: Which agent each point is of; None where that is no question.
            shape: ``"hv"`` for a value that holds until the next point.
            legend: What the legend says; None for no entry.
        """
        kept = series.places(POINTS if errors is None else POINTS_WITH_BARS)
        if len(kept) < len(series):
            self.thinned = True
            series = series.at(kept)
            agents = None if agents is None else [agents[place] for place in kept]
            errors = None if errors is None else [errors[place] for place in kept]
        trace = _scatter(series.steps, series.values, markers or len(series) == 1)
        trace |= {
            "name": legend or name,
            "showlegend": legend is not None,
            "line": {"color": colour, "width": width, "dash": dash, "shape": shape},
            "marker": {"color": colour, "size": 6},
            "hovertemplate": hover,
        }
        if agents is not None:
            trace["customdata"] = list(agents)
        if errors is not None:
            trace["hovertemplate"] = [hover.replace("{error}", error_text(error)) for error in errors]
            trace["error_y"] = error_bars(errors, colour)
        self.add(trace)

    def bundle(
        self,
        lines: Mapping[int, Series],
        *,
        colour: str,
        name: str,
        hover: str,
        width: float = 1.0,
        shape: str = "linear",
    ) -> None:
        """Draw many lines as one trace, so that a large population does not make the page slow.

        Args:
            lines: A line for each agent.
            colour: Of all.
            name: What they are together.
            hover: What hovering says; ``%{customdata}`` is the agent's index.
            width: Pixels.
            shape: As for :meth:`line`.
        """
        if not lines:
            return
        most = max(12, POINTS_OF_OTHERS // len(lines))
        steps: list[float | None] = []
        values: list[float | None] = []
        agents: list[int | None] = []
        for index, series in lines.items():
            drawn = series.thinned(most)
            self.thinned |= len(drawn) < len(series)
            steps += [*drawn.steps, None]
            values += [*(finite(value) for value in drawn.values), None]
            agents += [*[index] * len(drawn), None]
        alone = any(len(series) == 1 for series in lines.values())
        self.add(
            {
                "type": "scatter",
                "mode": "lines+markers" if alone else "lines",
                "x": plain(steps[:-1]),
                "y": values[:-1],
                "customdata": agents[:-1],
                "name": name,
                "showlegend": False,
                "line": {"color": colour, "width": width, "shape": shape},
                "marker": {"color": colour, "size": 3},
                "hovertemplate": hover,
                "connectgaps": False,
            }
        )

    def figure(self) -> dict[str, Any]:
        """What the page draws."""
        legend = any(trace["showlegend"] for trace in self.traces)
        top = self.top or (26 if legend else 10)
        return {"data": self.traces, "layout": self.layout, "height": self.height, "top": top}


def axes(x: str, y: str, **options: Any) -> dict[str, Any]:
    """A layout with a unit on each axis.

    Args:
        x: What the horizontal axis counts.
        y: What the vertical axis measures.
        **options: More of the vertical axis.
    """
    return {"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}, **options}}


def joined(parts: Iterable[tuple[int, Series]]) -> tuple[Series, list[int]]:
    """One line of the parts of several agents, and which agent each point is of."""
    steps: list[float] = []
    values: list[float] = []
    agents: list[int] = []
    for index, series in parts:
        steps += series.steps
        values += series.values
        agents += [index] * len(series)
    return Series(steps, values), agents


def finite(value: float) -> float | None:
    """The number as JSON has it; a gap where it is none."""
    return value if math.isfinite(value) else None


def error_bars(errors: Iterable[float], colour: str) -> dict[str, Any]:
    """Bars for standard errors; none where an error is not known, which is not the same as zero."""
    return {"type": "data", "array": [finite(error) for error in errors], "color": colour, "thickness": 1.2, "width": 3}


def error_text(error: float) -> str:
    """What follows a figure whose standard error is this: nothing where it is not known."""
    return f" ± {error:.2g}" if math.isfinite(error) else ""


def plain(values: Iterable[float | None]) -> list[float | None]:
    """Whole numbers without a decimal point, which are shorter."""
    return [int(value) if value is not None and value == int(value) else value for value in values]


def _scatter(steps: Sequence[float], values: Sequence[float], markers: bool) -> Trace:
    return {
        "type": "scatter",
        "mode": "lines+markers" if markers else "lines",
        "x": plain(steps),
        "y": [finite(value) for value in values],
        "connectgaps": False,
    }
