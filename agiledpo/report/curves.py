"""The curves of a report: what is drawn of each figure of the log, and the words that go with it."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agiledpo.hpo.family_tree import evolved_parameters, value_text
from agiledpo.report.chart import Chart, axes, joined
from agiledpo.report.lives import Lives
from agiledpo.report.record import RunRecord
from agiledpo.report.series import Series

# Numbers on a logarithmic axis.
_MOST_TICKS = 6

_VALIDATION = re.compile(r"validation-(.+)_accuracy")


@dataclass(frozen=True)
class Curve:
    """How a figure of the agents is shown.

    Attributes:
        metric: Its name in the log, without ``train/agent_<i>/``.
        title: Headline.
        unit: On the vertical axis.
        caption: What it means and how to read it.
        dashed: Another metric in the same chart, dashed, with what the legend calls both; None for none.
        held_out: Also draw what the test split says.
    """

    metric: str
    title: str
    unit: str
    caption: str
    dashed: tuple[str, str, str] | None = None
    held_out: bool = False


LEARNING = (
    Curve("loss", "Loss", "loss", "What each agent minimises. Held-out loss that rises while training loss falls is "
          "overfitting. A DPO loss without further terms starts at ln 2 = 0.693.", held_out=True),
    Curve("mean_reward", "Reward", "reward", "Mean reward of the sampled completions. It should rise; what it is worth "
          "is what the reward functions say.", held_out=True),
    Curve("rewards/chosen", "Rewards of chosen and rejected", "nats", "Beta times the log-probability ratio to the "
          "reference. Both often fall together; what counts is that the rejected one falls further. Of the other agents only chosen is drawn.",
          dashed=("rewards/rejected", "chosen", "rejected")),
    Curve("rewards/margins", "Margin", "nats", "Chosen minus rejected reward: how clearly the agent tells them apart. "
          "It grows with beta, so compare it between agents of one beta only.", held_out=True),
    Curve("rewards/accuracies", "Accuracy on training batches", "share of pairs", "Pairs of the batch whose chosen "
          "completion has the higher reward. Measured before the step on them; single batches are noisy."),
    Curve("mean_token_accuracy", "Token accuracy", "share of tokens", "Tokens of the demonstrations that the model would "
          "have chosen itself.", held_out=True),
    Curve("perplexity", "Perplexity", "perplexity", "The exponential of the loss per token: among how many tokens the "
          "model wavers.", held_out=True),
    Curve("grad_norm", "Gradient norm", "norm before clipping", "Spikes are batches that pull hard. If it grows without "
          "end, the learning rate is too high."),
    Curve("reward_std", "Spread of rewards within a group", "reward", "Standard deviation over the completions of one "
          "prompt. Without spread there is nothing to learn from."),
    Curve("zero_advantage_groups", "Groups without a signal", "share of groups", "Prompts whose completions all got the "
          "same reward: too easy or too hard for now."),
    Curve("clip_ratio/high", "Clipped tokens", "share of tokens", "Tokens whose ratio to the sampling policy a bound held. "
          "Zero in the first step on each batch.", dashed=("clip_ratio/low", "above", "below")),
    Curve("mean_token_logp", "Log-probability of sampled tokens", "nats per token", "Its negative estimates the entropy; "
          "near zero the policy has stopped exploring."),
)  # fmt: skip

GENERATIONS = (
    Curve("completion_length", "Length of sampled completions", "tokens", "Mean over the completions that the agents "
          "learned from. Growth without reward is rambling; collapse is a shortcut.", held_out=True),
    Curve("finished_rate", "Completions that ended by themselves", "share", "The rest were cut off at the length limit.",
          held_out=True),
    Curve("kl", "KL from the reference while learning", "nats per token", "The k3 estimate over sampled tokens: how far "
          "the policy has drifted."),
)  # fmt: skip

SPEED = (
    Curve("tokens_per_second", "Throughput of learning", "tokens/s", "Tokens of the batch, prompts included, over the time "
          "of the optimizer steps. Evaluation and generation are not in it."),
)  # fmt: skip

# Shown elsewhere, or told twice.
HIDDEN = {
    "mean_loss", "mean_chosen_reward", "mean_rejected_reward", "pairs", "rows", "num_tokens", "fitness", "fitness_error",
    "rewards/rejected", "clip_ratio/low", "lr", "beta", "success_rate",
}  # fmt: skip


@dataclass(frozen=True)
class Seen:
    """A run with what is known of its agents' lives.

    Attributes:
        run: The run.
        lives: Its agents.
        number: Its place in the report, which is its colour.
        prefix: Before the names of its lines; empty where there is one run only.
    """

    run: RunRecord
    lives: Lives
    number: int
    prefix: str

    @property
    def colour(self) -> str:
        """The colour of its best agent."""
        return f"@run{self.number}"

    def hover(self, what: str, *, extra: str = "") -> str:
        """What hovering says of a point of an agent."""
        return (
            f"{self.prefix}agent %{{customdata}}<br>%{{x:,}} {self.run.unit}<br>{what} %{{y:.5g}}{extra}<extra></extra>"
        )


def row_axis(runs: Sequence[Seen]) -> str:
    """What the horizontal axis counts."""
    units = list(dict.fromkeys(seen.run.unit for seen in runs))
    return f"{units[0] if len(units) == 1 else 'rows'} seen by each agent"


def draw(curve: Curve, runs: Sequence[Seen]) -> Chart | None:
    """The chart of a figure; None where no run has it.

    Args:
        curve: Which.
        runs: The runs.
    """
    if not any(("train", curve.metric) in seen.run.agents for seen in runs):
        return None
    chart = Chart(_key(curve.metric), curve.title, curve.caption, layout=axes(row_axis(runs), curve.unit))
    for seen in runs:
        solid, dashed = ("training", None) if curve.dashed is None else curve.dashed[1:]
        told = curve.held_out and ("eval", curve.metric) in seen.run.agents
        legend = f"{seen.prefix}{solid}" if told or dashed else None
        _agents(chart, seen, "train", curve.metric, curve.title.lower(), legend=legend)
        if curve.dashed is not None:
            _agents(
                chart,
                seen,
                "train",
                curve.dashed[0],
                curve.dashed[0],
                dash="dot",
                legend=f"{seen.prefix}{dashed}",
                alone=True,
            )
        if told:
            _agents(
                chart, seen, "eval", curve.metric, f"held-out {curve.title.lower()}", dash="dash", markers=True,
                legend=f"{seen.prefix}held out", alone=True,
            )  # fmt: skip
    return chart


def _agents(
    chart: Chart,
    seen: Seen,
    phase: str,
    metric: str,
    what: str,
    *,
    dash: str = "solid",
    markers: bool = False,
    legend: str | None = None,
    alone: bool = False,
    shape: str = "linear",
) -> None:
    """The lines of all agents of a run, or of its best one alone."""
    lines = seen.lives.lines(seen.run.agents.get((phase, metric), {}))
    if not alone:
        hover = seen.hover(what)
        chart.bundle(lines.gone, colour=f"{seen.colour}-gone", name="replaced", hover=hover, width=0.8, shape=shape)
        chart.bundle(lines.living, colour=f"{seen.colour}-other", name="others", hover=hover, width=1.1, shape=shape)
    series, agents = joined(lines.elite)
    if series:
        chart.line(
            series, colour=seen.colour, name=what, hover=seen.hover(what), agents=agents, dash=dash, markers=markers,
            legend=legend, shape=shape, width=2.2 if dash == "solid" else 1.6,
        )  # fmt: skip


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
                series, colour=seen.colour, name="best agent and its ancestors", hover=seen.hover("fitness", extra=" ± %{error_y.array:.2g}"),
                agents=agents, errors=bars, markers=True, legend=seen.prefix.rstrip(": ") or None,
            )  # fmt: skip
        final = seen.run.series.get("final/fitness")
        if final is not None:
            error = seen.run.series.get("final/fitness_error")
            chart.add(
                {
                    "type": "scatter", "mode": "markers", "x": list(final.steps[-1:]), "y": list(final.values[-1:]),
                    "name": f"{seen.prefix}final split", "showlegend": True,
                    "marker": {"symbol": "diamond-open", "size": 11, "color": seen.colour, "line": {"width": 2}},
                    "error_y": {"type": "data", "array": [0 if error is None or math.isnan(error.values[-1]) else error.values[-1]],
                                "color": seen.colour, "thickness": 1.2, "width": 4},
                    "hovertemplate": f"{seen.prefix}final split %{{y:.5g}} ± %{{error_y.array:.2g}}<extra></extra>",
                }
            )  # fmt: skip
    return chart


def validation_chart(runs: Sequence[Seen]) -> Chart | None:
    """Accuracy on the validation sets.

    Args:
        runs: The runs.
    """
    chart = Chart(
        "validation",
        "Accuracy on validation sets",
        "The fittest agent at each evaluation, on sets by which nothing is selected. Bars, where the number of pairs is "
        "known, are one standard error.",
        layout=axes(row_axis(runs), "share right"),
    )
    dashes = ("solid", "dash", "dot", "dashdot", "longdash")
    for seen in runs:
        found = [
            (match[1], series) for name, series in seen.run.series.items() if (match := _VALIDATION.fullmatch(name))
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
                series, colour=seen.colour, name=name, hover=f"{seen.prefix}{name} %{{y:.4g}}<br>%{{x:,}} {seen.run.unit}<extra></extra>",
                errors=errors, markers=True, dash=dashes[number % len(dashes)], legend=f"{seen.prefix}{name}", width=1.8,
            )  # fmt: skip
    return chart if chart.traces else None


def hyperparameter_charts(runs: Sequence[Seen]) -> Iterator[Chart]:
    """Learning rate, beta, and every hyperparameter that ever differed between agents or changed.

    Args:
        runs: The runs.
    """
    for name in dict.fromkeys(["lr", "beta", *_changed(runs)]):
        values = [v for seen in runs for s in seen.run.agents.get(("train", name), {}).values() for v in s.values]
        values = [value for value in values if math.isfinite(value)]
        if not values:
            continue
        shown = "learning rate" if name == "lr" else name
        low, high = min(values), max(values)
        log = low > 0 and (name in ("lr", "beta") or high / low >= 10)
        chart = Chart(
            f"parameter-{_key(name)}",
            shown[:1].upper() + shown[1:],
            "Where a line steps, a mutation changed it; children begin with their parent's value."
            if high > low
            else "One value throughout.",
            layout=axes(row_axis(runs), f"{shown}{', log scale' if log else ''}"),
            height=180,
        )
        if log:
            chart.layout["yaxis"] |= _log_axis(low, high)
        for seen in runs:
            _agents(chart, seen, "train", name, shown, shape="hv", legend=seen.prefix.rstrip(": ") or None)
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


def _changed(runs: Sequence[Seen]) -> list[str]:
    """Hyperparameters that differ between agents or mutated, by the lineage."""
    return [name for seen in runs if seen.run.lineage is not None for name in evolved_parameters(seen.run.lineage)]


def speed_charts(runs: Sequence[Seen]) -> Iterator[Chart]:
    """Rows per second and whatever the log says of memory.

    Args:
        runs: The runs.
    """
    chart = Chart(
        "rows-per-second",
        "Pace of the whole run",
        "Rows that each agent got through per second of wall time, everything included: evaluation, evolution, samples.",
        layout=axes(row_axis(runs), "rows/s per agent"),
    )
    for seen in runs:
        elapsed = seen.run.series.get("time/elapsed_seconds")
        if elapsed is None or len(elapsed) < 2:
            continue
        pace = Series(
            elapsed.steps[1:],
            [
                (b - a) / (u - t) if u > t else math.nan  # a new attempt counts from its own beginning
                for a, b, t, u in zip(
                    elapsed.steps, elapsed.steps[1:], elapsed.values, elapsed.values[1:], strict=False
                )
            ],
        )
        chart.line(
            pace, colour=seen.colour, name="pace", hover=f"{seen.prefix}%{{y:.4g}} rows/s<br>%{{x:,}} {seen.run.unit}<extra></extra>",
            legend=seen.prefix.rstrip(": ") or None, width=1.6,
        )  # fmt: skip
    if chart.traces:
        yield chart
    memory = Chart("memory", "Memory", "As logged.", layout=axes(row_axis(runs), "as logged"))
    for seen in runs:
        for name, series in seen.run.series.items():
            if "memory" in name.lower():
                memory.line(
                    series, colour=seen.colour, name=name, hover=f"{seen.prefix}{name} %{{y:.4g}}<extra></extra>",
                    legend=f"{seen.prefix}{name}", width=1.6,
                )  # fmt: skip
    if memory.traces:
        yield memory


def other_curves(runs: Sequence[Seen]) -> list[Curve]:
    """Whatever agents logged that is not shown elsewhere and changes.

    Args:
        runs: The runs.
    """
    shown = HIDDEN | {curve.metric for curve in (*LEARNING, *GENERATIONS, *SPEED)} | set(_changed(runs))
    found: dict[str, Curve] = {}
    for seen in runs:
        for (phase, metric), figures in seen.run.agents.items():
            if phase == "train" and metric not in shown and _varies(figures):
                found[metric] = Curve(metric, metric, metric, "As logged.")
    return list(found.values())


def _varies(figures: Mapping[int, Series]) -> bool:
    values = {value for series in figures.values() for value in series.values if not math.isnan(value)}
    return len(values) > 1


def sample_charts(runs: Sequence[Seen]) -> Iterator[Chart]:
    """Length and KL drift of the sample answers.

    Args:
        runs: The runs.
    """
    parts = (
        ("sample-length", "Length of sample answers", "tokens", "Line: mean over the prompts; dots: single answers. Before training "
         "the untrained model answers.", lambda answer: float(answer.tokens)),
        ("sample-kl", "KL drift of sample answers", "nats per token", "KL(actor || reference) over the whole vocabulary, mean over the tokens "
         "of the answers. It is 0 before training; sudden growth is a policy that forgets what it was.", lambda answer: answer.kl_per_token),
    )  # fmt: skip
    for key, title, unit, caption, value in parts:
        chart = Chart(key, title, caption, layout=axes(row_axis(runs), unit, rangemode="tozero"))
        for seen in runs:
            answers = seen.run.answers
            if not answers:
                continue
            steps = sorted({answer.step for answer in answers})
            means = [
                math.fsum(value(a) for a in answers if a.step == step) / sum(a.step == step for a in answers)
                for step in steps
            ]
            chart.add(
                {
                    "type": "scatter", "mode": "markers", "x": [a.step for a in answers],
                    "y": [v if math.isfinite(v := value(a)) else None for a in answers], "name": "answers", "showlegend": False,
                    "marker": {"color": f"{seen.colour}-other", "size": 4}, "customdata": [a.row for a in answers],
                    "hovertemplate": f"{seen.prefix}row %{{customdata}}: %{{y:.4g}}<extra></extra>",
                }
            )  # fmt: skip
            chart.line(
                Series(steps, means), colour=seen.colour, name="mean", hover=f"{seen.prefix}mean %{{y:.4g}}<br>%{{x:,}} {seen.run.unit}<extra></extra>",
                markers=True, legend=seen.prefix.rstrip(": ") or None,
            )  # fmt: skip
        if chart.traces:
            yield chart


def _key(metric: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", metric.lower())
