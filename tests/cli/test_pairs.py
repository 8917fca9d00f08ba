"""`agiledpo pairs` as a process."""

import json
import os
import subprocess
import sys
from typing import get_args

import pytest
from datasets import Dataset

from agiledpo.algorithms import GRPO
from agiledpo.cli import app, pairs
from agiledpo.cli.pairs import FormatName, MultiStepName, StrategyName
from agiledpo.data.rollouts import MultiStep, PairFormat, Strategy
from agiledpo.llm_envs import ReasoningGym
from agiledpo.training import finetune_llm_reasoning


def run(*arguments, **environment):
    command_line = [sys.executable, "-m", "agiledpo", *map(str, arguments)]
    return subprocess.run(command_line, capture_output=True, text=True, env=os.environ | environment, encoding="utf-8")


@pytest.fixture
def rollouts(tmp_path):
    path = tmp_path / "rollouts.jsonl"
    with open(path, "w") as file:
        for prompt, answer, reward in (("Why [b]?", "So ☃.", 1.0), ("Why [b]?", "No.", 0.25), ("How?", "So.", 0.5)):
            output = [{"type": "message", "content": answer}]
            line = {"responses_create_params": {"input": prompt}, "output": output, "reward": reward}
            file.write(json.dumps(line) + "\n")
    return path


def test_the_spellings_of_the_recipe_and_all_outputs(rollouts, tmp_path):
    output, figures = tmp_path / "dpo" / "train.jsonl", tmp_path / "figures.json"
    arguments = ("--input", rollouts, "--output", output, "--min_gap", 0.5, "--strategy", "same_prompt")
    done = run("pairs", *arguments, "--high_threshold", 0.8, "--low_threshold", 0.3, "--statistics", figures)
    assert (done.returncode, done.stderr) == (0, "")
    row = {
        "prompt": [{"role": "user", "content": "Why [b]?"}],
        "chosen": [{"role": "assistant", "content": "So ☃."}],
        "rejected": [{"role": "assistant", "content": "No."}],
        "reward_gap": 0.75,
        "chosen_reward": 1.0,
        "rejected_reward": 0.25,
    }
    assert json.loads(output.read_text(encoding="utf-8")) == row
    statistics = json.loads(figures.read_text())
    assert (statistics["pairs"], statistics["gaps"]["mean"]) == (1, 0.75)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["usable", "rollouts", "3"] in lines
    assert ["prompts", "with", "one", "rollout", "1"] in lines
    assert ["gap", *["0.750"] * 8] in lines
    assert f"prompt: {json.dumps(row['prompt'])}" in done.stdout


def test_dashes_are_the_same(rollouts, tmp_path):
    outputs = [tmp_path / "1.jsonl", tmp_path / "2.jsonl"]
    options = ("--min_gap", "--high_threshold", "--low_threshold", "--max_pairs")
    for output, dash in zip(outputs, "_-", strict=True):
        spelled = ["--" + option[2:].replace("_", dash) for option in options]
        arguments = [part for pair in zip(spelled, (0.1, 0.9, 0.5, 1), strict=True) for part in pair]
        done = run("pairs", "--input", rollouts, "--output", output, "--strategy", "stratified", *arguments)
        assert done.returncode == 0
    assert outputs[0].read_bytes() == outputs[1].read_bytes()


def test_no_pairs_is_status_1_with_advice_and_no_file(rollouts, tmp_path):
    output = tmp_path / "pairs.jsonl"
    done = run("pairs", "--input", rollouts, "--output", output, "--min-gap", 0.9)
    assert done.returncode == 1
    assert done.stderr == (
        f"Warning: {rollouts} gives no pairs with min_gap=0.9: rewards lie between 0.25 and 1, and the largest gap "
        f"within a prompt is 0.75 (median 0.75). Lower min_gap.\n"
    )
    assert not output.exists()


def test_a_bad_line_is_one_sentence_and_status_1(rollouts, tmp_path):
    with open(rollouts, "a") as file:
        file.write('{"reward": 1}\n')
    done = run("pairs", "--input", rollouts, "--output", tmp_path / "pairs.jsonl")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"Error: rollouts dataset ({rollouts}): line 4, field 'responses_create_params': it is missing. Use the file "
        f"of rollouts that NeMo Gym wrote, where every line repeats the request.\n"
    )
    assert run("pairs", "--input", rollouts, "--output", tmp_path / "p.jsonl", "--on-invalid", "skip").returncode == 0


def test_files_that_are_missing_or_in_the_way_are_status_1(rollouts, tmp_path):
    done = run("pairs", "--input", tmp_path / "nothing", "--output", tmp_path / "pairs.jsonl")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "does not exist" in done.stderr
    (tmp_path / "pairs.jsonl").write_text("precious")
    done = run("pairs", "--input", rollouts, "--output", tmp_path / "pairs.jsonl")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "exists; choose another one, or set overwrite=True (--overwrite)." in done.stderr


def test_statistics_that_cannot_be_written_are_found_before_the_pairs_are_made(rollouts, tmp_path):
    output, figures = tmp_path / "pairs.jsonl", tmp_path / "figures.json"
    for place, problem in ((rollouts / "figures.json", "is no directory"), ("/dev/full", "is no regular file")):
        done = run("pairs", "--input", rollouts, "--output", output, "--statistics", place)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert problem in done.stderr
        assert not output.exists()
    figures.write_text("precious")
    done = run("pairs", "--input", rollouts, "--output", output, "--statistics", figures)
    assert (done.returncode, figures.read_text(), output.exists()) == (1, "precious", False)
    assert f"--statistics ({figures}) exists" in done.stderr
    arguments = ("--input", rollouts, "--output", output, "--statistics", figures)
    assert run("pairs", *arguments, "--overwrite").returncode == 0
    assert json.loads(figures.read_text())["pairs"] == 1


def test_the_tables_are_printed_also_if_the_statistics_fail(rollouts, tmp_path, monkeypatch, capsys):
    """The disk is full when they are written: the pairs are there, and what is known of them is said."""

    def full(figures, path, *, overwrite):
        raise OSError("No space left on device")

    monkeypatch.setattr(pairs, "_write_statistics", full)
    output = tmp_path / "pairs.jsonl"
    arguments = ["pairs", "--input", rollouts, "--output", output, "--statistics", tmp_path / "figures.json"]
    with pytest.raises(SystemExit) as ended:
        app([str(argument) for argument in arguments])
    said = capsys.readouterr()
    assert (ended.value.code, said.err) == (1, "Error: No space left on device\n")
    assert "pairs by same_prompt" in said.out
    assert "The first pair of" in said.out
    assert output.exists()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--min-gap", "-1"), "min_gap must not be negative"),
        (("--strategy", "best"), "--strategy"),
        (("--statistics", "rollouts.jsonl"), "--statistics"),
    ],
)
def test_bad_options_are_status_2(rollouts, tmp_path, options, named):
    options = [str(rollouts) if option == "rollouts.jsonl" else option for option in options]
    done = run("pairs", "--input", rollouts, "--output", tmp_path / "pairs.jsonl", *options, NO_COLOR="1")
    assert done.returncode == 2
    assert named in done.stderr
    assert len(rollouts.read_text().splitlines()) == 3


def test_a_terminal_without_the_characters_is_no_failure(rollouts, tmp_path):
    done = run("pairs", "--input", rollouts, "--output", tmp_path / "p.jsonl", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert (done.returncode, done.stderr) == (0, "")
    assert "So ?." in done.stdout


def test_the_commands_import_no_model_code():
    code = """
import sys, agiledpo.cli
print([name for name in ("torch", "transformers", "datasets", "peft", "numpy") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_choices_are_those_of_the_library():
    assert list(get_args(StrategyName)) == list(Strategy)
    assert list(get_args(FormatName)) == list(PairFormat)
    assert list(get_args(MultiStepName)) == list(MultiStep)


def test_pairs_of_the_log_of_a_run(tiny_model, tiny_tokenizer, lora, tmp_path):
    """From sampling to preference pairs: every pair is of one question, and its rewards are those of its texts."""
    tiny_tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }} {% endfor %}{% if add_generation_prompt %}w90{% endif %}"
    )
    rows = Dataset.from_list([{"question": f"w{10 + i} w{20 + i}", "answer": i} for i in range(4)])

    def small(completion, answer, question):
        return sum(int(word[1:]) < 50 for word in completion.split() if word.startswith("w")) / 8

    env = ReasoningGym(rows, rows, tiny_tokenizer, small, data_batch_size_per_gpu=2)
    agent = GRPO(
        actor_network=tiny_model(),
        lora_config=lora,
        group_size=4,
        max_completion_length=8,
        gradient_checkpointing=False,
    )
    log, output = tmp_path / "rollouts.jsonl", tmp_path / "pairs.jsonl"
    finetune_llm_reasoning([agent], env, rollouts_path=log, evaluation_interval=None, verbose=False)
    assert len(log.read_text().splitlines()) == 16
    done = run("pairs", "--input", log, "--output", output, "--strategy", "same_prompt", "--on-invalid", "skip")
    assert done.returncode == 0, done.stderr
    pairs = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert 1 <= len(pairs) <= 4
    assert len({pair["prompt"][0]["content"] for pair in pairs} & set(rows["question"])) == len(pairs)
    for pair in pairs:
        chosen, rejected = (small(pair[side][0]["content"], None, "") for side in ("chosen", "rejected"))
        assert (pair["chosen_reward"], pair["rejected_reward"]) == (chosen, rejected)
        assert pair["reward_gap"] == chosen - rejected > 0
