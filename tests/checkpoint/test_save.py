"""Checkpoints: PEFT directories that give the same logits, safe to load, complete or absent."""

import os
import resource
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel

from agiledpo.algorithms import DPO
from agiledpo.checkpoint.packing import unpacked
from agiledpo.utils.utils import save_llm_checkpoint

IDS = torch.arange(1, 9)[None]


@pytest.fixture
def agent(tiny_model, lora, randomise, make_experiences):
    agent = DPO(actor_network=tiny_model(), lora_config=lora, batch_size=2, lr=1e-3, index=3)
    randomise(agent)
    randomise(agent, "reference", seed=8)
    agent.learn(make_experiences([(3, 4, 2), (2, 2, 5)]))
    agent.fitness.append(0.75)
    return agent


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"),
        LoraConfig(r=3, use_rslora=True, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM"),
        LoraConfig(r=2, use_dora=True, target_modules=["v_proj"], task_type="CAUSAL_LM"),
        LoraConfig(r=2, target_modules=["v_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM"),
    ],
    ids=["lora", "rslora", "dora", "modules_to_save"],
)
def test_saved_adapters_load_with_peft_and_give_the_same_logits(tiny_model, randomise, tmp_path, config):
    agent = DPO(actor_network=tiny_model(), lora_config=config)
    randomise(agent)
    randomise(agent, "reference", seed=8)
    save_llm_checkpoint(agent, tmp_path / "run" / "checkpoint")
    for role in ("actor", "reference"):
        loaded = PeftModel.from_pretrained(tiny_model(), tmp_path / "run" / "checkpoint" / role).eval()
        with agent.select_adapter(role) as model:
            assert torch.equal(loaded(IDS).logits, model.eval()(IDS).logits)


def test_the_files_and_what_they_hold(agent, tmp_path):
    agent.save_checkpoint(tmp_path / "full", lora_only=False)
    files = {str(file.relative_to(tmp_path / "full")) for file in (tmp_path / "full").rglob("*") if file.is_file()}
    assert files == {
        "attributes.pt",
        "manifest.json",
        "actor/README.md",
        *(f"{role}/adapter_{part}" for role in ("actor", "reference") for part in ("config.json", "model.safetensors")),
    }
    attributes = torch.load(tmp_path / "full" / "attributes.pt", weights_only=True)
    assert attributes["hyperparameters"] == agent.hyperparameters
    assert (attributes["algorithm"], attributes["index"], attributes["fitness"]) == ("DPO", 3, [0.75])
    saved = unpacked(attributes["optimizer"])["state"]
    assert all(
        torch.equal(saved[i]["exp_avg"], agent.optimizer.state[p]["exp_avg"])
        for i, p in enumerate(agent.adapters.parameters("actor"))
    )


def test_the_base_is_saved_only_when_asked_under_its_own_names(agent, tiny_model, tmp_path):
    agent.save_checkpoint(tmp_path / "full", lora_only=False, save_optimizer=False)
    attributes = torch.load(tmp_path / "full" / "attributes.pt", weights_only=True)
    fresh = tiny_model(seed=5)
    fresh.load_state_dict(attributes["base_model"])
    assert torch.equal(fresh(IDS).logits, tiny_model()(IDS).logits)
    assert "optimizer" not in attributes
    agent.save_checkpoint(tmp_path / "small")
    small, full = (sum(f.stat().st_size for f in (tmp_path / n).rglob("*")) for n in ("small", "full"))
    assert "base_model" not in torch.load(tmp_path / "small" / "attributes.pt", weights_only=True)
    assert small < full


def test_a_new_checkpoint_replaces_the_old_one_and_nothing_else(agent, tmp_path, randomise):
    path = tmp_path / "checkpoint"
    agent.save_checkpoint(path)
    randomise(agent, seed=99)
    agent.save_checkpoint(path)
    loaded = PeftModel.from_pretrained(agent.base.model.__class__(agent.base.model.config), path / "actor")
    actor = dict(agent.base.parameters(agent.adapters.name("actor")))
    saved = {k.replace(".default", ""): v for k, v in loaded.named_parameters() if ".default" in k}
    assert all(torch.equal(saved[key], value) for key, value in actor.items())
    assert sorted(os.listdir(tmp_path)) == ["checkpoint"]
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="not a checkpoint"):
        agent.save_checkpoint(tmp_path / "notes")
    assert (tmp_path / "notes" / "mine.txt").read_text() == "keep"


def test_a_write_that_fails_leaves_the_old_checkpoint_and_no_rubbish(agent, tmp_path, monkeypatch):
    path = tmp_path / "checkpoint"
    agent.save_checkpoint(path)
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    monkeypatch.setattr(torch, "save", lambda *_: (_ for _ in ()).throw(OSError("No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        agent.save_checkpoint(path)
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before
    assert sorted(os.listdir(tmp_path)) == ["checkpoint"]


@pytest.fixture
def limited() -> Iterator[Callable[[int], None]]:
    """Let no file grow beyond so many bytes, as a disk that is full does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_without_room_is_an_os_error_and_leaves_the_old_checkpoint(agent, tiny_tokenizer, tmp_path, limited):
    path = tmp_path / "checkpoint"
    agent.save_checkpoint(path, tokenizer=tiny_tokenizer)
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    largest = max(len(content) for content in before.values())
    failures = 0
    for size in [0, 1, 100, 1000, *range(1500, largest + 1, 1500)]:
        limited(size)
        try:
            with pytest.raises(OSError, match="File too large"):
                agent.save_checkpoint(path, tokenizer=tiny_tokenizer)
        finally:
            limited(resource.getrlimit(resource.RLIMIT_FSIZE)[1])
        failures += 1
        assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before
        assert os.listdir(tmp_path) == ["checkpoint"]
    assert failures > 5
    agent.lr = 3e-4
    agent.save_checkpoint(path, tokenizer=tiny_tokenizer)
    assert torch.load(path / "attributes.pt", weights_only=True)["hyperparameters"]["lr"] == 3e-4


def test_the_default_path(agent, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_llm_checkpoint(agent)
    assert (tmp_path / "saved_checkpoints" / "actor" / "adapter_model.safetensors").exists()


def test_without_a_separate_reference_only_the_actor_is_saved(tiny_model, lora, tmp_path):
    agent = DPO(actor_network=tiny_model(), lora_config=lora, use_separate_reference_adapter=False)
    agent.save_checkpoint(tmp_path / "checkpoint")
    assert sorted(os.listdir(tmp_path / "checkpoint")) == ["actor", "attributes.pt", "manifest.json"]


def test_numpy_hyperparameters_are_saved_as_plain_numbers(agent, tmp_path):
    agent.beta = np.geomspace(0.03, 1, 4)[1]
    agent.save_checkpoint(tmp_path / "checkpoint")
    attributes = torch.load(tmp_path / "checkpoint" / "attributes.pt", weights_only=True)
    assert attributes["hyperparameters"]["beta"] == pytest.approx(float(agent.beta))
