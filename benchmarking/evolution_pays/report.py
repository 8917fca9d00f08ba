"""Tables, and in plain sentences who won."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, geometric_mean, stdev
from typing import Any

from benchmarking.evolution_pays.methods import EVOLUTION, TITLES
from benchmarking.results import markdown_table

Run = Mapping[str, Any]

# What runs of one block agree in; the runs in a block differ in method and seed.
BLOCK = (
    "model",
    "dataset",
    "start",
    "agents",
    "pairs_per_agent",
    "generations",
    "selection",
    "final",
    "batch_size",
    "good_lr",
    "spread",
    "factor",
    "max_length",
)


@dataclass(frozen=True)
class Mean:
    """A mean over seeds.

    Attributes:
        value: The mean.
        error: Its standard error, s / sqrt(n); NaN for one seed.
    """

    value: float
    error: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Mean":
        """The mean of values."""
        return cls(fmean(values), stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan)

    def __str__(self) -> str:
        return f"{self.value:.3f}" if math.isnan(self.error) else f"{self.value:.3f} ± {self.error:.3f}"


def blocks(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs that may be compared, put together; in the order in which the first of each was made."""
    found: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        found.setdefault(tuple(run[name] for name in BLOCK), []).append(run)
    return list(found.values())


def by_method(block: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs of each method, in the order of the table."""
    return {method: [run for run in block if run["method"] == method] for method in TITLES}


def table(block: Sequence[Run]) -> str:
    """The table of a block."""
    header = (
        "method", "final accuracy", "seeds", "margin, nats", "log-loss", "pairs trained", "seconds", "lr", "beta",
    )  # fmt: skip
    rows = []
    for method, runs in by_method(block).items():
        if not runs:
            continue
        rows.append(
            [
                TITLES[method],
                Mean.of([run["accuracy"] for run in runs]),
                len(runs),
                Mean.of([run["margin"] for run in runs]),
                Mean.of([run["log_loss"] for run in runs]),
                f"{fmean(run['pairs'] for run in runs):.0f}",
                f"{fmean(run['seconds'] for run in runs):.3g}",
                f"{geometric_mean(run['lr'] for run in runs):.1e}",
                f"{geometric_mean(run['beta'] for run in runs):.2g}",
            ]
        )
    return markdown_table(header, rows)


def verdicts(block: Sequence[Run]) -> list[str]:
    """How each kind of evolution does against the best other method, and against the best other search."""
    methods = {method: {run["seed"]: run for run in runs} for method, runs in by_method(block).items() if runs}
    others = sorted(
        (method for method in methods if method not in EVOLUTION),
        key=lambda method: fmean(run["accuracy"] for run in methods[method].values()),
        reverse=True,
    )
    # One agent that gets the whole budget is hard to beat; who searches anyway wants to know which search is best.
    rivals = {"method": others[:1], "search": [method for method in others if method != "default"][:1]}
    if rivals["search"] == rivals["method"]:
        del rivals["search"]
    return [
        _verdict(method, best, kind, methods[method], methods[best])
        for method in EVOLUTION
        if method in methods
        for kind, found in rivals.items()
        for best in found
    ]


def _verdict(method: str, best: str, kind: str, own: Mapping[int, Run], other: Mapping[int, Run]) -> str:
    mine, theirs = (Mean.of([run["accuracy"] for run in runs.values()]) for runs in (own, other))
    difference = mine.value - theirs.value
    error = math.hypot(mine.error, theirs.error)
    word = "ahead of" if difference > 0 else "behind" if difference < 0 else "level with"
    amount = "" if difference == 0 else f" by {abs(difference):.3f}"
    if math.isnan(error):
        judgement = "one seed gives no standard error, so that says nothing yet"
    elif abs(difference) > error:
        judgement = f"more than the combined standard error of {error:.3f}"
    else:
        judgement = f"within the combined standard error of {error:.3f}"
    text = f"The {TITLES[method]} ({mine}) is {word} the best other {kind}, {TITLES[best]} ({theirs}){amount}, "
    text += judgement
    seeds = own.keys() & other.keys()
    if len(seeds) > 1:
        differences = [own[seed]["accuracy"] - other[seed]["accuracy"] for seed in sorted(seeds)]
        won, lost = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
        text += (
            f"; seed by seed it won {won}, lost {lost} and tied {len(seeds) - won - lost}, "
            f"with a mean difference of {Mean.of(differences)}"
        )
    return text + "."


def describe(block: Sequence[Run]) -> str:
    """Sizes and ranges of a block."""
    run = block[0]
    lr, beta, spread = run["start_lr"], run["start_beta"], run["spread"]
    return (
        f"{run['agents']} agents of {run['pairs_per_agent']} pairs in {run['generations']} generations, "
        f"{run['agents'] * run['pairs_per_agent']} pairs in all for each method; {run['selection']} selection pairs, "
        f"{run['final']} final pairs; batch {run['batch_size']}. Start: lr {lr:.1e}, beta {beta:.2g}; ranges: "
        f"lr {lr / spread:.1e} to {lr * spread:.1e}, beta {beta / spread:.2g} to {beta * spread:.2g}; a mutation "
        f"multiplies or divides by {run['factor']:g}."
    )
