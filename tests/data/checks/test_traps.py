"""Texts that are probably not what is meant: what is found, and what is not."""

from typing import Any

import numpy as np
import pytest

from agiledpo.data.checks.histogram import EDGES, class_name, length_figures
from agiledpo.data.checks.openings import Opening, Openings
from agiledpo.data.checks.traps import TRAPS
from agiledpo.data.examples import Example, Form

QUESTION = "What is the capital of France, and of Germany?"


def caught(form: Form, example: Example) -> dict[str, str]:
    """What is found, by the name of the trap."""
    finds = {trap.check: trap.find(form, example) for trap in TRAPS}
    return {check: excerpt for check, excerpt in finds.items() if excerpt is not None}


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected", "checks"),
    [
        ("Why?\n", "So.", "No.", []),
        ("Why?", " So.", "\nNo.", []),
        ("", "So.", "No.", []),
        ("Why? ", "So.", "No.", ["prompt_ends_with_space"]),
        ("Why?\t", "So.", "No.", ["prompt_ends_with_space"]),
        ("Human: Why?\n\nAssistant:", " So.", "No.", ["words_run_together"]),
        ("Why?", "...", "!", []),  # no words that could run together
        (QUESTION + "\n", QUESTION + " Paris.", "Rome.", ["completion_repeats_prompt"]),
        (QUESTION + "\n", "Paris.", f"You ask: {QUESTION} Paris.", ["completion_repeats_prompt"]),
        ("Why?\n", "Why? So.", "No.", []),  # too short to tell
        ("Why?\n", "So.\n\nHuman: And now?", "No.", ["role_marker"]),
        ("Why?\n", "So.", "No.<|im_end|>", ["role_marker"]),
        ("Why?\n", "The Human: a history", "No.", []),
        ("Human: Why?<|im_end|>\n", "So.", "No.", []),  # a prompt that is text holds its markers
        ("JSON?\n", '{"a": [1, 2', '{"a": 1}', ["cut_off_json"]),
        ("JSON?\n", '{"a": "so it goes', "No.", ["cut_off_json"]),
        ("JSON?\n", '{"a": 1} is it', "[1] A. Author, [see there]", []),
        ("JSON?\n", '[{"a": 1},', "{a: 1", ["cut_off_json"]),
        ("JSON?\n", "[" * 100_000, "No.", []),
    ],
)
def test_traps_in_texts(prompt: str, chosen: str, rejected: str, checks: list[str]) -> None:
    assert list(caught(Form.TEXT, Example(prompt, (chosen, rejected)))) == checks


@pytest.mark.parametrize(
    ("content", "answer", "checks"),
    [
        ("Why? ", "So.", []),
        (QUESTION, QUESTION, []),
        ("Why?<|im_end|>", "So.", ["role_marker"]),
        ("Why?", "So.\n\nAssistant: And", ["role_marker"]),
        ("JSON?", '[{"a"', ["cut_off_json"]),
    ],
)
def test_traps_in_messages(content: str, answer: str, checks: list[str]) -> None:
    chosen, rejected = ([{"role": "assistant", "content": text}] for text in (answer, "No."))
    assert list(caught(Form.CHAT, Example([{"role": "user", "content": content}], (chosen, rejected)))) == checks


def test_excerpts_show_the_place() -> None:
    text = "x" * 500 + "\n\nHuman: And" + "y" * 500
    excerpt = caught(Form.TEXT, Example("Why?\n", (text, "No.")))["role_marker"]
    assert "Human: And" in excerpt
    assert excerpt.startswith("…x")
    assert excerpt.endswith("y…")
    assert len(excerpt) < 80
    joined = caught(Form.TEXT, Example("Assistant:", ("Sure", "No")))["words_run_together"]
    assert joined == "Assistant:Sure"


def test_token_ids_have_no_traps() -> None:
    assert caught(Form.TOKENS, Example([1, 2], ([3], [4]))) == {}


def test_openings_that_differ_most() -> None:
    openings = Openings()
    for number in range(100):
        openings.add(("As an  AI model" if number < 40 else f"{number} is it", "as an AI" if number < 10 else "Well"))
    assert openings.most_different(2) == [Opening("well", 0.0, 0.9), Opening("as an ai", 0.4, 0.1)]


def test_frequent_openings_survive_many_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agiledpo.data.checks.openings._MOST", 100)
    openings = Openings()
    for number in range(5000):
        openings.add((f"{number} is rare" if number % 2 else "Sure thing", f"{-number} is rare too"))
    (opening,) = openings.most_different(3)
    assert (opening.words, opening.rejected) == ("sure thing", 0.0)
    assert opening.chosen == 0.5


def test_classes_of_lengths() -> None:
    lengths = np.array([0, 1, 2, 3, 4, 7, 8, 2**31 - 1], dtype=np.int32)
    figures = length_figures(lengths)
    counts: dict[str, Any] = {class_name(number): count for number, count in enumerate(figures.counts) if count}
    assert counts == {"0": 1, "1": 1, "2-3": 2, "4-7": 2, "8-15": 1, "1,073,741,824-": 1}
    assert len(figures.counts) == len(EDGES)
