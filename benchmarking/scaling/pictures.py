"""Draw the panels of an axis."""

from collections.abc import Sequence
from pathlib import Path

from benchmarking.scaling.axes import Panel


def draw(panels: Sequence[Panel], label: str, title: str, path: Path) -> None:
    """Draw panels side by side over a logarithmic axis and write them as PNG.

    Args:
        panels: The panels.
        label: What is on the horizontal axis.
        title: Above the picture.
        path: Of the PNG.

    Raises:
        ImportError: Matplotlib is not installed.
    """
    # Not pyplot: it would look for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(panels), 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    for plot, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for name, points in panel.lines.items():
            plot.plot(*zip(*points, strict=True), marker="o", markersize=4, label=name)
        positions = sorted({x for points in panel.lines.values() for x, _ in points})
        plot.set_xscale("log")
        plot.set_xticks(positions, [f"{x:,.6g}" for x in positions], minor=False)
        plot.minorticks_off()
        plot.set_ylim(bottom=0)
        plot.set_xlabel(label)
        plot.set_ylabel(panel.label)
        plot.grid(alpha=0.3)
        plot.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
