"""`agiledpo launch-check` alone, under a real launcher, and where somebody is missing."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from transformers import AutoConfig
from typer.testing import CliRunner

from agiledpo.cli import app
from agiledpo.distributed.memory import Processes, Workload, estimate
from agiledpo.distributed.model_sizes import count

CONFIG = AutoConfig.for_model(
    "llama",
    vocab_size=512,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)
RUN = ["--population", "4", "--batch-size", "6", "--micro-batch-size", "4", "--max-length", "32", "--lora-r", "8"]
SIZES = count(CONFIG, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"), torch.bfloat16)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A directory with a configuration and nothing else."""
    CONFIG.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def environment(**variables: str) -> dict[str, str]:
    launched = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "SLURM_NTASKS")
    kept = {name: value for name, value in os.environ.items() if name not in launched}
    return {**kept, "OMP_NUM_THREADS": "1", "COLUMNS": "120", "ACCELERATE_USE_CPU": "true", **variables}


def command(*arguments: object) -> list[str]:
    return ["-m", "agiledpo", "launch-check", *map(str, arguments)]


def run(arguments: list[str], **variables: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment(**variables), check=False
    )


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return int(listener.getsockname()[1])


def expected(workload: Workload, processes: Processes) -> Mapping[str, int]:
    found = estimate(SIZES, workload, processes)
    return {**found.parts, "total": found.total}


def test_alone(model, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    result = CliRunner().invoke(app, ["launch-check", "--model", str(model), *RUN, "--format", "json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["world_size"], report["backend"], report["all_reduce"]) == (1, None, [])
    assert (report["base_parameters"], report["adapter_parameters"]) == (SIZES.base_elements, SIZES.adapter_elements)
    assert report["estimate"] == expected(Workload(4, 32, device="cpu"), Processes(agents=4))
    assert report["fits"]
    assert report["passes"]


def test_a_table_for_people_and_ways_out(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    huge = AutoConfig.for_model(
        "llama", vocab_size=512, hidden_size=2**14, intermediate_size=2**15, num_hidden_layers=128
    )
    huge.save_pretrained(tmp_path / "huge")
    result = CliRunner().invoke(
        app, ["launch-check", "--model", str(tmp_path / "huge"), "--max-length", "8", "--lora-r", "1"]
    )
    assert result.exit_code == 1
    weights = 128 * (4 * 2**28 + 3 * 2**29 + 2 * 2**14) + 2 * 512 * 2**14 + 2**14
    assert f"{weights:,} parameters in bfloat16" in " ".join(result.stdout.split())
    rows = [line.split() for line in result.stdout.splitlines()]
    assert ["base", "weights", f"{2 * weights / 2**30:,.1f}", "GiB"] in rows
    assert "It does not fit" in result.stdout
    assert "ranks, gradient checkpointing and micro_batch_size_per_gpu=1" in " ".join(result.stdout.split())


def test_under_torchrun(model):
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    done = run([*launcher, *command("--model", model, *RUN, "--format", "json")])
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)  # one rank speaks
    assert (report["world_size"], report["backend"]) == (2, "gloo")
    assert [rank["rank"] for rank in report["ranks"]] == [0, 1]
    assert {rank["versions"]["torch"] for rank in report["ranks"]} == {torch.__version__}
    assert report["available"] == min(rank["free"] // 2 for rank in report["ranks"])
    # Six rows are three for each of two.
    assert report["micro_batch_size"] == 3
    assert report["estimate"] == expected(Workload(3, 32, device="cpu"), Processes(2, agents=4))
    assert [timing["size"] for timing in report["all_reduce"]] == [8, 2**23]
    for timing in report["all_reduce"]:
        assert timing["bandwidth"] * timing["seconds"] == pytest.approx(timing["size"])  # 2 (n - 1) / n is 1 for n = 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU Accelerate needs not be told")
def test_processes_that_accelerate_takes_for_single_ones(model):
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    done = run([*launcher, *command("--model", model, *RUN)], ACCELERATE_USE_CPU="false")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("Error: The launcher started 2 processes, but Accelerate finds 1") == 1


def test_a_rank_that_does_not_join(model, monkeypatch):
    launch = {"RANK": "0", "WORLD_SIZE": "3", "MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port())}
    for name, value in launch.items():
        monkeypatch.setenv(name, value)
    result = CliRunner().invoke(app, ["launch-check", "--model", str(model), *RUN, "--timeout", "1"])
    assert result.exit_code == 1
    assert "2 of 3 processes did not join within 1 s: ranks 1, 2. Here are: 0 on" in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize("rank", [0, 1])
def test_tasks_that_slurm_started_without_telling_them_their_ranks(rank, model, monkeypatch):
    tasks = {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "4", "SLURM_LOCALID": str(rank), "SLURM_PROCID": str(rank)}
    for name, value in tasks.items():
        monkeypatch.setenv(name, value)
    result = CliRunner().invoke(app, ["launch-check", "--model", str(model), *RUN])
    assert result.exit_code == 1
    spoken = "srun started 4 tasks, but RANK and WORLD_SIZE are not set" in result.stderr
    assert spoken == (rank == 0)
    assert bool(result.output) == spoken


def test_ranks_that_read_different_models(model, tmp_path):
    other = AutoConfig.from_pretrained(model, num_hidden_layers=3)
    other.save_pretrained(tmp_path / "other")
    port = str(free_port())
    processes = [
        subprocess.Popen(
            [sys.executable, *command("--model", directory, *RUN)],
            env=environment(RANK=rank, WORLD_SIZE="2", LOCAL_RANK=rank, MASTER_ADDR="localhost", MASTER_PORT=port),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, directory in (("0", model), ("1", tmp_path / "other"))
    ]
    (_, first), (output, second) = (process.communicate(timeout=120) for process in processes)
    assert [process.returncode for process in processes] == [1, 1]
    assert "Ranks differ in model configuration:" in first
    assert "Ranks differ" not in output + second


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--target-modules", "nothing"], "nothing"),
        (["--prompt-length", "32"], "prompt_length=32"),
        (["--zero-stage", "2", "--parallel", "population"], "parallel='population' with zero_stage=2"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(model, options, message, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    result = CliRunner().invoke(app, ["launch-check", "--model", str(model), *RUN, *options])
    assert result.exit_code == 1
    assert message in result.stderr
    assert "Traceback" not in result.output
