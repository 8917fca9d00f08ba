"""The quantities along which speed and memory are measured: the points of each, its table and its picture."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

Point = dict[str, Any]
Figures = Mapping[str, Any]
DTYPES = ("float32", "bfloat16")

# Tokens of each completion where lengths are chosen and not those of the given pairs.
COMPLETION = 48


@dataclass(frozen=True)
class Panel:
    """One set of lines.

    Attributes:
        label: What is on the vertical axis.
        lines: Points (x, y) of each line by its name.
    """

    label: str
    lines: Mapping[str, Sequence[tuple[float, float]]]


@dataclass(frozen=True)
class Axis:
    """A quantity that is varied.

    Attributes:
        title: Heading of its table.
        note: What the columns mean.
        label: What is on the picture's horizontal axis, which is logarithmic.
        points: What is measured; given whether it must be quick.
        table: Header and rows, from the medians at each point.
        panels: The picture, from the same.
    """

    title: str
    note: str
    label: str
    points: Callable[[bool], list[Point]]
    table: Callable[[Sequence[Figures]], tuple[list[str], list[list[object]]]]
    panels: Callable[[Sequence[Figures]], list[Panel]]


def medians(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One set of figures for each point, in the order in which points first occur.

    Args:
        runs: Each with a ``point`` and the ``figures`` measured there.

    Returns:
        The point's values, the median of each figure, and ``repeats``.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        groups.setdefault(repr(sorted(run["point"].items())), []).append(run)
    return [
        {
            **group[0]["point"],
            **{
                name: median(values)
                for name in group[0]["figures"]
                if (values := [run["figures"][name] for run in group if run["figures"].get(name) is not None])
            },
            "repeats": len(group),
        }
        for group in groups.values()
    ]


def _speed(figures: Figures) -> float:
    """Pairs per second, those of all agents counted."""
    return float(figures["pairs"] * figures.get("agents", 1) / figures["seconds"])


def _at(all_figures: Sequence[Figures], **values: Any) -> Figures | None:
    """The figures of the point that has these values."""
    return next((f for f in all_figures if all(f[name] == value for name, value in values.items())), None)


def _lines(
    all_figures: Sequence[Figures], x: str, y: Callable[[Figures], float | None], name: Callable[[Figures], str]
) -> dict[str, list[tuple[float, float]]]:
    lines: dict[str, list[tuple[float, float]]] = {}
    for figures in all_figures:
        value = y(figures)
        if value is not None:
            lines.setdefault(name(figures), []).append((figures[x], value))
    return {key: sorted(points) for key, points in lines.items()}


# Batch size ---------------------------------------------------------------------------------------------------------


def _batch_points(quick: bool) -> list[Point]:
    return [
        {"dtype": dtype, "batch_size": size}
        for dtype in (DTYPES[1:] if quick else DTYPES)
        for size in ((1, 8) if quick else (1, 2, 4, 8, 16))
    ]


def _batch_table(all_figures: Sequence[Figures]) -> tuple[list[str], list[list[object]]]:
    rows = [
        [f["dtype"], f["batch_size"], f"{_speed(f):.2f}", f"{f['tokens'] / f['seconds']:.0f}", round(f["peak_mb"])]
        for f in all_figures
    ]
    return ["dtype", "batch size", "pairs/s", "tokens/s", "peak MB"], list(rows)


def _speed_and_memory(x: str) -> Callable[[Sequence[Figures]], list[Panel]]:
    def panels(all_figures: Sequence[Figures]) -> list[Panel]:
        return [
            Panel("pairs/s", _lines(all_figures, x, _speed, lambda f: f["dtype"])),
            Panel("peak memory, MB", _lines(all_figures, x, lambda f: f["peak_mb"], lambda f: f["dtype"])),
        ]

    return panels


# Prompt length against completion length ------------------------------------------------------------------------------


def token_ratio(prompt: float, completion: float) -> float:
    """How many times more tokens a pair has if its prompt stands before each of its two completions.

    Args:
        prompt: Tokens.
        completion: Tokens of one completion, on average over both.
    """
    return 2 * (prompt + completion) / (prompt + 2 * completion)


def _ratio_points(quick: bool) -> list[Point]:
    return [
        {"dtype": dtype, "prompt": prompt, "completion": COMPLETION, "prefix_sharing": sharing}
        for dtype in (DTYPES[1:] if quick else DTYPES)
        for prompt in ((COMPLETION, 4 * COMPLETION) if quick else (12, 24, 48, 96, 192, 384))
        for sharing in (True, False)
    ]


def _gain(figures: Figures, all_figures: Sequence[Figures]) -> float | None:
    """Speed with a shared prompt over that without."""
    apart = _at(all_figures, dtype=figures["dtype"], prompt=figures["prompt"], prefix_sharing=False)
    return None if apart is None else _speed(figures) / _speed(apart)


def _ratio_table(all_figures: Sequence[Figures]) -> tuple[list[str], list[list[object]]]:
    rows: list[list[object]] = []
    for f in all_figures:
        if f["prefix_sharing"] is not True:
            continue
        apart = _at(all_figures, dtype=f["dtype"], prompt=f["prompt"], prefix_sharing=False)
        gain, tokens = _gain(f, all_figures), token_ratio(f["prompt"], f["completion"])
        rows.append(
            [
                f["dtype"],
                f"{f['prompt'] / f['completion']:g}",
                f"{_speed(f):.2f}",
                None if apart is None else f"{_speed(apart):.2f}",
                None if gain is None else f"{gain:.2f}",
                f"{tokens:.2f}",
                None if gain is None else f"{100 * gain / tokens:.0f} %",
                round(f["peak_mb"]),
                None if apart is None else round(apart["peak_mb"]),
            ]
        )
    header = ["dtype", "prompt / completion", "pairs/s shared", "pairs/s apart", "gain", "token ratio"]
    return [*header, "gain / token ratio", "peak MB shared", "peak MB apart"], rows


def _ratio_panels(all_figures: Sequence[Figures]) -> list[Panel]:
    figures = [{**f, "ratio": f["prompt"] / f["completion"]} for f in all_figures]
    shared = [f for f in figures if f["prefix_sharing"] is True]
    gains = _lines(shared, "ratio", lambda f: _gain(f, all_figures), lambda f: f["dtype"])
    tokens = {f["ratio"]: token_ratio(f["prompt"], f["completion"]) for f in shared}
    names = {True: "shared", False: "apart"}
    return [
        Panel("pairs/s", _lines(figures, "ratio", _speed, lambda f: f"{f['dtype']}, {names[f['prefix_sharing']]}")),
        Panel("gain of prefix sharing", {**gains, "token ratio": sorted(tokens.items())}),
    ]


# Population ---------------------------------------------------------------------------------------------------------


def _population_points(quick: bool) -> list[Point]:
    return [
        {"dtype": dtype, "agents": agents}
        for dtype in (DTYPES[1:] if quick else DTYPES)
        for agents in ((1, 2) if quick else (1, 2, 4, 8))
    ]


def _relative(figures: Figures, all_figures: Sequence[Figures], value: Callable[[Figures], float]) -> float | None:
    """A value against that of a single agent."""
    alone = _at(all_figures, dtype=figures["dtype"], agents=1)
    return None if alone is None else value(figures) / value(alone)


def _time_per_agent(figures: Figures) -> float:
    return float(figures["seconds"] / figures["agents"])


def _peak(figures: Figures) -> float:
    return float(figures["peak_mb"])


def _population_table(all_figures: Sequence[Figures]) -> tuple[list[str], list[list[object]]]:
    rows: list[list[object]] = []
    for f in all_figures:
        time, memory = (_relative(f, all_figures, value) for value in (_time_per_agent, _peak))
        rows.append(
            [
                f["dtype"],
                f["agents"],
                f"{_speed(f):.2f}",
                None if time is None else f"{time:.2f} x",
                round(f["peak_mb"]),
                None if memory is None else f"{memory:.2f} x",
            ]
        )
    return ["dtype", "agents", "pairs/s, all agents", "time per agent", "peak MB", "peak memory"], rows


def _population_panels(all_figures: Sequence[Figures]) -> list[Panel]:
    def panel(label: str, value: Callable[[Figures], float]) -> Panel:
        lines = _lines(all_figures, "agents", lambda f: _relative(f, all_figures, value), lambda f: f["dtype"])
        return Panel(label, lines)

    return [panel("time per agent / one agent's", _time_per_agent), panel("peak memory / one agent's", _peak)]


# Dataset rows -------------------------------------------------------------------------------------------------------


def _row_points(quick: bool) -> list[Point]:
    return [{"rows": rows} for rows in ((1_000, 10_000) if quick else (1_000, 10_000, 100_000, 1_000_000))]


def _row_table(all_figures: Sequence[Figures]) -> tuple[list[str], list[list[object]]]:
    base = _at(all_figures, rows=10_000)
    rows: list[list[object]] = [
        [
            f"{f['rows']:,}",
            f"{f['cold_seconds']:.2f}" if "cold_seconds" in f else None,
            f"{f['warm_seconds']:.3f}",
            None if base is None else f"{f['warm_seconds'] / base['warm_seconds']:.2f} x",
            f"{f['to_first_step_seconds']:.2f}",
            None if base is None else f"{f['to_first_step_seconds'] / base['to_first_step_seconds']:.2f} x",
            f"{f['anonymous_mb']:.1f}",
            f"{f['file_mb']:.1f}",
        ]
        for f in all_figures
    ]
    header = [
        "rows",
        "first batch s, tokenising",
        "s, cached",
        "against 10,000 rows",
        "first step s, cached",
        "against 10,000 rows",
        "resident MB",
        "mapped file MB",
    ]
    return header, rows


def _row_panels(all_figures: Sequence[Figures]) -> list[Panel]:
    seconds = _lines(all_figures, "rows", lambda f: f["warm_seconds"], lambda _: "tokens cached")
    memory = _lines(all_figures, "rows", lambda f: f["anonymous_mb"], lambda _: "anonymous")
    mapped = _lines(all_figures, "rows", lambda f: f["file_mb"], lambda _: "mapped files")
    return [Panel("seconds to the first batch", seconds), Panel("resident memory beyond imports, MB", memory | mapped)]


# Vocabulary ---------------------------------------------------------------------------------------------------------


def _vocabulary_points(quick: bool) -> list[Point]:
    return [
        {"dtype": "float32", "vocabulary": vocabulary, "prompt": 2 * completion, "completion": completion}
        for vocabulary in ((32_000, 128_000) if quick else (32_000, 64_000, 128_000, 256_000))
        for completion in (32, 128)
    ]


def full_logits_mb(figures: Figures) -> float:
    """Float32 logits at all positions of all rows of a batch, MB: what a trainer that makes them holds at least once.

    Args:
        figures: ``vocabulary``, ``prompt``, ``completion`` and ``batch_size``.
    """
    rows = 2 * figures["batch_size"]
    return float(rows * (figures["prompt"] + figures["completion"]) * figures["vocabulary"] * 4 / 1e6)


def _own_memory(figures: Figures) -> float:
    return float(figures["step_peak_mb"] - figures["resident_mb"])


def _vocabulary_table(all_figures: Sequence[Figures]) -> tuple[list[str], list[list[object]]]:
    rows: list[list[object]] = [
        [
            f"{f['vocabulary']:,}",
            f["prompt"] + f["completion"],
            round(f["weights_mb"]),
            round(f["step_peak_mb"]),
            round(_own_memory(f)),
            round(full_logits_mb(f)),
        ]
        for f in all_figures
    ]
    return ["vocabulary", "tokens per sequence", "weights MB", "peak MB", "of it the step's MB", "full logits MB"], rows


def _vocabulary_panels(all_figures: Sequence[Figures]) -> list[Panel]:
    def name(figures: Figures) -> str:
        return f"{figures['prompt'] + figures['completion']} tokens"

    steps = _lines(all_figures, "vocabulary", _own_memory, name)
    logits = _lines(all_figures, "vocabulary", full_logits_mb, lambda f: f"full logits, {name(f)}")
    peaks = _lines(all_figures, "vocabulary", lambda f: f["step_peak_mb"], name)
    weights = _lines(all_figures, "vocabulary", lambda f: f["weights_mb"], lambda _: "weights")
    return [Panel("peak memory, MB", peaks | weights), Panel("memory of a step beyond the weights, MB", steps | logits)]


AXES: dict[str, Axis] = {
    "batch": Axis(
        "Batch size",
        "The given pairs, one agent, the reference's pass included.",
        "pairs per step",
        _batch_points,
        _batch_table,
        _speed_and_memory("batch_size"),
    ),
    "ratio": Axis(
        "Prompt length against completion length",
        f"Random tokens, completions of {COMPLETION}. Shared: `prefix_sharing=True`; apart: `False`. The token ratio: "
        "how many times more tokens a pair has with its prompt before each completion.",
        "prompt tokens / completion tokens",
        _ratio_points,
        _ratio_table,
        _ratio_panels,
    ),
    "population": Axis(
        "Population",
        "Agents on one base model learn from the given pairs, each from every batch. Time and memory against those of "
        "one agent.",
        "agents",
        _population_points,
        _population_table,
        _population_panels,
    ),
    "rows": Axis(
        "Rows of the data set",
        "From the start of loading to the first batch and to the end of the first step of SmolLM2-135M on it, imports "
        "and loading the model not counted, and the memory held before the model is.",
        "rows",
        _row_points,
        _row_table,
        _row_panels,
    ),
    "vocabulary": Axis(
        "Vocabulary",
        "A Llama of 4 layers and 512 dimensions with random weights and tied embeddings, float32. The step's memory is "
        "what the process holds at its peak beyond what it held before the first step.",
        "tokens in the vocabulary",
        _vocabulary_points,
        _vocabulary_table,
        _vocabulary_panels,
    ),
}
