"""The family tree of a population, to be drawn in the page."""

import math
from collections.abc import Sequence
from itertools import pairwise

from agiledpo.hpo.family_tree import evolved_parameters, value_text
from agiledpo.hpo.lanes import assign_lanes
from agiledpo.hpo.lineage import AgentHistory, Lineage
from agiledpo.report.chart import Chart, axes, plain
from agiledpo.report.seen import Seen

# From unfit to fit; the page has the colours, light to dark or, in the dark theme, dark to light. Stretches of equal
# colour are one trace.
_SCALE = tuple(f"@fit{number}" for number in range(14))
_UNKNOWN = "#b4b4b4"
_LANE = 36
_BEND = 0.03
_CURVE_POINTS = 8


def tree_chart(seen: Seen) -> Chart | None:
    """Who descends from whom; None without a lineage, or where there has only ever been one agent.

    Args:
        seen: The run.
    """
    lineage = seen.run.lineage
    if lineage is None or len(lineage.agents) < 2:
        return None
    agents = lineage.agents
    lanes = assign_lanes(list(agents.values()), lineage.pairs)
    chart = Chart(
        f"tree-{seen.number}",
        f"Family tree{f' of {seen.run.name}' if seen.prefix else ''}",
        "A lane is a place in the population, a line an agent from birth to end, dark where it was fit (bright in the dark theme). The broad band "
        "leads to the best agent. Curves go from parent to child; a cross is an agent that diverged. Point at a circle "
        "for hyperparameters and mutations.",
        layout=axes(f"{seen.run.unit} seen by each agent", "place in the population"),
        height=min(max(150, 100 + _LANE * (max(lanes.values()) + 1)), 900),
    )
    chart.top = 56
    chart.layout["yaxis"] |= {
        "range": [max(lanes.values()) + 0.7, -0.8],
        "tickvals": [],
        "showgrid": False,
        "zeroline": False,
        "fixedrange": True,
    }
    chain = [agents[index] for index in seen.lives.shares if index in agents]
    _draw_chain(chart, seen, lineage, lanes, chain)
    _draw_branches(chart, lineage, agents, lanes)
    _draw_lives(chart, lineage, agents, lanes)
    _draw_ends(chart, agents, lanes)
    _draw_births(chart, seen, lineage, agents, lanes, chain)
    return chart


def _bend(x0: float, y0: float, x1: float, y1: float) -> tuple[list[float], list[float]]:
    """Points of a curve that leaves and arrives horizontally."""
    parts = [number / _CURVE_POINTS for number in range(_CURVE_POINTS + 1)]
    return [x0 + (x1 - x0) * t for t in parts], [y0 + (y1 - y0) * t * t * (3 - 2 * t) for t in parts]


def _draw_chain(
    chart: Chart, seen: Seen, lineage: Lineage, lanes: dict[int, int], chain: Sequence[AgentHistory]
) -> None:
    if not chain:
        return
    x: list[float] = [chain[0].birth.pairs]
    y: list[float] = [lanes[chain[0].index]]
    for parent, child in pairwise(chain):
        start = max(child.birth.pairs - _BEND * lineage.pairs, parent.birth.pairs)
        bend_x, bend_y = _bend(start, lanes[parent.index], child.birth.pairs, lanes[child.index])
        x += bend_x
        y += bend_y
    x.append(_end(chain[-1], lineage))
    y.append(lanes[chain[-1].index])
    chart.add(
        {
            "type": "scatter",
            "mode": "lines",
            "x": x,
            "y": y,
            "name": f"agent {chain[-1].index} and its ancestors",
            "line": {"color": f"{seen.colour}-band", "width": 13, "simplify": False},
            "hoverinfo": "skip",
            "showlegend": True,
        }
    )


def _draw_branches(chart: Chart, lineage: Lineage, agents: dict[int, AgentHistory], lanes: dict[int, int]) -> None:
    x: list[float | None] = []
    y: list[float | None] = []
    for agent in agents.values():
        if agent.parent is not None:
            birth = agent.birth.pairs
            start = max(birth - _BEND * lineage.pairs, agents[agent.parent].birth.pairs)
            bend_x, bend_y = _bend(start, lanes[agent.parent], birth, lanes[agent.index])
            x += [*bend_x, None]
            y += [*bend_y, None]
    if x:
        chart.add(
            {
                "type": "scatter",
                "mode": "lines",
                "x": x,
                "y": y,
                "name": "copied from",
                "hoverinfo": "skip",
                "showlegend": False,
                "line": {"color": "@muted", "width": 1.1},
            }
        )


def _draw_lives(chart: Chart, lineage: Lineage, agents: dict[int, AgentHistory], lanes: dict[int, int]) -> None:
    known = [e.fitness for agent in agents.values() for e in agent.evaluations if math.isfinite(e.fitness)]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    strokes: dict[str, tuple[list[float | None], list[float | None]]] = {}
    for agent in agents.values():
        stops = [agent.birth.pairs, *(e.pairs for e in agent.evaluations), _end(agent, lineage)]
        # A stretch has the colour of the evaluation that ends it; what comes after the last one keeps its colour.
        fitness = [e.fitness for e in agent.evaluations]
        fitness.append(fitness[-1] if fitness else math.nan)
        for (start, stop), value in zip(pairwise(stops), fitness, strict=True):
            x, y = strokes.setdefault(_colour(value, low, high), ([], []))
            x += [start, stop, None]
            y += [lanes[agent.index], lanes[agent.index], None]
    for colour in sorted(strokes):
        x, y = strokes[colour]
        chart.add(
            {
                "type": "scatter",
                "mode": "lines",
                "x": plain(x),
                "y": y,
                "hoverinfo": "skip",
                "showlegend": False,
                "line": {"color": colour, "width": 5},
            }
        )
    if known:
        chart.add(
            {
                "type": "scatter",
                "mode": "markers",
                "x": [None],
                "y": [None],
                "showlegend": False,
                "hoverinfo": "skip",
                "marker": {
                    "color": [low],
                    "cmin": low,
                    "cmax": high if high > low else low + 1e-9,
                    "showscale": True,
                    "colorscale": [[n / (len(_SCALE) - 1), colour] for n, colour in enumerate(_SCALE)],
                    "colorbar": {
                        "orientation": "h",
                        "thickness": 7,
                        "len": 0.3,
                        "x": 1,
                        "xanchor": "right",
                        "y": 1,
                        "yanchor": "bottom",
                        "outlinewidth": 0,
                        "ypad": 2,
                        "nticks": 4,
                        "ticklabelposition": "outside top",
                        "title": {"text": "fitness", "side": "right", "font": {"size": 11, "color": "@soft"}},
                        "tickfont": {"size": 11},
                        "tickvals": _two(low, high),
                        "ticktext": [f"{value:.3g}" for value in _two(low, high)],
                    },
                },
            }
        )


def _two(low: float, high: float) -> list[float]:
    return [low, high] if high > low else [low]


def _draw_ends(chart: Chart, agents: dict[int, AgentHistory], lanes: dict[int, int]) -> None:
    for name, symbol, ended in (
        ("diverged", "x-thin", [a for a in agents.values() if a.diverged is not None]),
        ("replaced", "line-ns", [a for a in agents.values() if a.diverged is None and a.replaced is not None]),
    ):
        if ended:
            chart.add(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": name,
                    "showlegend": True,
                    "x": [agent.died for agent in ended],
                    "y": [lanes[agent.index] for agent in ended],
                    "marker": {
                        "symbol": symbol,
                        "size": 10 if name == "diverged" else 9,
                        "color": "@ink",
                        "line": {"color": "@ink", "width": 2 if name == "diverged" else 1.3},
                    },
                    "text": [_reason(agent) for agent in ended],
                    "hovertemplate": "%{text}<extra></extra>",
                }
            )


def _reason(agent: AgentHistory) -> str:
    if agent.diverged is not None:
        return f"agent {agent.index} diverged after {agent.diverged.pairs:,}"
    return f"agent {agent.index} was replaced after {agent.died:,}"


def _draw_births(
    chart: Chart,
    seen: Seen,
    lineage: Lineage,
    agents: dict[int, AgentHistory],
    lanes: dict[int, int],
    chain: Sequence[AgentHistory],
) -> None:
    parameters = evolved_parameters(lineage)
    on_chain = {agent.index for agent in chain}
    labels = [
        str(agent.index)
        # A number over every short life would be a smear; the best agent's ancestors keep theirs.
        if agent.index in on_chain or _end(agent, lineage) - agent.birth.pairs >= 0.03 * lineage.pairs
        else ""
        for agent in agents.values()
    ]
    chart.add(
        {
            "type": "scatter",
            "mode": "markers+text",
            "x": [agent.birth.pairs for agent in agents.values()],
            "y": [lanes[agent.index] for agent in agents.values()],
            "text": labels,
            "textposition": "top right",
            "textfont": {"size": 11, "color": [seen.colour if i in on_chain else "@ink" for i in agents]},
            "marker": {
                "size": 7,
                "color": "@paper",
                "line": {"width": 2, "color": [seen.colour if i in on_chain else "@muted" for i in agents]},
            },
            "hovertext": [_story(agent, parameters) for agent in agents.values()],
            "hovertemplate": "%{hovertext}<extra></extra>",
            "showlegend": False,
            "cliponaxis": False,
            "name": "agents",
        }
    )


def _story(agent: AgentHistory, parameters: Sequence[str]) -> str:
    """What hovering tells of an agent."""
    origin = "a founder" if agent.parent is None else f"copied from agent {agent.parent} after {agent.birth.pairs:,}"
    told = [f"<b>agent {agent.index}</b>, {origin}"]
    for name in parameters:
        values = list(dict.fromkeys(value_text(value) for _, value in agent.values(name)))
        if values:
            told.append(f"{name}: {' → '.join(values[:1] + values[-1:] if len(values) > 3 else values)}")
    if agent.evaluations:
        last = agent.evaluations[-1]
        error = "" if math.isnan(last.error) else f" ± {last.error:.3f}"
        told.append(f"last fitness {last.fitness:.4g}{error}")
    if agent.diverged is not None or agent.replaced is not None:
        told.append(_reason(agent))
    return "<br>".join(told)


def _colour(fitness: float, low: float, high: float) -> str:
    if not math.isfinite(fitness):
        return _UNKNOWN
    place = 1.0 if high <= low else (fitness - low) / (high - low)
    return _SCALE[min(int(place * len(_SCALE)), len(_SCALE) - 1)]


def _end(agent: AgentHistory, lineage: Lineage) -> int:
    return lineage.pairs if agent.died is None else agent.died
