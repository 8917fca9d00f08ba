"""A judge's process: what it says, and what becomes of what it does not say."""

import json
import math
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from agiledpo.evaluation.answers import PolicyAnswer
from agiledpo.evaluation.duel import compare
from agiledpo.evaluation.held_out import HeldOutPrompt
from agiledpo.evaluation.intervals import wilson
from agiledpo.evaluation.judges import CommandJudge, Comparison, RewardJudge, Verdict, load_function

LONGER = """
import json, sys
for line in sys.stdin:
    row = json.loads(line)
    a, b = len(row["answer_a"]), len(row["answer_b"])
    print(json.dumps({"winner": "a" if a > b else "b" if b > a else "tie"}), flush=True)
"""


def prompt(row: int) -> HeldOutPrompt:
    return HeldOutPrompt(row, f"prompt {row} é", f"question {row}", row, torch.tensor([1]))


def answer(text: str) -> PolicyAnswer:
    return PolicyAnswer(text, torch.tensor([1, 2]), True)


def comparisons(*lengths: tuple[int, int]) -> list[Comparison]:
    return [Comparison(prompt(row), "x" * a, "x" * b) for row, (a, b) in enumerate(lengths)]


@pytest.fixture
def script(tmp_path: Path):
    def write(text: str) -> str:
        file = tmp_path / "judge.py"
        file.write_text(text)
        return f"{sys.executable} -S {file}"

    return write


@pytest.mark.parametrize("each", [False, True])
def test_verdicts(script, each: bool) -> None:
    judge = CommandJudge(script(LONGER), each=each)
    assert [verdict.winner for verdict in judge.judge(comparisons((3, 1), (1, 2), (5, 5)))] == ["a", "b", "tie"]


def test_a_winner_that_is_none_costs_its_own_comparison(script) -> None:
    lines = ['{"winner": "a"}', '{"winner": "c"}', '{"id": 3, "winner": null}', '{"winner": "b"}']
    text = f"import sys\nsys.stdin.read()\nprint({chr(10).join(lines)!r})\nprint('gone', file=sys.stderr)\nsys.exit(3)"
    verdicts = CommandJudge(script(text)).judge(comparisons(*[(1, 2)] * 5))
    # The fourth object, without an id, says the same place as the third, and an id tells more.
    assert [verdict.winner for verdict in verdicts] == ["a", None, None, None, None]
    problems = [verdict.problem for verdict in verdicts]
    assert problems[1] == """its line has no "winner" that is a, b or tie: '{"winner": "c"}'"""
    assert problems[3] == """its line has no "winner" that is a, b or tie: '{"id": 3, "winner": null}'"""
    assert problems[2] == problems[4] == "it ended with status 3: gone"


def test_what_is_no_verdict_shifts_nothing(script) -> None:
    """A banner, blank lines and a log between the verdicts."""
    text = LONGER.replace("for line", "print('Loading ...')\nfor line") + "    print('\\n{\"seconds\": 1}')\n"
    judge = CommandJudge(script(text))
    assert [v.winner for v in judge.judge(comparisons((3, 1), (1, 2), (5, 5)))] == ["a", "b", "tie"]


@pytest.mark.parametrize(
    ("lines", "status", "winners"),
    [
        # A line of text may be the second comparison's, or nobody's: what follows could be about any.
        (['{"winner": "a"}', "cannot say", '{"winner": "b"}'], 0, ["a", None, None]),
        (["cannot say", '{"winner": "b"}', '{"winner": "b"}'], 0, [None, None, None]),
        (['{"winner": "a"}', "cannot say", '{"id": 2, "winner": "b"}'], 0, ["a", None, "b"]),
        (['{"winner": "a"}', '{"id": 9, "winner": "b"}', '{"winner": "b"}'], 0, ["a", None, None]),
        # It began and failed: what came first is a banner.
        (["loading", '{"winner": "b"}', '{"winner": "a"}'], 1, ["b", "a", None]),
        (["loading", '{"winner": "b"}', "cannot say", '{"winner": "a"}'], 1, ["b", None, None]),
    ],
)
def test_order_tells_nothing_where_verdicts_are_missing(script, lines, status, winners) -> None:
    text = f"import sys\nsys.stdin.read()\nprint({chr(10).join(lines)!r})\nsys.exit({status})"
    verdicts = CommandJudge(script(text)).judge(comparisons(*[(1, 2)] * 3))
    assert [verdict.winner for verdict in verdicts] == winners
    skipped = next(line for line in reversed(lines) if "winner" not in line or '"id": 9' in line)
    assert all(repr(skipped) in str(verdict.problem) for verdict in verdicts if verdict.winner is None)


def test_ids_name_the_comparison(script) -> None:
    lines = "\n".join(json.dumps({"id": number, "winner": "ab"[number % 2]}) for number in (2, 0, 1))
    text = f"import sys\nsys.stdin.read()\nprint({lines!r})"
    assert [v.winner for v in CommandJudge(script(text)).judge(comparisons(*[(1, 2)] * 3))] == ["a", "b", "a"]


def test_a_judge_that_hangs_keeps_what_it_said(script) -> None:
    text = 'import time\nprint(\'{"winner": "b"}\', flush=True)\ntime.sleep(60)'
    start = time.monotonic()
    verdicts = CommandJudge(script(text), timeout=0.3).judge(comparisons(*[(1, 2)] * 30))
    assert [verdict.winner for verdict in verdicts] == ["b", *[None] * 29]
    assert verdicts[1].problem == "no verdict within 0.3 s"
    # The clock runs from the last verdict, however many are still to come.
    assert time.monotonic() - start < 3


@pytest.mark.parametrize("each", [False, True])
def test_ctrl_c_keeps_what_was_said(script, each: bool) -> None:
    # A process in the background of a shell ignores Ctrl-C, and so would this one there.
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    text = LONGER.replace("    a, b", "    if row['id'] == 2:\n        __import__('time').sleep(60)\n    a, b")
    timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        verdicts = CommandJudge(script(text), each=each).judge(comparisons((3, 1), (1, 2), (5, 5), (3, 1)))
        timer.join()
    finally:
        signal.signal(signal.SIGINT, previous)
    assert [verdict.winner for verdict in verdicts] == ["a", "b", None, None]
    assert [verdict.problem for verdict in verdicts[2:]] == ["interrupted"] * 2


def test_a_judge_may_end_itself(script, tmp_path) -> None:
    """What it does after its last verdict, such as writing its log, is waited for."""
    text = f"{LONGER}\n__import__('time').sleep(0.2)\nopen({str(tmp_path / 'log')!r}, 'w').write('done')\n"
    CommandJudge(script(text)).judge(comparisons((3, 1)))
    assert (tmp_path / "log").read_text() == "done"


def test_no_such_judge() -> None:
    for command, said in (("no-such-judge --at-all", "no program 'no-such-judge'"), ("  ", "empty"), ("a 'b", "quot")):
        with pytest.raises(ValueError, match=rf"judge \(--judge\).*{said}"):
            CommandJudge(command)
    with pytest.raises(ValueError, match="must be above 0"):
        CommandJudge(sys.executable, timeout=0)


def test_rewards_get_answer_and_question() -> None:
    def reward(completion: str, row: int, question: str) -> float:
        assert question == f"question {row}"
        return len(completion) - row

    verdicts = RewardJudge(reward).judge(comparisons((3, 1), (1, 2), (2, 2)))
    assert [verdict.winner for verdict in verdicts] == ["a", "b", "tie"]
    assert verdicts[1].scores == (0, 1)


def test_a_reward_that_fails_costs_its_comparison() -> None:
    def reward(completion: str, row: int, question: str) -> float:
        return len(completion) / (row - 1)

    first, second, third = RewardJudge(reward).judge(comparisons((1, 3), (1, 2), (2, 2)))
    assert (first.winner, third.winner) == ("a", "tie")
    assert second.winner is None
    assert "the reward function 'reward' failed (ZeroDivisionError" in str(second.problem)
    words = RewardJudge(lambda completion, row, question: "good").judge(comparisons((3, 1), (1, 1)))
    assert "'good', which is no number" in str(words[0].problem)
    assert words[0] == words[1]


class FirstIsBest:
    """A judge of nothing but positions."""

    def judge(self, shown):
        return [_verdict("a") for _ in shown]


def _verdict(winner: str) -> Verdict:
    return Verdict(winner)  # type: ignore[arg-type]


def duel(judge, *, both: bool, count: int = 400):
    prompts = [prompt(row) for row in range(count)]
    return compare(judge, prompts, [answer("xxx")] * count, [answer("x")] * count, both_orders=both, seed=5)


def test_position_bias_cancels() -> None:
    once = duel(FirstIsBest(), both=False)
    assert once.first_preferred.value == 1.0
    assert 0.43 < once.rate.value < 0.57
    assert once.wins + once.losses == 400
    assert once.rate == wilson(once.wins / 400, 400)
    twice = duel(FirstIsBest(), both=True)
    assert (twice.rate.value, twice.wins, twice.losses, twice.consistent.value) == (0.5, 400, 400, 0.0)


def test_the_better_policy_wins_wherever_it_stands() -> None:
    judge = RewardJudge(lambda completion, row, question: len(completion) if row % 4 else 0.0)
    for both in (False, True):
        found = duel(judge, both=both)
        assert found.rate.value == pytest.approx(0.75 + 0.25 / 2)
        assert (found.ties, found.losses) == (100 * (1 + both), 0)
    assert found.consistent.value == 1.0


def test_what_could_not_be_judged_is_counted() -> None:
    class Half:
        def judge(self, shown):
            lost = [Verdict(None, "asleep")] * len(shown)
            return [_verdict("tie") if row % 2 else verdict for row, verdict in enumerate(lost)]

    found = duel(Half(), both=False, count=6)
    assert found.failures == {"asleep": 3}
    assert (found.rate.value, found.ties) == (0.5, 3)
    assert [match.score for match in found.matches] == [None, 0.5] * 3
    nothing = compare(RewardJudge(len), [], [], [], both_orders=False, seed=0)
    assert math.isnan(nothing.rate.value)


def test_functions_by_name(tmp_path: Path) -> None:
    file = tmp_path / "rewards.py"
    file.write_text("def short(completion, answer, question):\n    return -len(completion)\n")
    assert load_function(f"{file}:short")("abc", None, "") == -3
    assert load_function("math:sqrt") is math.sqrt
    for name, said in (
        ("short", "names no function"),
        (f"{file}:long", "has no function long; it has short"),
        ("no_such_module:f", "cannot be imported"),
    ):
        with pytest.raises(ValueError, match=said):
            load_function(name)
