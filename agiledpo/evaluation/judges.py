"""Who decides which of two answers is the better one: reward functions, or a command."""

import importlib
import importlib.util
import json
import queue
import shlex
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, Protocol

from agiledpo.evaluation.held_out import HeldOutPrompt
from agiledpo.llm_envs.rewards import RewardFunctions, Rewards

Winner = Literal["a", "b", "tie"]

_WINNERS: tuple[Winner, ...] = ("a", "b", "tie")
_SHOWN = 120


@dataclass(frozen=True)
class Comparison:
    """Two answers to a prompt, in the order in which they are judged.

    Attributes:
        prompt: The prompt.
        answer_a: The first answer.
        answer_b: The second.
    """

    prompt: HeldOutPrompt
    answer_a: str
    answer_b: str


@dataclass(frozen=True)
class Verdict:
    """What became of a comparison.

    Attributes:
        winner: "a", "b" or "tie"; None if it could not be judged.
        problem: Why not; None if it was.
        scores: The rewards of both answers, of a judge that gives rewards.
    """

    winner: Winner | None
    problem: str | None = None
    scores: tuple[float, float] | None = None


class Judge(Protocol):
    """Decides which of two answers is better."""

    def judge(self, comparisons: Sequence[Comparison]) -> list[Verdict]:
        """One verdict for each comparison; what fails is in the verdict, and does not fail the others."""
        ...


class RewardJudge:
    """Prefers the answer of the larger reward; equal ones tie.

    Args:
        functions: As for ``ReasoningGym``: called with completion, answer (the row's column "answer", or None) and
            question.
    """

    def __init__(self, functions: RewardFunctions) -> None:
        self.rewards = Rewards(functions)

    def judge(self, comparisons: Sequence[Comparison]) -> list[Verdict]:
        """Judge by rewards.

        Args:
            comparisons: What to compare.

        Raises:
            RewardError: A function fails, or returns no number.
        """
        prompts = [comparison.prompt for comparison in comparisons]
        scores = []
        for texts in ([c.answer_a for c in comparisons], [c.answer_b for c in comparisons]):
            labels = [f"the answer to row {prompt.row}" for prompt in prompts]
            judged = self.rewards.judge(texts, [p.answer for p in prompts], [p.question for p in prompts], labels)
            scores.append(self.rewards.total(judged, labels))
        return [Verdict("a" if a > b else "b" if b > a else "tie", scores=(a, b)) for a, b in zip(*scores, strict=True)]


class CommandJudge:
    """Asks a program, which reads comparisons as JSON lines and writes a JSON line for each.

    A line is ``{"id": 0, "prompt": ..., "answer_a": ..., "answer_b": ...}``, the prompt text or chat messages; what it
    writes is ``{"winner": "a"}``, or "b" or "tie". The n-th line is the verdict on the n-th comparison, unless it has
    the ``"id"`` of another one. Whatever else it has to say belongs to standard error.

    Args:
        command: The program with its arguments; no shell is between.
        each: Start it once per comparison, instead of once for all.
        timeout: Most seconds for a comparison; a process that is asked for several has as many times that in all.

    Raises:
        ValueError: The command is empty, or the timeout is not above 0.
    """

    def __init__(self, command: str, *, each: bool = False, timeout: float = 60.0) -> None:
        self.command = shlex.split(command)
        if not self.command:
            raise ValueError("judge (--judge) is empty; pass a command, such as 'python judge.py'.")
        if not timeout > 0:
            raise ValueError(f"judge_timeout={timeout} must be above 0 seconds.")
        self.each = each
        self.timeout = timeout

    def judge(self, comparisons: Sequence[Comparison]) -> list[Verdict]:
        """Judge by the command; Ctrl-C ends it and keeps the verdicts that there are.

        Args:
            comparisons: What to compare.
        """
        verdicts: list[Verdict] = []
        step = 1 if self.each else max(1, len(comparisons))
        for start in range(0, len(comparisons), step):
            part = comparisons[start : start + step]
            try:
                verdicts += self._ask(part, start)
            except KeyboardInterrupt:
                break
        return verdicts + [Verdict(None, "interrupted")] * (len(comparisons) - len(verdicts))

    def _ask(self, comparisons: Sequence[Comparison], first: int) -> list[Verdict]:
        """What one process says."""
        with tempfile.TemporaryFile() as said:
            try:
                process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said)
            except OSError as error:
                return [Verdict(None, f"{self.command[0]} cannot be started: {error.strerror}")] * len(comparisons)
            found, end = _Conversation(process, comparisons, first).held(self.timeout)
            problem = f"{end}{_last_words(said)}"
        return [found.get(place, Verdict(None, problem)) for place in range(len(comparisons))]


class _Conversation:
    """One process of a judge: its lines are written and read by threads, so that neither side waits for the other."""

    def __init__(self, process: "subprocess.Popen[bytes]", comparisons: Sequence[Comparison], first: int) -> None:
        self.process = process
        self.comparisons = comparisons
        self.first = first
        self.lines: queue.Queue[bytes | None] = queue.Queue()

    def held(self, timeout: float) -> tuple[dict[int, Verdict], str]:
        """Verdicts by place, and how the process ended."""
        for work in (self._write, self._read):
            threading.Thread(target=work, daemon=True).start()
        found: dict[int, Verdict] = {}
        try:
            end = self._listen(found, timeout)
        finally:
            self.process.kill()
            self.process.wait()
        return found, end

    def _listen(self, found: dict[int, Verdict], timeout: float) -> str:
        deadline = time.monotonic() + timeout * len(self.comparisons)
        for number in range(len(self.comparisons)):
            try:
                line = self.lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return f"no answer within {timeout:g} s per comparison"
            if line is None:
                return self._ended(timeout)
            place, verdict = _read_verdict(line, number, first=self.first, count=len(self.comparisons))
            found[place] = verdict
        return "it was answered for another comparison"

    def _ended(self, timeout: float) -> str:
        try:
            status = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            return "it closed its output without an answer"
        return "it ended without an answer" if status == 0 else f"it ended with status {status}"

    def _write(self) -> None:
        assert self.process.stdin is not None
        try:
            with self.process.stdin as stdin:
                for number, comparison in enumerate(self.comparisons, self.first):
                    stdin.write(_line(comparison, number))
        except OSError:  # it does not listen any more; what it said still counts
            return

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put(None)


def _line(comparison: Comparison, number: int) -> bytes:
    content = {
        "id": number,
        "prompt": comparison.prompt.prompt,
        "answer_a": comparison.answer_a,
        "answer_b": comparison.answer_b,
    }
    return json.dumps(content, ensure_ascii=False, default=str).encode("utf-8", errors="replace") + b"\n"


def _read_verdict(line: bytes, number: int, *, first: int, count: int) -> tuple[int, Verdict]:
    """Which comparison a line is about, and what it says."""
    text = line.decode("utf-8", errors="replace").strip()
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        return number, Verdict(None, f"its line is no JSON object: {text[:_SHOWN]!r}")
    place = content.get("id", number + first)
    if not isinstance(place, int) or isinstance(place, bool) or not 0 <= place - first < count:
        return number, Verdict(None, f"its line has an id that there is none of: {text[:_SHOWN]!r}")
    winner = content.get("winner")
    if winner not in _WINNERS:
        return place - first, Verdict(None, f'its line has no "winner" that is a, b or tie: {text[:_SHOWN]!r}')
    return place - first, Verdict(winner)


def _last_words(said: IO[bytes]) -> str:
    """The last line of standard error, for the message."""
    said.seek(0)
    lines = said.read().decode("utf-8", errors="replace").strip().splitlines()
    return f": {lines[-1][-_SHOWN:]}" if lines else ""


def load_function(name: str) -> Callable[..., Any]:
    """Import a function by its name, ``module:function`` or ``file.py:function``.

    Args:
        name: The name.

    Raises:
        ValueError: There is none.
    """
    place, separator, attribute = name.rpartition(":")
    if not separator or not place or not attribute:
        raise ValueError(f"reward={name!r} names no function; write module:function or file.py:function.")
    try:
        if place.endswith(".py"):
            specification = importlib.util.spec_from_file_location(Path(place).stem, place)
            assert specification is not None
            assert specification.loader is not None
            module = importlib.util.module_from_spec(specification)
            specification.loader.exec_module(module)
        else:
            module = importlib.import_module(place)
    except Exception as error:  # whatever the user's file raises
        raise ValueError(f"reward={name!r}: {place} cannot be imported ({type(error).__name__}: {error}).") from error
    function = vars(module).get(attribute)
    if not callable(function):
        names = ", ".join(key for key, value in vars(module).items() if callable(value) and not key.startswith("_"))
        raise ValueError(f"reward={name!r}: {place} has no function {attribute}; it has {names or 'none'}.")
    return function
