"""What a run left in its directory."""

import json
import math
import re
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from agiledpo.hpo.lineage import Lineage
from agiledpo.report.series import Series

_AGENT = re.compile(r"(train|eval)/agent_(\d+)/(.+)")
_SAMPLE_KEYS = ("step", "agent", "row", "prompt", "answer", "tokens", "finished", "kl_per_token", "chosen")
# Seconds of one clock agree to rounding; a new attempt is off by the time that loading took.
_CLOCK_TOLERANCE = 1e-6
# Characters of a value in a message.
_SHOWN = 60


class ReportError(ValueError):
    """A file of a run cannot be read; the message names file and line, and says what to do."""


@dataclass(frozen=True)
class Answer:
    """An answer to a held-out prompt, as :class:`agiledpo.training.samples.Samples` writes it.

    Attributes:
        step: Rows that each agent had been handed by then.
        agent: Index of the agent that answered; None before training.
        row: Row of the prompt in the test dataset.
        prompt: Chat messages or a text.
        answer: What the model said.
        tokens: Length of the answer.
        finished: Whether the model ended it itself.
        kl_per_token: Mean KL from the reference over its tokens, nats.
        chosen: What the dataset prefers; None if it does not say.
    """

    step: int
    agent: int | None
    row: int
    prompt: str | Sequence[Mapping[str, Any]]
    answer: str
    tokens: int
    finished: bool
    kl_per_token: float
    chosen: str | None


@dataclass(frozen=True)
class RunRecord:
    """A run, as far as its directory tells.

    Attributes:
        path: The directory.
        name: What the report calls it.
        config: The resolved configuration; empty if there is none.
        config_text: The same as it stands in the file.
        about: ``about.json``; empty if there is none.
        series: Every figure of the log by its name, see :class:`agiledpo.training.recorder.Recorder`.
        lineage: Who descends from whom; None if it was not recorded.
        answers: Sample answers in the order in which they were given.
        missing: What is not there, and what that means for the report, in sentences.
    """

    path: Path
    name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    config_text: str = ""
    about: Mapping[str, Any] = field(default_factory=dict)
    series: Mapping[str, Series] = field(default_factory=dict)
    lineage: Lineage | None = None
    answers: Sequence[Answer] = ()
    missing: Sequence[str] = ()

    @staticmethod
    def load(path: str | Path, *, name: str | None = None) -> "RunRecord":
        """Read the directory of a run that has ended or goes on.

        A last line that is cut off is left out: the run was killed, or is writing it now.

        Args:
            path: The directory.
            name: What the report calls it; None for the directory's name.

        Raises:
            FileNotFoundError: It is no directory.
            ReportError: It holds no file of a run, or one of them is damaged; file and line are named.
        """
        directory = Path(path)
        if not directory.is_dir():
            raise FileNotFoundError(f"{directory} is no directory. Pass the directory of a run.")
        files = {
            file: directory / file
            for file in ("config.yaml", "about.json", "metrics.jsonl", "lineage.jsonl", "samples.jsonl")
        }
        present = {name for name, file in files.items() if file.exists()}
        if not present:
            raise ReportError(f"{directory} holds no run: there is none of {', '.join(files)}. Pass a run's directory.")
        missing: list[str] = []
        text = _text(files["config.yaml"]) if "config.yaml" in present else ""
        metrics = _lines(files["metrics.jsonl"], missing) if "metrics.jsonl" in present else []
        samples = _lines(files["samples.jsonl"], missing) if "samples.jsonl" in present else []
        record = RunRecord(
            path=directory,
            name=name or directory.resolve().name,
            config=_config(text, files["config.yaml"]),
            config_text=text,
            about=_about(files["about.json"]) if "about.json" in present else {},
            series=_series(metrics, files["metrics.jsonl"]),
            lineage=_lineage(files["lineage.jsonl"], missing) if "lineage.jsonl" in present else None,
            answers=[_answer(number, line, files["samples.jsonl"]) for number, line in samples],
        )
        return record.saying(missing)

    def saying(self, notes: Sequence[str]) -> "RunRecord":
        """The same with everything in `missing` that is not there.

        Args:
            notes: What was found to be cut off.
        """
        return replace(self, missing=[*notes, *self._absent()])

    def _absent(self) -> Iterator[str]:
        if not self.series:
            yield "metrics.jsonl is missing or still empty: there are no curves. Pass log_path=RUN/metrics.jsonl."
        elif not self.evaluated:
            yield "No agent has been evaluated yet: there is no fitness."
        if self.lineage is None:
            yield (
                "lineage.jsonl is missing: who descends from whom is not known, and all agents are drawn alike. Pass "
                "lineage_path=RUN/lineage.jsonl."
            )
        if not self.answers:
            yield "samples.jsonl is missing or still empty: there are no answers to look at, and no KL drift."
        if not self.config:
            yield "config.yaml is missing: the settings are not known."
        if not self.about:
            yield "about.json is missing: machine, versions and the duration are not known."
        if self.about.get("error"):
            yield f"The run failed: {self.about['error']}"

    # Figures --------------------------------------------------------------------------------------------------------

    @cached_property
    def agents(self) -> Mapping[tuple[str, str], Mapping[int, Series]]:
        """The figures of agents: by ``("train", "loss")``, by the agent's index."""
        found: defaultdict[tuple[str, str], dict[int, Series]] = defaultdict(dict)
        for name, series in self.series.items():
            if match := _AGENT.fullmatch(name):
                found[match[1], match[3]][int(match[2])] = series
        return dict(found)

    @property
    def indices(self) -> list[int]:
        """Indices of all agents that the log or the lineage knows."""
        known = {index for figures in self.agents.values() for index in figures}
        return sorted(known | set(self.lineage.agents if self.lineage is not None else ()))

    @property
    def evaluated(self) -> bool:
        """Whether the fitness of any agent is known."""
        return bool(self.agents.get(("eval", "fitness")))

    @property
    def rows(self) -> int:
        """Rows that each agent has been handed so far."""
        return int(max((series.steps[-1] for series in self.series.values()), default=0))

    @property
    def seconds(self) -> float | None:
        """How long the run took, all attempts together; None if that is not known."""
        told = self.about.get("seconds")
        known = [float(told)] if isinstance(told, int | float) and math.isfinite(told) else []
        elapsed = self.series.get("time/elapsed_seconds")
        if elapsed is not None:
            begins = [*self.attempts, len(elapsed)]
            known.append(math.fsum(elapsed.values[begin - 1] for begin in begins))
        # about.json does not know how long an attempt took that was killed, the log not what came after its last line.
        return max(known, default=None)

    @cached_property
    def attempts(self) -> Sequence[int]:
        """Places in ``time/elapsed_seconds`` at which a later attempt begins, which counts from its own beginning.

        Seconds fall there, or they are not those that passed since the place before, which follow from the rows and
        ``time/rows_per_second``: that figure knows when training went on.
        """
        elapsed = self.series.get("time/elapsed_seconds")
        if elapsed is None:
            return []
        told = self.series.get("time/rows_per_second")
        pace = {} if told is None else dict(zip(told.steps, told.values, strict=True))
        found = []
        points = zip(elapsed.steps, elapsed.values, strict=True)
        for place, ((step, seconds), (later_step, later)) in enumerate(pairwise(points), start=1):
            rate = pace.get(later_step, math.nan)
            passed = (later_step - step) / rate if rate > 0 else math.nan
            if later < seconds or abs(later - seconds - passed) > _CLOCK_TOLERANCE * max(later, passed):
                found.append(place)
        return found

    @property
    def algorithm(self) -> str:
        """``DPO``, ``SFT`` or ``GRPO`` as far as it is told or can be seen."""
        told = self.about.get("algorithm")
        if isinstance(told, str):
            return told.upper()
        seen = {metric for _, metric in self.agents}
        return "GRPO" if "mean_reward" in seen else "DPO" if "rewards/chosen" in seen else "SFT" if seen else ""

    @property
    def unit(self) -> str:
        """What a row is."""
        return {"DPO": "pairs", "GRPO": "prompts"}.get(self.algorithm, "rows")


def _lines(file: Path, missing: list[str]) -> list[tuple[int, dict[str, Any]]]:
    """Objects of a file of JSON lines with their numbers."""
    *whole, rest = file.read_bytes().split(b"\n")
    found = []
    for number, line in enumerate(whole, start=1):
        try:
            value = json.loads(line.decode())
        except ValueError as error:
            raise ReportError(
                f"{file}, line {number}: it is not JSON ({error}). The file is damaged; restore it, or delete the line."
            ) from None
        if not isinstance(value, dict):
            raise ReportError(f"{file}, line {number}: it is {_kind(value)}, not an object of names and values.")
        found.append((number, value))
    if rest:
        missing.append(
            f"{file.name}: line {len(whole) + 1} is cut off and left out; the run was killed or is writing it."
        )
    return found


def _series(lines: Sequence[tuple[int, Mapping[str, Any]]], file: Path) -> dict[str, Series]:
    columns: defaultdict[str, tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    latest = -math.inf
    for number, line in lines:
        step = _number(line.get("step"))
        if step is None or not math.isfinite(step):
            raise ReportError(f"{file}, line {number}: step={_shown(line.get('step'))} is no number of rows.")
        if step < latest:
            raise ReportError(
                f"{file}, line {number}: step={step:g} comes after {latest:g}. Two runs seem to have "
                f"written to one file."
            )
        latest = step
        for name, told in line.items():
            value = _number(told)
            if value is None:
                raise ReportError(f"{file}, line {number}: {name}={_shown(told)} is no number.")
            if name != "step":
                steps, values = columns[name]
                # Measured again at the same step, by a run that was taken up there: the last word counts.
                if steps and steps[-1] == step:
                    values[-1] = value
                else:
                    steps.append(step)
                    values.append(value)
    return {name: Series(steps, values) for name, (steps, values) in columns.items()}


def _answer(number: int, line: Mapping[str, Any], file: Path) -> Answer:
    lacking = [key for key in _SAMPLE_KEYS if key not in line]
    if lacking:
        raise ReportError(f"{file}, line {number}: it lacks {', '.join(lacking)}.")
    kinds: dict[str, tuple[type, ...]] = {
        "step": (int,),
        "agent": (int, type(None)),
        "row": (int,),
        "prompt": (str, list),
        "answer": (str,),
        "tokens": (int,),
        "finished": (bool,),
        "chosen": (str, type(None)),
    }
    for key, kind in kinds.items():
        if not isinstance(line[key], kind):
            raise ReportError(f"{file}, line {number}: {key} is {_kind(line[key])}, which makes no sense there.")
    if isinstance(line["prompt"], list):
        for message in line["prompt"]:
            if not isinstance(message, dict):
                raise ReportError(
                    f"{file}, line {number}: prompt holds {_kind(message)}, and chat messages are objects with role "
                    "and content."
                )
    kl = _number(line["kl_per_token"])
    if kl is None:
        raise ReportError(f"{file}, line {number}: kl_per_token={_shown(line['kl_per_token'])} is no number.")
    return Answer(**{**{key: line[key] for key in _SAMPLE_KEYS}, "kl_per_token": kl})


def _text(file: Path) -> str:
    content = file.read_bytes()
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ReportError(f"{file}, line {line}: it is not UTF-8 ({error.reason}). Save it as UTF-8.") from None


def _config(text: str, file: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        where = "" if error.problem_mark is None else f", line {error.problem_mark.line + 1}"
        raise ReportError(f"{file}{where}: it is not YAML: {error.problem}.") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ReportError(
            f"{file}, line {line}: it is not YAML: the character #x{error.character:04x} is not allowed there."
        ) from None
    except (yaml.YAMLError, ValueError) as error:  # such as a date that is none
        raise ReportError(f"{file}: it is not YAML: {error}.") from None
    if config is not None and not isinstance(config, dict):
        raise ReportError(f"{file}, line 1: it is {_kind(config)}, not settings by name.")
    return config or {}


def _about(file: Path) -> dict[str, Any]:
    text = _text(file)
    try:
        about = json.loads(text)
    except ValueError as error:
        line = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise ReportError(f"{file}{line}: it is not JSON ({error}).") from None
    if not isinstance(about, dict):
        raise ReportError(f"{file}, line 1: it is {_kind(about)}, not an object of names and values.")
    return about


def _lineage(file: Path, missing: list[str]) -> Lineage | None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            lineage = Lineage.read(file)
        except ValueError as error:
            raise ReportError(str(error)) from None
    missing.extend(str(warning.message).replace(str(file), file.name) for warning in caught)
    return lineage if len(lineage) else None


def _number(value: object) -> float | None:
    if isinstance(value, int | float):  # a switch among the hyperparameters is 0 or 1
        try:
            return float(value)
        except OverflowError:
            return None
    return float(value) if value in ("NaN", "Infinity", "-Infinity") else None


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _kind(value: object) -> str:
    return {"str": "a text", "list": "a list", "dict": "an object", "NoneType": "null"}.get(
        type(value).__name__, _shown(value)
    )
