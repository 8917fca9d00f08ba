"""Draw the final accuracy of every run."""

from collections.abc import Sequence
from pathlib import Path

from benchmarking.evolution_pays.methods import TITLES
from benchmarking.evolution_pays.report import Mean, Run, by_method


def draw(panels: Sequence[tuple[str, Sequence[Run]]], path: Path) -> None:
    """Draw blocks side by side and write them as PNG.

    Args:
        panels: Title and runs of each block.
        path: Of the PNG.

    Raises:
        ImportError: Matplotlib is not installed.
    """
    # Not pyplot: it would look for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6 * len(panels) + 1.4, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    plots = figure.subplots(1, len(panels), squeeze=False, sharey=False)[0]
    for number, (plot, (title, block)) in enumerate(zip(plots, panels, strict=True)):
        methods = {method: [run["accuracy"] for run in runs] for method, runs in by_method(block).items() if runs}
        for place, values in enumerate(methods.values()):
            mean = Mean.of(values)
            plot.plot(values, [place] * len(values), "o", color="0.7", markersize=4)
            plot.errorbar(mean.value, place, xerr=mean.error, fmt="D", color="C0", markersize=5, capsize=4)
        plot.set_yticks(range(len(methods)), [TITLES[method] for method in methods] if number == 0 else [])
        plot.invert_yaxis()
        plot.set_title(title, fontsize="medium")
        plot.set_xlabel("final accuracy")
        plot.grid(axis="x", alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
