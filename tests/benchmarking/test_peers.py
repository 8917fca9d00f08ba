"""The page made from runs, and two systems side by side on a tiny model."""

import math

import pytest
import torch
from peft import LoraConfig, get_peft_model

from benchmarking.pairs import select_pairs, write_pairs
from benchmarking.peers import agiledpo_worker, trl_worker
from benchmarking.peers.page import floor_pairs_per_second, loss_difference, report
from benchmarking.peers.task import Task, start_adapter

WORKLOAD = {
    "model": "tiny",
    "source": "embedded pairs",
    "short_prompts": False,
    "batch_size": 4,
    "max_length": 512,
    "threads": 2,
    "machine": {"cpu": "a CPU", "cores": 2, "threads": 2, "memory_gb": 8, "gpu": None, "python": "3.11"},
    "sizes": {"pairs": 8, "prompt": 6, "chosen": 2, "rejected": 3, "tokens": 88, "completion_tokens": 40},
    "work": {"decoder": [[10, 20, 3]], "head": [10, 50]},
}


def rates(decoder: float, head: float) -> dict[str, object]:
    found = {"10 x 20": {"x @ W.t()": decoder, "oneDNN linear": decoder / 2}}
    found["10 x 50"] = {"x @ W.t()": head / 4, "oneDNN linear": head}
    return {"workload": "w", "config": "matrix rate", "dtype": "float32", "rates": found}


def a_run(config: str, seconds: float, peak: float, losses: list[float]) -> dict[str, object]:
    return {
        "workload": "w",
        "config": config,
        "dtype": "float32",
        "seconds": seconds,
        "pairs": 8,
        "tokens": 88,
        "completion_tokens": 40,
        "peak_mb": peak,
        "losses": losses,
        "lora_dtype": "float32",
        "versions": {"torch": "2"},
    }


def test_the_floor_is_the_fastest_products_median():
    floor = floor_pairs_per_second(WORKLOAD, [rates(100, 10), rates(300, 20), rates(200, 30)])
    decoder, head = 6 * 88 * 600, 6 * 40 * 500
    assert floor.pairs_per_second == pytest.approx(8 / (decoder / 200 + head / 20))
    assert floor.operations_per_pair == pytest.approx((decoder + head) / 8)
    assert floor.training_share == pytest.approx((decoder + head) / 12)
    assert floor.rate == pytest.approx((decoder + head) / (decoder / 200 + head / 20))
    assert floor.products == "oneDNN linear, x @ W.t()"
    assert floor_pairs_per_second(WORKLOAD, []) is None


def test_the_table_shows_medians_and_compares_with_the_fastest_peer():
    runs = [rates(200, 20)]
    runs += [a_run("agiledpo", seconds, 100, [0.69, 0.5]) for seconds in (1.0, 2.0, 9.0)]  # median 4 pairs/s
    runs += [a_run("trl", 16.0, 500, [0.69, 0.5]), a_run("trl:precompute", 8.0, 400, [0.69, 0.51])]
    runs += [a_run("agilerl", 32.0, 800, [0.69, 0.4])]
    text = report({"workloads": {"w": WORKLOAD}, "runs": runs})
    cells = {
        row.split(" | ")[0].removeprefix("| "): row.strip("| ").split(" | ")
        for row in text.splitlines()
        if row.startswith("| ")
    }
    floor = floor_pairs_per_second(WORKLOAD, runs[:1]).pairs_per_second
    ours = cells["AgileDPO"]
    assert ours[1:4] == ["4.00", "44", "4.00"]
    assert ours[4] == f"{100 * 4 / floor:.0f} %"
    assert ours[5:8] == ["100", "0.25", "0e+00"]
    assert ours[-1] == "3"
    assert cells["TRL, reference in each step"][1:4] == ["0.50", "6", "0.50"]
    assert cells["TRL, `precompute_ref_log_probs`"][3] == "1.00"
    assert cells["AgileRL"][6:8] == ["2.00", "1e-01"]


def test_losses_are_compared_step_by_step():
    assert loss_difference([0.7, 0.6, 0.5], [0.7, 0.5, 0.55]) == pytest.approx(0.1)
    with pytest.raises(ValueError, match="longer"):
        loss_difference([0.7], [0.7, 0.6])


def test_an_adapter_starts_alike_whatever_its_name(tiny_model):
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    weights = []
    for name in ("default", "actor"):
        model = get_peft_model(tiny_model("llama"), config, adapter_name=name)
        parameters = dict(model.named_parameters())
        for parameter in parameters.values():
            parameter.data.add_(1.0)
        assert start_adapter(parameters, name) == "float32"
        weights.append({key.replace(name, ""): value for key, value in parameters.items() if "lora_" in key})
    assert weights[0].keys() == weights[1].keys()
    for key, value in weights[0].items():
        assert torch.equal(value, weights[1][key])
        if "lora_A" in key:
            # Uniform in +-1/sqrt(in), so its variance is a third of the square of that.
            assert value.abs().max() <= value.shape[1] ** -0.5
            assert value.detach().var() * value.shape[1] == pytest.approx(1 / 3, rel=0.3)
        else:
            assert not value.any()
    with pytest.raises(ValueError, match="No LoRA adapter 'other'"):
        start_adapter(parameters, "other")


def test_two_systems_take_the_same_steps(tiny_model, tiny_tokenizer, make_pairs, tmp_path, monkeypatch):
    monkeypatch.setenv("CI", "1")  # TRL sends telemetry otherwise
    tiny_model("llama").save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    pairs = select_pairs(make_pairs(12).to_list(), tiny_tokenizer, 12, max_length=40)
    write_pairs(pairs, tmp_path / "pairs.jsonl")
    task = {
        "pairs": str(tmp_path / "pairs.jsonl"),
        "model": str(tmp_path / "model"),
        "dtype": "float32",
        "batch_size": 4,
        "max_length": 40,
        "threads": 1,
        "lr": 3e-2,
    }
    ours = agiledpo_worker.train(Task(**task))
    theirs = trl_worker.train(Task(**task, options={"precompute_ref_log_probs": True}))
    for result in (ours, theirs):
        assert result["losses"][0] == pytest.approx(math.log(2), rel=1e-6)
        assert result["losses"] == pytest.approx(ours["losses"], rel=1e-4)
        assert abs(result["losses"][-1] - math.log(2)) > 0.01
        assert result["pairs"] == 8  # the first batch warms up
        assert result["tokens"] == sum(pair.tokens for pair in pairs[4:])
        assert result["seconds"] > 0
        assert result["peak_mb"] > 100
    assert 0 < theirs["seconds_outside_steps"] < theirs["seconds"]
    assert ours["seconds_outside_steps"] == 0
