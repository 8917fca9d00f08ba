"""What came of a run, in a sentence and in a few figures."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agiledpo.report.record import Answer, RunRecord
from agiledpo.report.series import mean_of_finite

_DEFAULT_FITNESS = {"DPO": "accuracy", "SFT": "loss", "GRPO": "reward"}
_WORDS = {
    ("DPO", "accuracy"): "preference accuracy on held-out pairs",
    ("DPO", "margin"): "held-out log-ratio margin (nats)",
    ("DPO", "loss"): "minus the held-out DPO loss",
    ("DPO", "reward_margin"): "held-out reward margin (grows with beta)",
    ("SFT", "loss"): "minus the held-out loss per token (nats)",
    ("SFT", "accuracy"): "held-out token accuracy",
    ("GRPO", "reward"): "mean reward on held-out prompts",
    ("GRPO", "success_rate"): "share of held-out prompts answered with success",
}


@dataclass(frozen=True)
class Figure:
    """A number with its standard error.

    Attributes:
        value: The number.
        error: Its standard error; NaN if it is not known.
        agent: Whose it is; None if that is not known.
        step: Rows after which it was measured.
    """

    value: float
    error: float
    agent: int | None
    step: float

    def __str__(self) -> str:
        return f"{number(self.value)}{'' if math.isnan(self.error) else f' ± {number(self.error, 2)}'}"


@dataclass(frozen=True)
class Summary:
    """What came of a run.

    Attributes:
        run: The run.
        what: What its fitness is.
        first: The best fitness of the first evaluation; None before there is one.
        last: The best of the last.
        final: The best agent on the final split; None without.
    """

    run: RunRecord
    what: str
    first: Figure | None
    last: Figure | None
    final: Figure | None

    @staticmethod
    def of(run: RunRecord) -> "Summary":
        """Read it off the log.

        Args:
            run: The run.
        """
        final = None
        if series := run.series.get("final/fitness"):
            error = run.series.get("final/fitness_error")
            final = Figure(series.values[-1], math.nan if error is None else error.values[-1], None, series.steps[-1])
        steps = sorted({step for series in run.agents.get(("eval", "fitness"), {}).values() for step in series.steps})
        first, last = (_best(run, steps[0]), _best(run, steps[-1])) if steps else (None, None)
        return Summary(run, fitness_words(run), first, last, final)

    @property
    def verdict(self) -> str:
        """One sentence."""
        run = self.run
        if self.first is None or self.last is None:
            return f"{run.rows:,} {run.unit} so far, and no agent has been evaluated yet."
        spent = "" if run.seconds is None else f", in {duration(run.seconds)}"
        work = f"after {run.rows:,} {run.unit} per agent{spent}"
        if self.first.step == self.last.step:
            told = f"{_capital(self.what)} is {self.last} {work}; it was measured once"
        else:
            told = f"{_capital(self.what)} {self._change()} {work}"
        if self.final is not None:
            told += f"; on the final split, by which nothing was chosen, it is {self.final}"
        return f"{told}."

    def _change(self) -> str:
        assert self.first is not None
        assert self.last is not None
        first, last = self.first, self.last
        difference = last.value - first.value
        noise = math.hypot(*(0.0 if math.isnan(figure.error) else figure.error for figure in (first, last)))
        if math.isnan(difference):
            return f"went from {first} to {last}"
        if abs(difference) <= noise:
            return f"is within its error of where it was first measured: {first}, now {last},"
        verb = "rose" if difference > 0 else "fell"
        return f"{verb} from {first} (first measured after {first.step:,.0f} {self.run.unit}) to {last}"

    def tiles(self) -> Iterator[tuple[str, str, str]]:
        """A label, a figure and a remark for each of the large figures at the top."""
        run = self.run
        if self.first is not None and self.last is not None:
            if self.first.step != self.last.step:
                yield "first fitness", str(self.first), f"after {self.first.step:,.0f} {run.unit}"
            whose = "" if self.last.agent is None else f"agent {self.last.agent}"
            yield "last fitness", str(self.last), whose
        if self.final is not None:
            yield "final split", str(self.final), "unseen by selection"
        yield run.unit, f"{run.rows:,}", "per agent"
        if run.seconds is not None:
            yield "time", duration(run.seconds), str(run.about.get("status", ""))
        if len(run.indices) > 1:
            alive = len(run.indices) if run.lineage is None else sum(a.alive for a in run.lineage.agents.values())
            yield "agents", f"{alive}", f"{len(run.indices)} were born" if len(run.indices) > alive else "at a time"

    def figures(self) -> dict[str, str]:
        """The figures that runs are compared by, as text."""
        run = self.run
        told = {
            "best fitness, first": "–" if self.first is None else str(self.first),
            "best fitness, last": "–" if self.last is None else str(self.last),
            "final split": "–" if self.final is None else str(self.final),
            f"{run.unit} per agent": f"{run.rows:,}",
            "time": "–" if run.seconds is None else duration(run.seconds),
            "agents born": str(len(run.indices)),
        }
        rates = [
            v for s in run.agents.get(("train", "tokens_per_second"), {}).values() for v in s.values if math.isfinite(v)
        ]
        if rates:
            told["tokens/s while learning, mean"] = f"{math.fsum(rates) / len(rates):,.0f}"
        if run.answers:
            for label, answers in (("before", answers_at(run, first=True)), ("after", answers_at(run, first=False))):
                lengths = [answer.tokens for answer in answers]
                told[f"length of sample answers, {label}"] = f"{sum(lengths) / len(lengths):.1f} tokens"
            drift = [answer.kl_per_token for answer in answers_at(run, first=False)]
            known = sum(map(math.isfinite, drift))
            share = "" if known == len(drift) else f", {known} of {len(drift)} answers"
            told["KL of sample answers, after"] = f"{number(mean_of_finite(drift))} nats per token{share}"
        return told


def fitness_words(run: RunRecord) -> str:
    """What the fitness of a run is, in words.

    Args:
        run: The run.
    """
    name = _find(run.config, "fitness")
    if not isinstance(name, str):
        name = _DEFAULT_FITNESS.get(run.algorithm, "fitness")
    return _WORDS.get((run.algorithm, name), f"fitness ({name})" if name != "fitness" else "fitness")


def answers_at(run: RunRecord, *, first: bool) -> list[Answer]:
    """The answers of the first or the last time that the model was asked.

    Args:
        run: The run, with answers.
        first: Which.
    """
    steps = [answer.step for answer in run.answers]
    step = min(steps) if first else max(steps)
    return [answer for answer in run.answers if answer.step == step]


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by their full names, ``lora.r``.

    Args:
        config: Nested settings.
        prefix: What goes before.
    """
    found: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def differing(runs: Sequence[RunRecord]) -> list[tuple[str, list[str]]]:
    """Settings in which runs differ, each with its values; a dash where a run lacks it.

    Args:
        runs: The runs.
    """
    settings = [flat(run.config) for run in runs]
    names = dict.fromkeys(name for each in settings for name in each)
    rows = [(name, [str(each[name]) if name in each else "–" for each in settings]) for name in names]
    return [(name, values) for name, values in rows if len(set(values)) > 1]


def number(value: float, digits: int = 3) -> str:
    """A number to a few significant digits, without an exponent where it reads well.

    Args:
        value: The number.
        digits: Significant digits.
    """
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    size = math.floor(math.log10(abs(value)))
    return f"{value:.{digits}g}" if size < -4 or size >= 6 else f"{value:,.{max(digits - 1 - size, 0)}f}"


def duration(seconds: float) -> str:
    """A time span as people say it.

    Args:
        seconds: The span.
    """
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _best(run: RunRecord, step: float) -> Figure | None:
    errors = run.agents.get(("eval", "fitness_error"), {})
    found = []
    for index, series in run.agents[("eval", "fitness")].items():
        for at, value in zip(series.steps, series.values, strict=True):
            if at == step and not math.isnan(value):
                known = errors.get(index)
                error = dict(zip(known.steps, known.values, strict=True)).get(step, math.nan) if known else math.nan
                found.append(Figure(value, error, index, step))
    return max(found, key=lambda figure: (figure.value, figure.agent == _elite(run)), default=None)


def _elite(run: RunRecord) -> int | None:
    return None if run.lineage is None else run.lineage.elite


def _find(config: Mapping[str, Any], name: str) -> Any:
    """A setting wherever it is."""
    return next((value for key, value in flat(config).items() if key.rpartition(".")[2] == name and value), None)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
