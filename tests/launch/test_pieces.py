"""Data, functions and populations as configurations ask for them."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import Dataset

from agiledpo.algorithms import DPO
from agiledpo.algorithms.core.registry import Choice, LogUniform, RLParameter
from agiledpo.data import load_preferences, load_questions
from agiledpo.launch.data import open_data
from agiledpo.launch.evolving import founders, hyperparameter_config
from agiledpo.launch.functions import load_function, load_rewards


@pytest.fixture
def pairs(tmp_path: Path, make_pairs: Callable[..., Dataset]) -> str:
    path = tmp_path / "pairs.jsonl"
    rows = [{**row, "prompt": f"w{4 + number // 2} "} for number, row in enumerate(make_pairs(40))]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_no_prompt_is_on_both_sides(pairs: str) -> None:
    rows = open_data(load_preferences, pairs, test_fraction=0.25, seed=1)
    train, test = set(rows.train.dataset["prompt"]), set(rows.test.dataset["prompt"])
    assert not train & test
    assert (len(rows.train.dataset), len(rows.test.dataset)) == (30, 10)
    other = open_data(load_preferences, pairs, test_fraction=0.25, seed=2)
    assert set(other.test.dataset["prompt"]) != test
    few = open_data(load_preferences, pairs, test_fraction=0.25, seed=1, max_test_rows=3, max_rows=None)
    assert few.test.dataset["prompt"] == rows.test.dataset["prompt"][:3]
    assert few.train.dataset["prompt"] == rows.train.dataset["prompt"]


def test_each_source_has_its_place(pairs: str) -> None:
    rows = open_data(load_preferences, pairs, pairs, final=pairs, validation={"mine": pairs}, max_rows=10)
    assert len(rows.train.dataset) == 10
    assert rows.final is not None
    assert [len(held.dataset) for held in (rows.test, rows.final, rows.validation["mine"])] == [40, 40, 40]
    assert rows.validation["mine"].name == "validation-mine"


def test_the_embedded_data_hold_other_topics_out() -> None:
    rows = open_data(load_preferences, max_test_rows=7)
    assert (len(rows.train.dataset), len(rows.test.dataset)) == (394, 7)
    asked = open_data(load_questions, answer_column="topic")
    assert set(map(str, asked.train.dataset["topic"])).isdisjoint(map(str, asked.test.dataset["topic"]))


def test_a_function_is_found_by_its_path(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def long(completion, answer, question):\n    return len(completion)\n")
    assert load_function(f"{file}:long", "reward")("abc", None, "") == 3
    assert load_function("json:dumps", "reward") is json.dumps
    named = load_rewards({"length": f"{file}:long", "other": "json:dumps"})
    assert (list(named), named["length"]("ab", None, "")) == (["length", "other"], 2)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("reward.py", "names no function; write reward=module:function"),
        ("nowhere.py:f", "there is no file nowhere.py"),
        ("no_such_module:f", "cannot be imported (ModuleNotFoundError"),
        ("json:missing", "has no function 'missing'. It has"),
    ],
)
def test_a_path_that_leads_nowhere_says_so(path: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        load_function(path, "reward")


def test_founders_differ_as_they_are_told() -> None:
    spread = founders({"lr": {"min": 1e-5, "max": 1e-3}, "beta": [0.1, 0.2, 0.4]}, 3, DPO)
    assert [each["beta"] for each in spread] == [0.1, 0.2, 0.4]
    assert [each["lr"] for each in spread] == pytest.approx([1e-5, 1e-4, 1e-3])
    assert founders(None, 2, DPO) == [{}, {}]
    for wrong in ({"lr": [1e-5]}, {"lr": {"min": 0, "max": 1}}, {"speed": [1, 2, 3]}):
        with pytest.raises(ValueError, match=r"population\.founders\."):
            founders(wrong, 3, DPO)


def test_hyperparameters_evolve_where_they_are_told() -> None:
    given = {
        "lr": {"min": 1e-6, "max": 1e-3, "grow_factor": 1.5},
        "beta": {"log_uniform": [0.01, 1.0]},
        "loss_type": {"choice": ["sigmoid", ["sigmoid", "ipo"]]},
    }
    config = hyperparameter_config({"hyperparameters": given})
    assert config is not None
    assert dict(config) == {
        "lr": RLParameter(min=1e-6, max=1e-3, grow_factor=1.5),
        "beta": LogUniform(0.01, 1.0),
        "loss_type": Choice("sigmoid", ("sigmoid", "ipo")),
    }
    for wrong in ({"min": 1}, {"choice": 3}, {"log_uniform": [1]}, [1, 2], {"min": 0, "max": 1, "choice": [1]}):
        with pytest.raises(ValueError, match=r"evolution\.hyperparameters\.lr="):
            hyperparameter_config({"hyperparameters": {"lr": wrong}})
