"""The curves of a report: what is drawn of each figure that agents log, and the words that go with it."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agiledpo.report.chart import Chart, axes, joined
from agiledpo.report.seen import Seen, changed_parameters, row_axis
from agiledpo.report.series import Series


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
    Curve(
        "loss",
        "Loss",
        "loss",
        "What each agent minimises. Held-out loss that rises while training loss falls is "
        "overfitting. A DPO loss without further terms starts at ln 2 = 0.693.",
        held_out=True,
    ),
    Curve(
        "mean_reward",
        "Reward",
        "reward",
        "Mean reward of the sampled completions. It should rise; what it is worth is what the reward functions say.",
        held_out=True,
    ),
    Curve(
        "rewards/chosen",
        "Rewards of chosen and rejected",
        "nats",
        "Beta times the log-probability ratio to the "
        "reference. Both often fall together; what counts is that the rejected one falls further. "
        "Of the other agents only chosen is drawn.",
        dashed=("rewards/rejected", "chosen", "rejected"),
    ),
    Curve(
        "rewards/margins",
        "Margin",
        "nats",
        "Chosen minus rejected reward: how clearly the agent tells them apart. "
        "It grows with beta, so compare it between agents of one beta only.",
        held_out=True,
    ),
    Curve(
        "rewards/accuracies",
        "Accuracy on training batches",
        "share of pairs",
        "Pairs of the batch whose chosen "
        "completion has the higher reward. Measured before the step on them; single batches are noisy.",
    ),
    Curve(
        "mean_token_accuracy",
        "Token accuracy",
        "share of tokens",
        "Tokens of the demonstrations that the model would have chosen itself.",
        held_out=True,
    ),
    Curve(
        "perplexity",
        "Perplexity",
        "perplexity",
        "The exponential of the loss per token: among how many tokens the model wavers.",
        held_out=True,
    ),
    Curve(
        "grad_norm",
        "Gradient norm",
        "norm before clipping",
        "Spikes are batches that pull hard. If it grows without end, the learning rate is too high.",
    ),
    Curve(
        "reward_std",
        "Spread of rewards within a group",
        "reward",
        "Standard deviation over the completions of one prompt. Without spread there is nothing to learn from.",
    ),
    Curve(
        "zero_advantage_groups",
        "Groups without a signal",
        "share of groups",
        "Prompts whose completions all got the same reward: too easy or too hard for now.",
    ),
    Curve(
        "clip_ratio/high",
        "Clipped tokens",
        "share of tokens",
        "Tokens whose ratio to the sampling policy a bound held. Zero in the first step on each batch.",
        dashed=("clip_ratio/low", "above", "below"),
    ),
    Curve(
        "mean_token_logp",
        "Log-probability of sampled tokens",
        "nats per token",
        "Its negative estimates the entropy; near zero the policy has stopped exploring.",
    ),
)

GENERATIONS = (
    Curve(
        "completion_length",
        "Length of sampled completions",
        "tokens",
        "Mean over the completions that the agents "
        "learned from. Growth without reward is rambling; collapse is a shortcut.",
        held_out=True,
    ),
    Curve(
        "finished_rate",
        "Completions that ended by themselves",
        "share",
        "The rest were cut off at the length limit.",
        held_out=True,
    ),
    Curve(
        "kl",
        "KL from the reference while learning",
        "nats per token",
        "The k3 estimate over sampled tokens: how far the policy has drifted.",
    ),
)

SPEED = (
    Curve(
        "tokens_per_second",
        "Throughput of learning",
        "tokens/s",
        "Tokens of the batch, prompts included, over the time "
        "of the optimizer steps. Evaluation and generation are not in it.",
    ),
)

# Shown elsewhere, or told twice.
HIDDEN = {
    "mean_loss",
    "mean_chosen_reward",
    "mean_rejected_reward",
    "pairs",
    "rows",
    "num_tokens",
    "fitness",
    "fitness_error",
    "rewards/rejected",
    "clip_ratio/low",
    "lr",
    "beta",
    "success_rate",
}


def draw(curve: Curve, runs: Sequence[Seen]) -> Chart | None:
    """The chart of a figure; None where no run has it.

    Args:
        curve: Which.
        runs: The runs.
    """
    if not any(("train", curve.metric) in seen.run.agents for seen in runs):
        return None
    chart = Chart(key_of(curve.metric), curve.title, curve.caption, layout=axes(row_axis(runs), curve.unit))
    for seen in runs:
        solid, dashed = ("training", None) if curve.dashed is None else curve.dashed[1:]
        told = curve.held_out and ("eval", curve.metric) in seen.run.agents
        legend = f"{seen.prefix}{solid}" if told or dashed else None
        draw_agents(chart, seen, "train", curve.metric, curve.title.lower(), legend=legend)
        if curve.dashed is not None:
            draw_agents(
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
            draw_agents(
                chart,
                seen,
                "eval",
                curve.metric,
                f"held-out {curve.title.lower()}",
                dash="dash",
                markers=True,
                legend=f"{seen.prefix}held out",
                alone=True,
            )
    return chart


def draw_agents(
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
            series,
            colour=seen.colour,
            name=what,
            hover=seen.hover(what),
            agents=agents,
            dash=dash,
            markers=markers,
            legend=legend,
            shape=shape,
            width=2.2 if dash == "solid" else 1.6,
        )


def other_curves(runs: Sequence[Seen]) -> list[Curve]:
    """Whatever agents logged that is not shown elsewhere and changes.

    Args:
        runs: The runs.
    """
    shown = HIDDEN | {curve.metric for curve in (*LEARNING, *GENERATIONS, *SPEED)} | set(changed_parameters(runs))
    found: dict[str, Curve] = {}
    for seen in runs:
        for (phase, metric), figures in seen.run.agents.items():
            if phase == "train" and metric not in shown and _varies(figures):
                found[metric] = Curve(metric, metric, metric, "As logged.")
    return list(found.values())


def _varies(figures: Mapping[int, Series]) -> bool:
    values = {value for series in figures.values() for value in series.values if not math.isnan(value)}
    return len(values) > 1


def key_of(metric: str) -> str:
    """A figure's name as an identifier in the page."""
    return re.sub(r"[^a-z0-9]+", "-", metric.lower())
