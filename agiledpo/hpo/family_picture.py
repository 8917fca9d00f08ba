"""The picture of a lineage; importing this module needs Matplotlib, and never pyplot or a display.

Everything is drawn over the pairs seen. What leads to the elite, ancestors and values alike, stands out in one colour;
fitness is a scale from light to dark that keeps its order in grey and for colour-blind readers.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Curve
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import Bbox

from agiledpo.hpo.family_tree import value_text
from agiledpo.hpo.lanes import assign_lanes
from agiledpo.hpo.lineage import AgentHistory, Lineage
from agiledpo.hpo.records import Final, Selected, Value

_ELITE = "#d55e00"  # vermilion of Okabe and Ito's palette
_OTHERS = "#8c8c8c"
_UNKNOWN = "#c8c8c8"
# Viridis without its yellow end, which is lost on white; dark is fit.
_FITNESS = ListedColormap([matplotlib.colormaps["viridis"](0.9 * (1 - i / 255)) for i in range(256)]).with_extremes(
    bad=_UNKNOWN
)

_CURVE = [Curve.CURVE4] * 3
_LANE_INCHES = 0.3
_PANEL_INCHES = 1.7
# From this ratio of largest to smallest on, an axis of positive numbers is logarithmic.
_LOG_RATIO = 3.0


def draw_lineage(lineage: Lineage, parameters: Sequence[str]) -> Figure:
    """Draw a lineage.

    Args:
        lineage: The lineage.
        parameters: Hyperparameters to show, one panel each.

    Returns:
        A figure with the tree, fitness and one panel per parameter, in this order. What belongs to one agent has the
        group id ``<panel>-<index>``, as in ``fitness-3``; the elite's line is ``<panel>-elite``.

    Raises:
        ValueError: Nothing is recorded, or no agent has one of the parameters.
    """
    agents = lineage.agents
    if not agents:
        raise ValueError("The lineage is empty; there is nothing to draw before the first agent is born.")
    for parameter in parameters:
        if not any(agent.values(parameter) for agent in agents.values()):
            names = dict.fromkeys(name for agent in agents.values() for name in agent.hyperparameters())
            raise ValueError(f"parameters names {parameter!r}, which no agent has; there are {', '.join(names)}.")
    elite = lineage.elite
    chain = [] if elite is None else [agents[index] for index in lineage.ancestry(elite)]
    lanes = assign_lanes(list(agents.values()), lineage.pairs)

    heights = [max(1.2, _LANE_INCHES * (max(lanes.values()) + 1)), *[_PANEL_INCHES] * (1 + len(parameters))]
    figure = Figure(figsize=(9.0, sum(heights) + 1.4), layout="constrained")
    tree, fitness, *panels = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0]
    _draw_tree(tree, lineage, agents, lanes, chain)
    _draw_fitness(fitness, lineage, agents, chain)
    for panel, parameter in zip(panels, parameters, strict=True):
        _draw_parameter(panel, parameter, lineage, agents, lanes, chain)
    for axes in (tree, fitness, *panels):
        axes.spines[["top", "right"]].set_visible(False)
        for selection in lineage.of(Selected):
            axes.axvline(selection.pairs, color="#e4e4e4", linewidth=0.8, zorder=0)
    last = (tree, fitness, *panels)[-1]
    last.set_xlabel("preference pairs seen by each agent")
    last.xaxis.set_major_formatter(FuncFormatter(lambda pairs, _: f"{pairs:,.0f}"))
    last.set_xlim(0, max(1, lineage.pairs) * 1.03)
    figure.align_ylabels()
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure so that the same figure gives the same file.

    Args:
        figure: The figure.
        path: File to write; its ending decides the format.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The layout's last digits depend on addresses in memory, and names of parts in an SVG on those digits.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        axes.set_position(Bbox(np.round(axes.get_position(original=True).get_points(), 4)))
    # SVG alone would carry the date, and random names of its parts.
    metadata = {"Date": None} if path.suffix.lower() == ".svg" else {}
    with matplotlib.rc_context({"svg.hashsalt": "agiledpo"}):
        figure.savefig(path, dpi=150, metadata=metadata)


# The tree -----------------------------------------------------------------------------------------------------------


def _draw_tree(
    axes: Axes, lineage: Lineage, agents: dict[int, AgentHistory], lanes: dict[int, int], chain: list[AgentHistory]
) -> None:
    known = [e.fitness for agent in agents.values() for e in agent.evaluations if math.isfinite(e.fitness)]
    scale = ScalarMappable(Normalize(min(known), max(known)) if known else Normalize(0, 1), _FITNESS)
    bend = 0.03 * lineage.pairs
    for agent in agents.values():
        lane, birth, end = lanes[agent.index], agent.birth.pairs, _end(agent, lineage)
        if agent.parent is not None:
            start = max(birth - bend, agents[agent.parent].birth.pairs)
            axes.add_patch(
                PathPatch(
                    Curve(_bend(start, lanes[agent.parent], birth, lane), [Curve.MOVETO, *_CURVE]),
                    fill=False,
                    edgecolor=_OTHERS,
                    linewidth=1.0,
                    zorder=1,
                    gid=f"branch-{agent.index}",
                )
            )
        stops = [birth, *(e.pairs for e in agent.evaluations), end]
        # A stretch has the colour of the evaluation that ends it; what comes after the last one keeps its colour.
        fitness = [e.fitness for e in agent.evaluations]
        fitness.append(fitness[-1] if fitness else math.nan)
        axes.add_collection(
            LineCollection(
                [[(x0, lane), (x1, lane)] for x0, x1 in pairwise(stops)],
                colors=scale.to_rgba(np.where(np.isfinite(fitness), fitness, np.nan)),
                linewidths=4.0,
                capstyle="butt",
                zorder=3,
                gid=f"life-{agent.index}",
            )
        )
        if agent.diverged is not None:
            axes.plot(
                [agent.diverged.pairs], [lane], "x", color="black", markersize=8, markeredgewidth=2, zorder=5,
                gid=f"diverged-{agent.index}",
            )  # fmt: skip
        elif agent.replaced is not None:
            axes.plot([end], [lane], "|", color=_OTHERS, markersize=9, markeredgewidth=1.5, zorder=2)
        on_chain = agent.index in [ancestor.index for ancestor in chain]
        # A number over every short life would be a smear; the elite's ancestors keep theirs.
        if on_chain or end - birth >= (0.006 + 0.01 * len(str(agent.index))) * lineage.pairs:
            axes.annotate(
                str(agent.index), (birth, lane), (3, 5), textcoords="offset points", fontsize=8, zorder=6,
                color=_ELITE if on_chain else "black", fontweight="bold" if on_chain else "normal",
            )  # fmt: skip
    if chain:
        axes.add_patch(
            PathPatch(
                _chain_path(chain, lanes, bend, _end(chain[-1], lineage)),
                fill=False,
                edgecolor=_ELITE,
                alpha=0.45,
                linewidth=9.0,
                capstyle="round",
                joinstyle="round",
                zorder=2,
                gid="tree-elite",
            )
        )
    axes.set_ylim(max(lanes.values()) + 0.6, -0.9)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_ylabel("agents")
    legend = axes.legend(
        handles=_legend(lineage, agents, chain), loc="lower left", bbox_to_anchor=(-0.01, 1.02), ncols=3, frameon=False,
        borderaxespad=0, fontsize="small", columnspacing=1.2,
    )  # fmt: skip
    if known:
        # Side by side with the legend, which must not push it up.
        legend.set_in_layout(False)
        axes.figure.colorbar(
            scale, ax=axes, location="top", anchor=(1.0, 0.0), shrink=0.35, aspect=28, pad=0.02, label="fitness"
        )


def _bend(x0: float, y0: float, x1: float, y1: float) -> list[tuple[float, float]]:
    """Points of a cubic Bezier curve that leaves and arrives horizontally."""
    middle = (x0 + x1) / 2
    return [(x0, y0), (middle, y0), (middle, y1), (x1, y1)]


def _chain_path(chain: list[AgentHistory], lanes: dict[int, int], bend: float, end: float) -> Curve:
    """Along each ancestor up to where the next one branches off, and along the elite to its end."""
    vertices: list[tuple[float, float]] = [(chain[0].birth.pairs, lanes[chain[0].index])]
    codes = [Curve.MOVETO]
    for parent, child in pairwise(chain):
        leaves = max(child.birth.pairs - bend, parent.birth.pairs)
        vertices += _bend(leaves, lanes[parent.index], child.birth.pairs, lanes[child.index])
        codes += [Curve.LINETO, *_CURVE]
    vertices.append((end, lanes[chain[-1].index]))
    codes.append(Curve.LINETO)
    return Curve(vertices, codes)


def _end(agent: AgentHistory, lineage: Lineage) -> int:
    return lineage.pairs if agent.died is None else agent.died


# The panels below it ------------------------------------------------------------------------------------------------


def _draw_fitness(axes: Axes, lineage: Lineage, agents: dict[int, AgentHistory], chain: list[AgentHistory]) -> None:
    for agent in agents.values():
        _error_bars(axes, [(e.pairs, e.fitness, e.error) for e in agent.evaluations], _OTHERS, f"fitness-{agent.index}")
    shares = _shares(chain)
    path = [e for agent in chain for e in agent.evaluations if e.pairs <= shares.get(agent.index, math.inf)]
    _error_bars(axes, [(e.pairs, e.fitness, e.error) for e in path], _ELITE, "fitness-elite")
    for final in lineage.of(Final):
        if math.isfinite(final.fitness):
            axes.errorbar(
                [final.pairs], [final.fitness], [final.error if math.isfinite(final.error) else 0.0], fmt="D",
                markersize=6, color="black", markerfacecolor="white", capsize=3, zorder=6, clip_on=False,
                gid=f"final-{final.agent}",
            )  # fmt: skip
    axes.set_ylabel("fitness")
    axes.grid(axis="y", alpha=0.3)


def _shares(chain: list[AgentHistory]) -> dict[int, int]:
    """Until when each ancestor belongs to the elite's history: the next one was copied from it then."""
    return {parent.index: child.birth.pairs for parent, child in pairwise(chain)}


def _error_bars(axes: Axes, points: list[tuple[int, float, float]], color: str, gid: str) -> None:
    points = [point for point in points if math.isfinite(point[1])]
    if points:
        pairs, fitness, errors = zip(*points, strict=True)
        emphasis = color == _ELITE
        axes.errorbar(
            pairs, fitness, [error if math.isfinite(error) else 0.0 for error in errors], color=color, marker="o",
            markersize=4.5 if emphasis else 3, linewidth=2 if emphasis else 0.9, elinewidth=1.2 if emphasis else 0.8,
            capsize=2.5 if emphasis else 0, alpha=1 if emphasis else 0.6, zorder=4 if emphasis else 2, gid=gid,
        )  # fmt: skip


def _draw_parameter(
    axes: Axes,
    parameter: str,
    lineage: Lineage,
    agents: dict[int, AgentHistory],
    lanes: dict[int, int],
    chain: list[AgentHistory],
) -> None:
    histories = {agent.index: agent.values(parameter) for agent in agents.values()}
    everything = [value for history in histories.values() for _, value in history]
    numeric = all(_is_number(value) for value in everything)
    names = list(dict.fromkeys(value_text(value) for value in everything))
    spread = 0.5 / (max(lanes.values()) + 1)

    def height(value: Value) -> float:
        return float(value) if numeric and isinstance(value, (int, float)) else names.index(value_text(value))

    lines = {index: [(pairs, height(value)) for pairs, value in history] for index, history in histories.items()}
    shares = _shares(chain)
    elite: list[tuple[int, float]] = []
    for agent in chain:
        # A mutation of an ancestor at the very moment of copying came after the copy.
        own = [point for point in lines[agent.index] if point[0] < shares.get(agent.index, math.inf)]
        elite += _until(shares.get(agent.index, _end(agent, lineage)), own)
    _steps(axes, elite, _ELITE, f"{parameter}-elite")
    for agent in agents.values():
        line = lines[agent.index]
        if not numeric:
            # Lines of one choice run side by side, in the order of the tree, and none doubles the elite's.
            beside = spread * (lanes[agent.index] - max(lanes.values()) / 2)
            line = [(pairs, position + beside) for pairs, position in line]
            if agent.index in [ancestor.index for ancestor in chain]:
                line = _since(shares.get(agent.index, _end(agent, lineage)), line)
        _steps(axes, _until(_end(agent, lineage), line), _OTHERS, f"{parameter}-{agent.index}")

    axes.set_ylabel(parameter)
    if not numeric:
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        return
    axes.grid(axis="y", alpha=0.3)
    numbers = [float(value) for value in everything if isinstance(value, (int, float))]
    if min(numbers) > 0 and max(numbers) / min(numbers) >= _LOG_RATIO:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(numbers) / min(numbers) < 50 else (1,)))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=all(isinstance(value, int) for value in everything)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda number, _: value_text(float(number))))


def _until(end: int, line: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """A line that steps at its points, led on to its end."""
    return [*line, (end, line[-1][1])] if line else []


def _since(start: int, line: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """What of a line that steps at its points lies at or after a start."""
    before = [(start, position) for pairs, position in line if pairs <= start]
    return before[-1:] + [point for point in line if point[0] > start]


def _is_number(value: Value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _steps(axes: Axes, points: list[tuple[int, float]], color: str, gid: str) -> None:
    if points:
        pairs, values = zip(*points, strict=True)
        emphasis = color == _ELITE
        axes.plot(
            pairs, values, color=color, drawstyle="steps-post", linewidth=2.2 if emphasis else 1.1,
            alpha=1 if emphasis else 0.7, zorder=4 if emphasis else 2, gid=gid,
        )  # fmt: skip


def _legend(lineage: Lineage, agents: dict[int, AgentHistory], chain: list[AgentHistory]) -> list[Line2D]:
    handles = []
    if chain:
        handles.append(Line2D([], [], color=_ELITE, linewidth=4, label=f"agent {chain[-1].index} and its ancestors"))
    handles.append(Line2D([], [], color=_OTHERS, linewidth=1.2, label="other agents"))
    if any(agent.diverged is not None for agent in agents.values()):
        handles.append(
            Line2D([], [], color="black", marker="x", markersize=7, markeredgewidth=2, linestyle="", label="diverged")
        )
    if any(agent.replaced is not None for agent in agents.values()):
        handles.append(
            Line2D([], [], color=_OTHERS, marker="|", markersize=9, markeredgewidth=1.5, linestyle="", label="replaced")
        )
    if splits := list(dict.fromkeys(final.split for final in lineage.of(Final))):
        handles.append(
            Line2D(
                [], [], color="black", marker="D", markerfacecolor="white", linestyle="",
                label=f"reported on {' and '.join(splits)}",
            )
        )  # fmt: skip
    return handles
