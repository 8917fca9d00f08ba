"""An evaluation as tables for a terminal."""

import math
from collections.abc import Callable

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from agiledpo.evaluation.evaluation import Evaluation, PolicyFigures, PreferenceFigures
from agiledpo.evaluation.intervals import Figure

# Characters of "0.875 [0.640, 0.965] of 16": a long name of a policy is folded before its figures are.
_FIGURE = 26


def print_evaluation(evaluation: Evaluation, console: Console) -> None:
    """Print an evaluation.

    Args:
        evaluation: What was measured.
        console: Where to.
    """
    policies = [one for one in (evaluation.policy, evaluation.against) if one is not None]
    settings = evaluation.settings
    betas = dict.fromkeys(settings[key] for key in ("beta", "against_beta") if settings.get(key) is not None)
    console.print(
        Text(
            f"{' against '.join(one.name for one in policies)}\n"
            f"base model {settings['model']} in {settings['dtype']} on {settings['device']}, "
            f"beta {' and '.join(f'{beta:g}' for beta in betas)}, reference: {settings['reference']}"
        )
    )
    for name in evaluation.policy.preferences:
        console.print(_preferences(name, policies, evaluation.accuracy_gain))
    for one in policies:
        for name, figures in one.preferences.items():
            if not _is_reference(figures):
                console.print(_bins(f"reliability of {one.name} on {name}, beta {figures.calibration.beta:g}", figures))
    if evaluation.policy.answers is not None:
        console.print(_answers(policies))
    if evaluation.win_rate is not None:
        console.print(_win_rate(evaluation))
    console.print(
        "In brackets: 95 % confidence intervals, over prompts. -: the policy is its own reference.", markup=False
    )


def _table(title: str, policies: list[PolicyFigures]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE)
    table.add_column(no_wrap=True)
    for one in policies:
        table.add_column(Text(one.name, overflow="fold"), justify="left", min_width=_FIGURE)
    return table


def _preferences(name: str, policies: list[PolicyFigures], gain: dict[str, Figure] | None) -> Table:
    columns = [one.preferences[name] for one in policies]
    table = _table(f"{name}: {columns[0].pairs:,} pairs of {columns[0].prompts:,} prompts", policies)

    def add(label: str, cells: list[str]) -> None:
        table.add_row(label, *(Text(cell) for cell in cells))

    def held_against(label: str, cell: Callable[[PreferenceFigures], str]) -> None:
        add(label, ["-" if _is_reference(column) else cell(column) for column in columns])

    held_against("preference accuracy", lambda c: str(c.accuracy))
    if gain is not None:
        add("  gain over the other", ["-" if any(map(_is_reference, columns)) else _signed(gain[name]), ""])
    held_against("  by length-normalised margins", lambda c: str(c.margins_per_token.accuracy))
    add("  by log p, no reference", [str(c.likelihood_accuracy) for c in columns])
    add("  by log p per token", [str(c.likelihood_accuracy_per_token) for c in columns])
    table.add_section()
    held_against("where chosen is longer", lambda c: _of(c.length_control.chosen_longer, c.length_control.pairs[0]))
    held_against("where chosen is shorter", lambda c: _of(c.length_control.chosen_shorter, c.length_control.pairs[1]))
    held_against("  mean of both", lambda c: str(c.length_control.balanced))
    held_against("  at equal length (regression)", lambda c: str(c.length_control.at_equal_length))
    table.add_section()
    held_against("margin, nats", lambda c: _signed(c.margins.mean))
    held_against("  5 25 50 75 95 %", lambda c: _numbers(c.margins.quantiles))
    held_against("margin per token, nats", lambda c: _signed(c.margins_per_token.mean))
    held_against("  5 25 50 75 95 %", lambda c: _numbers(c.margins_per_token.quantiles))
    table.add_section()
    held_against("calibration error", lambda c: f"{c.calibration.expected_error:.3f}")
    held_against("Brier score (0.25 knows nothing)", lambda c: str(c.calibration.brier))
    held_against("log loss (0.693 knows nothing)", lambda c: str(c.calibration.log_loss))
    held_against("best beta", _best)
    return table


def _bins(title: str, figures: PreferenceFigures) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE)
    for heading in ("confidence", "pairs", "mean confidence", "ranked right"):
        table.add_column(heading, justify="right")
    for part in figures.calibration.bins:
        table.add_row(
            f"{part.low:.2f} to {part.high:.2f}", f"{part.pairs:,}", f"{part.confidence:.3f}", f"{part.accuracy:.3f}"
        )
    return table


def _answers(policies: list[PolicyFigures]) -> Table:
    columns = [one.answers for one in policies if one.answers is not None]
    table = _table(f"{columns[0].answers:,} sampled answers", policies)
    rows = {
        "KL from the base per token, nats": [str(c.kl.per_token) for c in columns],
        "KL from the base per answer, nats": [str(c.kl.per_answer) for c in columns],
        "tokens of an answer": [f"{c.tokens.value:.1f}" for c in columns],
        "ended by itself": [str(c.finished) for c in columns],
    }
    for label, cells in rows.items():
        table.add_row(label, *(Text(cell) for cell in cells))
    return table


def _win_rate(evaluation: Evaluation) -> Table:
    rate, other = evaluation.win_rate, evaluation.against
    assert rate is not None
    assert other is not None
    title = f"{evaluation.policy.name} against {other.name}"
    table = Table(title=title, title_justify="left", box=SIMPLE, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    rows = {
        "win rate": str(rate.rate),
        "wins, ties, losses": f"{rate.wins:,}, {rate.ties:,}, {rate.losses:,}",
        "for the answer shown first": str(rate.first_preferred),
    }
    if not math.isnan(rate.consistent.value):
        rows["both orders agree"] = str(rate.consistent)
    for label, cell in rows.items():
        table.add_row(label, Text(cell))
    for problem, count in rate.failures.items():
        table.add_row("not judged", Text(f"{count:,}: {problem}"))
    return table


def _is_reference(figures: PreferenceFigures) -> bool:
    """Whether a policy is its own reference, so that all its margins are 0 and say nothing."""
    return not any(figures.margins.quantiles) and math.isnan(figures.calibration.best_beta.value)


def _of(figure: Figure, pairs: int) -> str:
    return f"{figure} of {pairs:,}"


def _signed(figure: Figure) -> str:
    if math.isnan(figure.low):
        return f"{figure.value:+.3f}"
    return f"{figure.value:+.3f} [{figure.low:+.3f}, {figure.high:+.3f}]"


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:+.2f}" for value in values)


def _best(figures: PreferenceFigures) -> str:
    best = figures.calibration.best_beta
    if math.isinf(best.value):
        return f"none is too large: no pair is ranked wrong, log loss {figures.calibration.best_log_loss:.3f}"
    if best.value == 0:
        return "0: margins point the wrong way"
    return f"{best}, log loss {figures.calibration.best_log_loss:.3f}"
