"""Who decides which of two answers is the better one: reward functions, or a command."""

import contextlib
import importlib
import importlib.util
import json
import queue
import shlex
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, Protocol

from agiledpo.evaluation.held_out import HeldOutPrompt
from agiledpo.llm_envs.rewards import RewardError, RewardFunctions, Rewards

Winner = Literal["a", "b", "tie"]

_WINNERS: tuple[Winner, ...] = ("a", "b", "tie")
_SHOWN = 120
# Seconds that a judge may take after its last verdict, to write its log or to close a connection.
_LEAVE = 5.0
_INTERRUPTED = "interrupted"


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
        """Judge by rewards; where a function fails or returns no number, that is the verdict's problem.

        Args:
            comparisons: What to compare.
        """
        try:
            return self._judge(comparisons)
        except RewardError as error:
            if len(comparisons) == 1:
                return [Verdict(None, str(error))]
        # One by one it shows which of them can be judged.
        return [verdict for comparison in comparisons for verdict in self.judge([comparison])]

    def _judge(self, comparisons: Sequence[Comparison]) -> list[Verdict]:
        prompts = [comparison.prompt for comparison in comparisons]
        # Without the row, so that equal problems are counted together.
        labels = ["an answer"] * len(prompts)
        scores = []
        for texts in ([c.answer_a for c in comparisons], [c.answer_b for c in comparisons]):
            judged = self.rewards.judge(texts, [p.answer for p in prompts], [p.question for p in prompts], labels)
            scores.append(self.rewards.total(judged, labels))
        return [Verdict("a" if a > b else "b" if b > a else "tie", scores=(a, b)) for a, b in zip(*scores, strict=True)]


class CommandJudge:
    """Asks a program, which reads comparisons as JSON lines and writes a JSON line for each.

    A line is ``{"id": 0, "prompt": ..., "answer_a": ..., "answer_b": ...}``, the prompt text or chat messages; what it
    writes is ``{"winner": "a"}``, or "b" or "tie". The n-th object is the verdict on the n-th comparison, unless it has
    the ``"id"`` of another one. Lines without a "winner", such as a banner, are skipped; but where verdicts are missing
    in the end, such a line may stand for one of them, and those after it that have no ``"id"`` do not count.

    Args:
        command: The program with its arguments; no shell is between.
        each: Start it once per comparison, instead of once for all.
        timeout: Most seconds without a verdict, from the start or from the last one.

    Raises:
        ValueError: The command is empty, has an unbalanced quote or names no program; or the timeout is not above 0.
    """

    def __init__(self, command: str, *, each: bool = False, timeout: float = 60.0) -> None:
        try:
            self.command = shlex.split(command)
        except ValueError as error:
            raise ValueError(f"judge (--judge) {command!r} cannot be split into arguments: {error}.") from None
        if not self.command:
            raise ValueError("judge (--judge) is empty; pass a command, such as 'python judge.py'.")
        if shutil.which(self.command[0]) is None:
            raise ValueError(
                f"judge (--judge) {command!r}: there is no program {self.command[0]!r} that can be started; pass its "
                "path, or 'python judge.py' for a script."
            )
        if not timeout > 0:
            raise ValueError(f"judge_timeout (--judge-timeout) is {timeout}; it must be above 0 seconds.")
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
            said, interrupted = self._ask(comparisons[start : start + step], start)
            verdicts += said
            if interrupted:
                break
        return verdicts + [Verdict(None, _INTERRUPTED)] * (len(comparisons) - len(verdicts))

    def _ask(self, comparisons: Sequence[Comparison], first: int) -> tuple[list[Verdict], bool]:
        """What one process says, and whether that was interrupted."""
        with tempfile.TemporaryFile() as errors:
            try:
                process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)
            except OSError as error:
                problem = f"{self.command[0]} cannot be started: {error.strerror}"
                return [Verdict(None, problem)] * len(comparisons), False
            said, end = _Conversation(process, comparisons, first).held(self.timeout)
            problem = end if end == _INTERRUPTED else f"{end}{said.skipped()}{_last_words(errors)}"
        found = said.found()
        return [found.get(place, Verdict(None, problem)) for place in range(len(comparisons))], end == _INTERRUPTED


class _Said:
    """What a process has said: each object's comparison is that of its id, or that of its place among the objects."""

    def __init__(self, first: int, count: int) -> None:
        self._first = first
        self._count = count
        self._named: dict[int, Verdict] = {}
        self._placed: dict[int, Verdict] = {}
        self._objects = 0
        self._last_skipped: str | None = None
        # Objects before the first line that may stand for a verdict.
        self._sure: int | None = None
        self.ended_well = False

    @property
    def complete(self) -> bool:
        """Whether there is an object for each comparison."""
        return self._objects >= self._count

    def read(self, line: bytes) -> bool:
        """Read a line; whether it is an object about a comparison."""
        text = line.decode("utf-8", errors="replace").strip()
        try:
            content = json.loads(text)
        except (ValueError, RecursionError):
            content = None
        if not isinstance(content, dict) or not ("winner" in content or "id" in content):
            return self._skip(text)
        place = content.get("id", self._objects + self._first)
        if not isinstance(place, int) or isinstance(place, bool) or not 0 <= place - self._first < self._count:
            return self._skip(text)
        winner = content.get("winner")
        if winner in _WINNERS:
            verdict = Verdict(winner)
        else:
            verdict = Verdict(None, f'its line has no "winner" that is a, b or tie: {text[:_SHOWN]!r}')
        (self._named if "id" in content else self._placed).setdefault(place - self._first, verdict)
        self._objects += 1
        return True

    def found(self) -> dict[int, Verdict]:
        """Verdicts by place."""
        # What is skipped ahead of the first object is taken for a banner, unless the process meant to end with so few.
        sure = self._count
        if not self.complete and self._sure is not None and (self._sure > 0 or self.ended_well):
            sure = self._sure
        return {place: verdict for place, verdict in self._placed.items() if place < sure} | self._named

    def skipped(self) -> str:
        """The last line that says nothing of a comparison, for the message."""
        return "" if self._last_skipped is None else f"; it also wrote {self._last_skipped[:_SHOWN]!r}, with no verdict"

    def _skip(self, text: str) -> bool:
        if text:
            self._last_skipped = text
            # One after an object tells more than a banner.
            self._sure = self._objects if not self._sure else self._sure
        return False


class _Conversation:
    """One process of a judge: its lines are written and read by threads, so that neither side waits for the other."""

    def __init__(self, process: "subprocess.Popen[bytes]", comparisons: Sequence[Comparison], first: int) -> None:
        self.process = process
        self.comparisons = comparisons
        self.first = first
        self.lines: queue.Queue[bytes | None] = queue.Queue()

    def held(self, timeout: float) -> tuple[_Said, str]:
        """What was said, and how the process ended."""
        for work in (self._write, self._read):
            threading.Thread(target=work, daemon=True).start()
        said = _Said(self.first, len(self.comparisons))
        try:
            return said, self._listen(said, timeout)
        except KeyboardInterrupt:
            return said, _INTERRUPTED
        finally:
            self.process.kill()
            self.process.wait()

    def _listen(self, said: _Said, timeout: float) -> str:
        deadline = time.monotonic() + timeout
        while not said.complete:
            try:
                line = self.lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return f"no verdict within {timeout:g} s"
            if line is None:
                return self._ended(said)
            if said.read(line):
                deadline = time.monotonic() + timeout
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_LEAVE)
        return "it was answered for another comparison"

    def _ended(self, said: _Said) -> str:
        try:
            status = self.process.wait(_LEAVE)
        except subprocess.TimeoutExpired:
            return "it closed its output without an answer"
        said.ended_well = status == 0
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
