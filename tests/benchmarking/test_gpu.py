"""The GPU benchmark on a CPU: what it counts, and that all systems do the same training."""

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from agiledpo.scoring import PreferenceBatch
from benchmarking.gpu import __main__ as command
from benchmarking.gpu.environment import UnsuitableMachineError, check_requirements
from benchmarking.gpu.flops import peak_rate, useful_flops
from benchmarking.gpu.shapes import SHAPES, make_config, make_model
from benchmarking.gpu.synthetic import END, Lengths, make_batches
from benchmarking.gpu.systems import SYSTEMS, Training


@pytest.mark.parametrize(
    ("name", "total", "without_embedding"),
    [("Qwen2.5-0.5B", 0.49, 0.36), ("Qwen2.5-3B", 3.09, 2.77), ("Qwen2.5-7B", 7.61, 6.53)],
)
def test_shapes_have_the_parameters_of_the_models(name: str, total: float, without_embedding: float) -> None:
    # Billions of parameters, with and without embeddings, as the model cards give them.
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(make_config(SHAPES[name]))
    everything = sum(p.numel() for p in model.parameters()) / 1e9
    embeddings = {id(m.weight): m.weight for m in (model.get_input_embeddings(), model.get_output_embeddings())}
    assert everything == pytest.approx(total, abs=0.006)
    assert everything - sum(w.numel() for w in embeddings.values()) / 1e9 == pytest.approx(without_embedding, abs=0.006)


def test_useful_operations_against_a_count_by_hand() -> None:
    ids = torch.ones(20, dtype=torch.int64)
    batch = PreferenceBatch(prompts=[ids[:7]], chosen=[ids[:3]], rejected=[ids[:5]], labels=["a"])
    # One layer of the tiny shape: q and o 64 x 64, k and v 64 x 32, gate, up and down 64 x 128; two layers.
    layer = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128
    # Policy forward, input gradient, reference forward: 3 products of 2 operations a weight. 15 tokens, 8 of them
    # completions' before which the head of 500 tokens stands.
    assert useful_flops(SHAPES["tiny"], [batch]) == 6 * (15 * 2 * layer + 8 * 64 * 500)
    assert useful_flops(SHAPES["tiny"], [batch, batch]) == 2 * useful_flops(SHAPES["tiny"], [batch])


@pytest.mark.parametrize(
    ("device", "tera"),
    [
        ("NVIDIA H200", 989),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("Quadro", None),
    ],
)
def test_peak_of_the_data_sheet(device: str, tera: float | None) -> None:
    assert peak_rate(device) == (None if tera is None else tera * 1e12)


def test_lengths_follow_the_distribution_and_the_seed() -> None:
    lengths = Lengths(prompt=90, completion=30)
    batches = make_batches(50, 8, lengths, vocabulary=100, seed=3)
    whole = PreferenceBatch.concat(batches)
    # A log-normal length of spread 0.5 varies by 53 % of its mean: 400 prompts average to within 2.7 % of it.
    assert sum(map(len, whole.prompts)) / 400 == pytest.approx(90, rel=0.1)
    assert sum(map(len, (*whole.chosen, *whole.rejected))) / 800 == pytest.approx(30, rel=0.1)
    assert max(map(len, whole.prompts)) <= 270
    assert min(map(len, whole.prompts)) < 60 < 120 < max(map(len, whole.prompts))
    assert all(int(ids[-1]) == END and END not in ids[:-1] for ids in (*whole.chosen, *whole.rejected))
    assert whole.largest_token_id < 100
    again = PreferenceBatch.concat(make_batches(50, 8, lengths, vocabulary=100, seed=3))
    assert all(torch.equal(a, b) for a, b in zip(whole.prompts, again.prompts, strict=True))
    other = PreferenceBatch.concat(make_batches(50, 8, lengths, vocabulary=100, seed=4))
    assert not all(torch.equal(a, b) for a, b in zip(whole.prompts, other.prompts, strict=True))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_all_systems_train_alike(checkpointing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    shape = SHAPES["tiny"]
    batches = make_batches(3, 2, Lengths(prompt=12, completion=5), shape.vocabulary)
    training = Training(batch_size=2, checkpointing=checkpointing, lr=1e-2, warm_up=1)
    losses = {}
    for name, train in SYSTEMS.items():
        run = train(make_model(shape, torch.device("cpu"), torch.float32), batches, training)
        assert run.seconds > 0, name
        losses[name] = list(run.losses)
    for name, values in losses.items():
        assert len(values) == 3, name
        assert values[0] == pytest.approx(math.log(2), abs=1e-6), name
        # The learning rate is large enough for the later losses to differ from ln 2, so they tell systems apart.
        assert abs(values[2] - math.log(2)) > 1e-3, name
        assert values == pytest.approx(losses["plain"], abs=2e-5), name


def test_the_command_on_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_VERBOSITY", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
        monkeypatch.setenv(variable, "")  # the command sets them; this puts them back
    sizes = "--prompt 12 --completion 5 --batch-sizes 2 --steps 2 --warm-up 1 --repeats 2 --checkpointing off"
    arguments = ["--device", "cpu", "--shapes", "tiny", "--systems", "agiledpo", "plain", *sizes.split()]
    assert command.main([*arguments, "--output", str(tmp_path)]) == 0
    assert "tiny: agiledpo attends by tiles at 44 tokens" in capsys.readouterr().out
    content = json.loads((tmp_path / "gpu_cpu.json").read_text())
    assert [run["system"] for run in content["runs"]] == ["agiledpo", "plain"]
    timed = make_batches(3, 2, Lengths(12, 5), SHAPES["tiny"].vocabulary)[1:]
    tokens, flops = sum(batch.tokens for batch in timed), useful_flops(SHAPES["tiny"], timed)
    for run in content["runs"]:
        assert run["losses"][0] == pytest.approx(math.log(2), abs=1e-3)
        assert len(run["seconds"]) == 2
        assert 0 < run["mfu"] < 1
        # All rates are of the same work in the same time.
        assert run["tokens_per_second"] / run["pairs_per_second"] == pytest.approx(tokens / 4)
        assert run["flops_per_second"] / run["pairs_per_second"] == pytest.approx(flops / 4)
        assert run["pairs_per_second"] == pytest.approx(2 / (sum(run["seconds"]) / 2))
        assert run["peak_bytes"] is None
    assert "| tiny | plain | 2 | off |" in (tmp_path / "gpu_cpu.md").read_text()


def test_what_is_missing_is_named_at_once() -> None:
    with pytest.raises(UnsuitableMachineError, match=r"torch is .*999 is needed; no_such_package>=1 is missing"):
        check_requirements({"torch": "999", "no_such_package": "1"})
    check_requirements({"torch": "999"}, any_version=True)


def test_the_command_offers_what_there_is() -> None:
    assert tuple(SHAPES) == command.SHAPES
    assert tuple(SYSTEMS) == command.SYSTEMS
