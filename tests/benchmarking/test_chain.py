"""What the chain of stages rewards and reports; its stages are trained by hand."""

import pytest
from datasets import Dataset

from benchmarking.chain import _distinct, page, parse, reward
from benchmarking.machine import describe_machine

BREAD = ["bread", "dough"]


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("Bread rises because yeast fills the dough with gas.", 1.0),
        ("Rice grows in fields that are under water.", 0.5),  # the rule, but another topic
        ("Bread rises because yeast fills the dough with gas", 0.5),  # no full stop
        ("Sure! Bread rises because yeast fills it with gas.", 0.5),  # boilerplate
        ("Bread rises.", 0.5),  # too short
        ("Bread rises", 0.4),
        ("- Bread rises", 0.3),
        ("Sure! - It rises\n", 0.2),
        ("Sure, it rises\n* up", 0.1),  # but for having ended, nothing holds
        ("", 0.3),  # ended, plain and direct
    ],
)
def test_reward(completion, expected):
    assert reward(completion, BREAD, "Why does bread rise?") == pytest.approx(expected)


def test_each_prompt_once():
    rows = [
        {
            "prompt": [{"role": "user", "content": text}],
            "topic": [text],
            "chosen": [{"role": "assistant", "content": "a"}],
        }
        for text in ("b", "a", "b", "c", "a")
    ]
    distinct = _distinct(Dataset.from_list(rows))
    assert distinct.column_names == ["prompt", "topic"]
    assert [row["prompt"][0]["content"] for row in distinct] == ["b", "a", "c"]
    assert distinct["topic"][:] == [["b"], ["a"], ["c"]]


def stage(number):
    names = ("accuracy", "success", "rule", "topic", "distinct", "words", "kl")
    return {name: (number + place / 10) / 10 for place, name in enumerate(names)} | {"words": 10.0 * number + 0.4}


def test_page():
    figures = {"loss": 0.1234, "rewards/accuracies": 0.5, "mean_reward": 0.25, "success_rate": 0.125}
    measured = {"before": figures, "after": {name: 2 * value for name, value in figures.items()}, "seconds": 61.6}
    difference = {"actor": 0.0123, "reference": 4e-5}
    run = {
        "command": "python -m benchmarking.chain",
        "rows": 64, "test_rows": 48, "prompts": 40, "grpo_prompts": 128, "rank": 16,
        "examined": {name: stage(place) for place, name in enumerate(("base", "SFT", "DPO", "GRPO"))},
        "sft": measured, "dpo": measured, "grpo": measured,
        "logits": {"bfloat16": difference, "float64": {"actor": 0.0, "reference": 0.0}},
    }  # fmt: skip
    text = page({"machine": describe_machine(), "runs": [{}, run]})
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "|" in line]
    assert lines[0] == ["held out", "base", "SFT", "DPO", "GRPO"]
    assert ["preference accuracy against the base", "0.0%", "10.0%", "20.0%", "30.0%"] in lines
    assert ["answers that satisfy rule and topic", "1.0%", "11.0%", "21.0%", "31.0%"] in lines
    assert ["mean words", "0", "10", "20", "30"] in lines
    assert ["KL from the base per token, nats", "0.060", "0.160", "0.260", "0.360"] in lines
    assert ["SFT", "loss, nats per token", "0.123", "0.247"] in lines
    assert ["DPO", "preference accuracy against the SFT stage", "0.500", "1.000"] in lines
    assert ["GRPO", "greedy answers with full reward", "0.125", "0.250"] in lines
    assert "Seconds: SFT 62, DPO 62, GRPO 62." in text
    assert "rank 16, over the largest logit: bfloat16: actor 1.2e-02, reference 4.0e-05; float64: actor 0.0e+00" in text
    assert "64 rows of the embedded pairs for SFT and as many others for DPO, then 128 prompts" in text


def test_defaults():
    options = parse([])
    assert (options.rows, options.grpo_prompts, options.test_rows, options.prompts) == (64, 128, 48, 48)
    assert parse(["--dtype", "float32"]).dtype == "float32"
