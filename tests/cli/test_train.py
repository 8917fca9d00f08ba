"""`agiledpo train` and `agiledpo resume`, as users run them, on a tiny model."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from datasets import Dataset
from safetensors.torch import load_file
from torch.distributed.run import get_args_parser
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from typer.testing import CliRunner, Result

from agiledpo.cli import app
from agiledpo.config import load_config

CONFIGS = Path(__file__).parents[2] / "configs"
_SHORT = ["env.data_batch_size_per_gpu=4", "batch_size=4", "samples.count=0", "threads=1"]

pytestmark = pytest.mark.filterwarnings("ignore:No lora_config")


@pytest.fixture
def here(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny_model: Callable[..., PreTrainedModel],
    tiny_tokenizer: PreTrainedTokenizerFast,
    make_pairs: Callable[..., Dataset],
) -> Path:
    """A directory with a model, ``tiny``, and data, ``pairs.jsonl`` and ``test.jsonl``; the working directory."""
    tiny_model("llama").save_pretrained(tmp_path / "tiny")
    tiny_tokenizer.save_pretrained(tmp_path / "tiny")
    for name, rows, seed in (("pairs", 40, 0), ("test", 8, 1)):
        lines = [json.dumps({**row, "answer": row["chosen"]}) + "\n" for row in make_pairs(rows, seed=seed)]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def train(algorithm: str, *arguments: str, data: Sequence[str] = ("data.test=test.jsonl",)) -> Result:
    return run("train", algorithm, "model.name=tiny", "data.train=pairs.jsonl", *data, *_SHORT, *arguments)


def weights(run_directory: str) -> dict[str, object]:
    return load_file(Path(run_directory, "elite", "actor", "adapter_model.safetensors"))


def assert_same(one: str, other: str) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert all(first[name].equal(second[name]) for name in first)  # type: ignore[attr-defined]


def test_a_run_writes_its_directory_and_can_be_run_again(here: Path) -> None:
    result = train("dpo", "train.max_steps=24", "lora.r=4", "lr=1e-3", "--run", "first")
    assert result.exit_code == 0, result.output
    assert "agiledpo report first" in result.output
    assert "elite/actor" in result.output
    about = json.loads(Path("first/about.json").read_text())
    assert (about["algorithm"], about["status"], about["error"]) == ("dpo", "finished", None)
    assert about["model"]["name"] == "tiny"
    assert about["data"] == {"train": {"rows": 40}, "test": {"rows": 8}}
    assert about["seconds"] > 0
    assert {"machine", "versions", "started", "ended", "command", "processes"} <= about.keys()
    for name in ("config.yaml", "metrics.jsonl", "lineage.jsonl", "checkpoints/step_24", "elite/actor"):
        assert Path("first", name).exists()
    # The configuration says everything: what is made of it is the same, and so is what comes of it.
    config = load_config("dpo", ["first/config.yaml"])
    assert config.values["lora"]["r"] == 4
    assert config.to_yaml() == Path("first/config.yaml").read_text()
    assert run("train", "dpo", "--config", "first/config.yaml", "--run", "second").exit_code == 0
    assert_same("first", "second")
    # And another seed would not have done.
    assert run("train", "dpo", "-c", "first/config.yaml", "seed=1", "--run", "third").exit_code == 0
    assert any(not weights("third")[name].equal(value) for name, value in weights("first").items())  # type: ignore[attr-defined]


def test_nothing_is_overwritten(here: Path) -> None:
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("mine")
    result = train("dpo", "train.max_steps=8", "--run", "mine")
    assert result.exit_code == 1
    assert "mine exists and is no run" in result.output
    assert [path.name for path in Path("mine").iterdir()] == ["notes.txt"]
    assert train("dpo", "train.max_steps=8", "--run", "r").exit_code == 0
    result = train("dpo", "train.max_steps=8", "--run", "r")
    assert result.exit_code == 1
    assert "agiledpo resume r" in result.output


def test_a_run_that_is_stopped_goes_on_as_if_it_had_not_been(here: Path) -> None:
    arguments = ["model.name=tiny", "data.train=pairs.jsonl", "data.test=test.jsonl", *_SHORT]
    arguments += ["train.max_steps=240", "train.evaluation_interval=20", "lr=1e-3"]
    command = [sys.executable, "-m", "agiledpo", "train", "dpo", *arguments, "--run", "stopped"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=_environment())
    log = Path("stopped/metrics.jsonl")
    deadline = time.monotonic() + 60
    while process.poll() is None and not (log.exists() and log.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=30)[0]
    assert process.returncode == 128 + signal.SIGTERM, output
    assert output.count("To go on") == 1
    assert "pairs. To go on: agiledpo resume stopped" in output
    assert json.loads(Path("stopped/about.json").read_text())["status"] == "interrupted"
    saved = [int(path.name.removeprefix("step_")) for path in Path("stopped/checkpoints").glob("step_*")]
    assert 0 < max(saved) < 240
    resumed = run("resume", "stopped")
    assert resumed.exit_code == 0, resumed.output
    assert run("train", "dpo", *arguments, "--run", "whole").exit_code == 0
    assert_same("stopped", "whole")
    assert json.loads(Path("stopped/about.json").read_text())["status"] == "finished"


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}


def begun(run_directory: str) -> str:
    return Path(run_directory, "about.json").read_text()


def test_a_resumed_run_can_be_longer_but_not_another(here: Path) -> None:
    assert train("dpo", "train.max_steps=16", "--run", "r").exit_code == 0
    before, about = Path("r/config.yaml").read_text(), begun("r")
    for change in ("population.size=2", "lr=0.5", "beta=0.7", "env.seed=7", "lora.lora_alpha=3", "seed=1"):
        refused = run("resume", "r", change, "train.max_steps=24")
        assert refused.exit_code == 2
        assert f"agiledpo train dpo --config r/config.yaml {change}." in refused.output
        assert refused.output.count("Error") == 1
    # What only the run itself can find out: other rows.
    refused = run("resume", "r", "data.train=test.jsonl", "train.max_steps=24")
    assert refused.exit_code == 1
    assert "other training rows" in refused.output
    assert Path("r/config.yaml").read_text() == before
    assert begun("r") == about
    resumed = run("resume", "r", "train.max_steps=24", "micro_batch_size_per_gpu=2", "train.verbose=false")
    assert resumed.exit_code == 0, resumed.output
    assert Path("r/checkpoints/step_24").exists()
    values = load_config("dpo", ["r/config.yaml"]).values
    assert (values["train"]["max_steps"], values["micro_batch_size_per_gpu"]) == (24, 2)


def test_before_the_first_checkpoint_everything_may_change(here: Path) -> None:
    assert train("dpo", "data.train=nowhere.jsonl", "train.max_steps=8", "--run", "r").exit_code == 1
    result = run("resume", "r", "data.train=pairs.jsonl", "lr=0.0007", "lora.r=4")
    assert result.exit_code == 0, result.output
    values = load_config("dpo", ["r/config.yaml"]).values
    assert (values["data"]["train"], values["lr"], values["lora"]["r"]) == (str(here / "pairs.jsonl"), 0.0007, 4)
    assert json.loads(Path("r/lineage.jsonl").read_text().splitlines()[0])["hyperparameters"]["lr"] == 0.0007


def test_a_run_goes_on_from_anywhere(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("templates").mkdir()
    Path("reward.py").write_text("def length(completion, answer, question):\n    return float(len(completion))\n")
    few = ["max_completion_length=2", "group_size=2", "train.max_steps=4", "reward=reward.py:length"]
    assert train("grpo", *few, "--run", "r").exit_code == 0
    monkeypatch.chdir("templates")
    result = run("resume", "../r", "train.max_steps=8")
    assert result.exit_code == 0, result.output


def test_what_user_code_raises_can_be_traced(here: Path) -> None:
    Path("reward.py").write_text("def f(completion, answer, question):\n    return float('much')\n")
    few = ["max_completion_length=2", "group_size=2", "train.max_steps=4", "reward=reward.py:f"]
    result = train("grpo", *few, "--run", "r")
    assert result.exit_code == 1
    assert "The traceback is in r/about.json." in result.output
    assert "return float('much')" in json.loads(begun("r"))["traceback"]
    refused = train("dpo", "data.train=missing.jsonl", "--run", "s")
    assert "traceback" not in refused.output
    assert json.loads(begun("s"))["traceback"] is None


def test_resuming_writes_into_no_other_directory(here: Path) -> None:
    Path("home").mkdir()
    Path("home/precious.txt").write_text("x")
    refused = train("dpo", "--resume", "--run", "home")
    assert refused.exit_code == 1
    assert "home exists and is no run" in refused.output
    assert "The run is in" not in refused.output
    assert [path.name for path in Path("home").iterdir()] == ["precious.txt"]


def test_samples_can_be_left_and_taken_up_again(here: Path) -> None:
    some = ["samples.count=1", "samples.max_new_tokens=2"]
    assert train("dpo", "train.max_steps=8", *some, "--run", "r").exit_code == 0
    first = Path("r/samples.jsonl").read_text()
    assert run("resume", "r", "train.max_steps=12", "samples.count=0").exit_code == 0
    assert Path("r/samples.jsonl").read_text() == first
    result = run("resume", "r", "train.max_steps=16", *some)
    assert result.exit_code == 0, result.output
    later = Path("r/samples.jsonl").read_text().removeprefix(first)
    assert [json.loads(line)["step"] for line in later.splitlines()] == [16]


def test_torchrun_leaves_the_options_alone() -> None:
    options = ["--run-dir", "r", "--resume", "--config", "c.yaml", "--dry-run", "--print-config"]
    read = get_args_parser().parse_args(["--nproc-per-node", "2", "-m", "agiledpo", "train", "dpo", *options])
    assert read.training_script_args == ["train", "dpo", *options]
    assert "--run-dir" in run("train", "dpo", "--help").output


def test_stages_chain(here: Path) -> None:
    assert train("sft", "env.response_column=chosen", "train.max_steps=8", "lora.r=4", "--run", "sft").exit_code == 0
    result = train("dpo", "model.adapter=sft/elite", "train.max_steps=8", "lora.r=8", "--run", "dpo")
    assert result.exit_code == 0, result.output
    shapes = {tuple(weight.shape) for name, weight in weights("dpo").items() if "lora_A" in name}  # type: ignore[attr-defined]
    assert {shape[0] for shape in shapes} == {8}


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["beta=-1"], 2, "beta=-1.0 must be greater than 0"),
        (["train.fitness=speed"], 2, "must be one of accuracy, margin"),
        (["evolution.evo_steps=2"], 2, "population.size=4"),
        (["population.size=0"], 2, "at least 1"),
        (["lora.rnak=1"], 2, "did you mean lora.r?"),
        (["model.name=nowhere"], 1, "nowhere"),
        (["data.train=nowhere.jsonl"], 1, "nowhere.jsonl"),
        (["data.prompt_key=promt"], 1, "Perhaps prompt_key='prompt' is meant"),
        (["--resume"], 2, "say which"),
    ],
)
def test_errors_are_sentences(here: Path, arguments: list[str], status: int, message: str) -> None:
    result = run("train", "dpo", "model.name=tiny", "data.train=pairs.jsonl", *_SHORT, *arguments)
    assert result.exit_code == status, result.output
    assert message in result.output
    assert "Traceback" not in result.output


def test_a_failed_run_says_so_in_its_directory(here: Path) -> None:
    result = train("dpo", "data.train=missing.jsonl", "--run", "r")
    assert result.exit_code == 1
    about = json.loads(Path("r/about.json").read_text())
    assert about["status"] == "failed"
    assert about["error"] in result.output.replace("Error: ", f"{about['error'].split(':')[0]}: ")


def test_resuming_nothing_is_refused(here: Path) -> None:
    result = run("resume", "nowhere")
    assert result.exit_code == 2
    assert "nowhere holds no run" in result.output


def test_trying_out_writes_nothing(here: Path) -> None:
    before = sorted(here.rglob("*"))
    result = train("dpo", "--dry-run")
    assert result.exit_code == 0
    assert "Rows: 40 train, 8 test" in result.output
    assert sorted(here.rglob("*")) == before


# What makes the packaged configurations fit the tiny model.
_TINY = ["model.name=tiny", "model.dtype=float32", "data.train=pairs.jsonl", "data.split=null", "data.test_split=null"]
_TINY += ["data.test=test.jsonl", "train.num_epochs=null", "train.max_steps=8", "batch_size=4", "lora.r=2", "threads=1"]
_TINY += ["env.data_batch_size_per_gpu=4", "samples.count=0", "micro_batch_size_per_gpu=null"]
_OWN = {
    "nemo_rl_dpo": ["data.validation.default=test.jsonl"],
    "nemo_gym_dpo": ["data.validation.default=test.jsonl"],
    "grpo": ["data.config=null", "max_completion_length=4", "group_size=2", "env.max_context_length=null"],
    "population": ["evolution.evo_steps=1"],
}


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.stem)
def test_the_configurations_train(here: Path, file: Path) -> None:
    algorithm = file.stem if file.stem in ("sft", "grpo") else "dpo"
    Path("reward.py").write_text("def exact(completion, answer, question):\n    return float(len(completion))\n")
    load_config(algorithm, [file])  # as it is
    overrides = [*_TINY, *_OWN.get(file.stem, [])]
    if file.stem == "nemo_rl_dpo":
        overrides.append("train.checkpoint_steps=4")
    result = run("train", algorithm, "--config", str(file), *overrides, "--run", "r")
    assert result.exit_code == 0, result.output
    assert json.loads(Path("r/about.json").read_text())["status"] == "finished"
    assert (Path("r/rollouts.jsonl").exists()) == (algorithm == "grpo")


def test_names_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGILEDPO_CACHE", str(tmp_path))

    def completions(word: str) -> list[str]:
        shell = {"_AGILEDPO_COMPLETE": "complete_bash", "COMP_WORDS": f"agiledpo train dpo {word}", "COMP_CWORD": "3"}
        return CliRunner().invoke(app, [], env=shell, prog_name="agiledpo").output.split()

    assert "lora.r=" in completions("lora.r")
    assert completions("train.para") == ["train.parallel="]
    assert completions("train.parallel=") == ["train.parallel=data", "train.parallel=population"]
    assert list((tmp_path / "completion").glob("*-dpo.json"))
