"""`agiledpo evaluate` and `agiledpo merge`: what is printed and written, and exit statuses."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from agiledpo.algorithms import DPO
from agiledpo.cli import app


@pytest.fixture
def place(tmp_path, tiny_model, tiny_tokenizer, make_pairs, lora, randomise) -> Path:
    tiny_model().save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    agent = DPO(actor_network=AutoModelForCausalLM.from_pretrained(tmp_path / "model"), lora_config=lora, beta=0.3)
    randomise(agent)
    agent.save_checkpoint(tmp_path / "agent")
    make_pairs(12).to_json(tmp_path / "pairs.jsonl")
    (tmp_path / "rewards.py").write_text("def longer(completion, answer, question):\n    return len(completion)\n")
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "120"})


def test_table_file_and_json(place) -> None:
    output = place / "out" / "evaluation.json"
    command = ["evaluate", place / "agent", "--data", f"one={place / 'pairs.jsonl'}", "--data", place / "pairs.jsonl"]
    extra = ["--against", "base", "--samples", 4, "--max_new_tokens", 4, "--reward", f"{place / 'rewards.py'}:longer"]
    table = run(*command, *extra, "--output", output)
    assert table.exit_code == 0, table.output
    content = json.loads(output.read_text())
    assert set(content["policy"]["preferences"]) == {"one", "pairs"}
    accuracy = content["policy"]["preferences"]["one"]["accuracy"]
    line = next(line for line in table.output.splitlines() if "preference accuracy" in line)
    assert f"{accuracy['value']:.3f} [{accuracy['low']:.3f}, {accuracy['high']:.3f}]" in line
    assert "one: 12 pairs of 12 prompts" in table.output
    rate = content["win_rate"]
    assert rate["wins"] + rate["ties"] + rate["losses"] == 4
    assert f"{rate['wins']}, {rate['ties']}, {rate['losses']}" in table.output
    # Over a policy that is its own reference a gain says what the accuracy says.
    gain = next(line for line in table.output.splitlines() if "gain over the other" in line)
    assert gain.split()[-1] == "-"
    again = run(*command, "--output", output)
    assert again.exit_code == 1
    assert "--overwrite" in again.output
    assert json.loads(output.read_text()) == content
    plain = run(*command[:4], "--format", "json", "--output", output, "--overwrite")
    assert json.loads(plain.stdout) == json.loads(output.read_text())
    assert json.loads(plain.stdout)["policy"]["preferences"]["one"]["accuracy"] == accuracy


def test_what_is_wrong_is_said_in_a_sentence(place) -> None:
    data = ("--data", place / "pairs.jsonl")
    for arguments, status, said in (
        ((place / "none", *data), 1, "is no directory"),
        ((place / "agent", "--data", place / "none.jsonl"), 1, "none.jsonl"),
        ((place / "agent", *data, "--samples", 2, "--reward", "x:y"), 2, "x cannot be imported"),
        ((place / "agent", *data, *data), 2, "twice"),
        ((place / "agent", *data, "--judge", "true"), 2, "against"),
        ((place / "agent",), 2, "--data"),
        ((place / "agent", *data, "--against", "base", "--samples", 1, "--judge", "no-such-judge"), 2, "--judge"),
        ((place / "agent", *data, "--against", "base", "--samples", 1, "--judge", "a 'b"), 2, "--judge"),
        ((place / "agent", *data, "--device", "gpu"), 2, "--device"),
    ):
        done = run("evaluate", *arguments)
        assert done.exit_code == status, done.output
        assert said in " ".join(done.output.replace("│", " ").split())
        assert "Traceback" not in done.output


def test_merge_writes_a_model_and_says_what(place) -> None:
    done = run("merge", place / "agent", place / "merged", "--dtype", "float32")
    assert done.exit_code == 0, done.output
    assert "model.safetensors" in done.output
    merged = AutoModelForCausalLM.from_pretrained(place / "merged")
    agent = DPO.load(place / "agent")
    ids = torch.arange(3, 9)[None]
    with agent.select_adapter("actor") as policy, torch.no_grad():
        expected = policy.eval()(ids).logits
        assert torch.allclose(merged.eval()(ids).logits, expected, atol=1e-4)
        assert not torch.allclose(
            agent.base.model.eval()(ids).logits,
            AutoModelForCausalLM.from_pretrained(place / "model").eval()(ids).logits,
            atol=1e-3,
        )
    again = run("merge", place / "agent", place / "merged")
    assert again.exit_code == 1
    assert "not an empty directory" in " ".join(again.output.split())
    assert run("merge", "base", place / "other").exit_code == 2
