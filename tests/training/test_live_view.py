"""The live view fits whatever there is room for, and shows what matters most."""

import math
from io import StringIO

import pytest
from rich.cells import cell_len
from rich.console import Console

from agiledpo.algorithms.core.measured import Estimate
from agiledpo.training.live_view import LiveView
from agiledpo.training.observer import Outline
from agiledpo.training.pace import Pace
from agiledpo.training.sample import Sample
from agiledpo.training.standings import Standing

SHOWN = {
    "loss": ("loss", ".4f"),
    "accuracy": ("rewards/accuracies", ".2f"),
    "margin": ("rewards/margins", "+.3f"),
    "tokens/s": ("tokens_per_second", ".0f"),
}


def standing(index: int, fitness: float = 0.5, **arguments) -> Standing:
    figures = {"loss": 0.6931, "accuracy": 0.75, "margin": 0.0123, "tokens/s": 5231.0}
    values = {"beta": 0.1, "lr": 5e-6, "nll_alpha": 0.25}
    return Standing(index, figures, values, Estimate(fitness, 0.021), **arguments)


def drawn(standings, *, width=100, height=24, encoding="utf-8", **arguments) -> list[str]:
    pace = Pace(480)
    pace.advanced(120)
    outline = Outline("DPO", "pair", 480, SHOWN, fitness="accuracy")

    class File(StringIO):
        pass

    File.encoding = encoding
    console = Console(file=File(), width=width, height=height, force_terminal=False)
    console.print(LiveView(outline, pace, standings, **arguments))
    return console.file.getvalue().splitlines()


def test_a_line_for_each_agent_with_its_figures():
    agents = [standing(0, 0.61, is_elite=True), standing(3, 0.58), standing(5, math.nan, has_diverged=True)]
    text = drawn(agents, generation=2)
    assert text[0].startswith("120/480 pairs")
    assert "25%" in text[0]
    rows = [line.split() for line in text]
    assert ["agent", "loss", "accuracy", "margin", "tokens/s", "beta", "lr", "nll_alpha", "held-out"] in rows
    assert ["0", "★", "0.6931", "0.75", "+0.012", "5231", "0.1", "5e-06", "0.25", "0.610", "±", "0.021"] in rows
    assert ["3", "0.6931", "0.75", "+0.012", "5231", "0.1", "5e-06", "0.25", "0.580", "±", "0.021"] in rows
    assert ["5", "diverged", "0.1", "5e-06", "0.25", "-"] in rows
    assert any("DPO, generation 2, held-out: accuracy" in line for line in text)


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("height", [16, 24, 60])
def test_many_agents_fit_a_small_terminal(width, height):
    agents = [standing(i, 0.4 + i / 1000, is_elite=i == 63) for i in range(64)]
    sample = Sample(63, "Why?\n" * 50, "Because. " * 50, 0.5)
    sets = {f"validation-{i}": "loss 0.6931, accuracy 0.500" for i in range(9)}
    text = drawn(agents, width=width, height=height, sample=sample, validation=sets)
    assert max(map(cell_len, text)) <= width
    assert len(text) <= height
    numbers = [int(line.split()[0]) for line in text if "±" in line]
    assert len(numbers) == min(max(3, height - 14), 20) - 1
    assert (numbers[0], numbers[-1]) == (63, 0)  # the best first, the worst last
    assert not any("…" in line for line in text if "±" in line or "held-out" in line)
    assert numbers == sorted(numbers, reverse=True)
    assert any(f"{64 - len(numbers)} more agents between them" in line for line in text)
    assert any("and 5 more validation sets" in line for line in text)


def test_a_narrow_terminal_says_what_a_wider_one_shows():
    text = drawn([standing(0), standing(1)], width=60)
    header = next(line for line in text if "held-out" in line and "agent" in line)
    assert header.split() == ["agent", "loss", "accuracy", "margin", "lr", "held-out"]
    assert "a wider screen also shows nll_alpha, tokens/s, beta" in text[-1]


def test_a_terminal_of_ascii_gets_ascii():
    text = drawn([standing(0, is_elite=True)] * 30, encoding="ascii", sample=Sample(0, "¿", "é", 1.0))
    assert "\n".join(text).isascii()
    assert any(line.split()[:2] == ["0", "*"] for line in text)


def test_an_answer_is_cut_and_cannot_move_the_cursor():
    text = drawn(
        [standing(0)], width=60, sample=Sample(0, "Say\nhi", "\x1b[2J\x1b[H\rgone [bold]x" + " word" * 40, 0.25)
    )
    assert "agent 0 was asked: Say hi" in text
    answer = text[-1]
    assert answer.startswith("and answered (reward 0.25): [2J [H gone [bold]x word")
    assert answer.endswith("…")
    assert len(answer) == 60
