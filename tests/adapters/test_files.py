"""Adapters that PEFT, TRL and AgileRL really wrote are read; damaged and foreign files are refused by name."""

import json
import os
import shutil

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from trl import DPOConfig, DPOTrainer

from agiledpo.adapters import AgentAdapters, SharedBaseModel
from agiledpo.adapters.files import AdapterFileError, find_actor, read_adapter
from agiledpo.algorithms import DPO

pytestmark = pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
IDS = torch.arange(3, 12)[None]
CONFIG = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}


def logits_as_actor(model, path):
    """Load what is in a directory as the actor of an agent that was made with the same LoRA configuration."""
    saved = read_adapter(find_actor(path))
    agent = AgentAdapters(SharedBaseModel.of(model), saved.config, separate_reference=False, seed=3)
    assert not agent.load_saved("actor", saved, merge=False)
    with agent.select("actor") as active, torch.no_grad():
        return active.eval()(IDS).logits


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        {**CONFIG, "use_dora": True},
        {**CONFIG, "use_rslora": True, "rank_pattern": {"q_proj": 7}, "alpha_pattern": {"v_proj": 3}},
        {**CONFIG, "target_modules": "all-linear", "lora_dropout": 0.1},
        {**CONFIG, "target_modules": ["embed_tokens", "lm_head"]},
        {**CONFIG, "modules_to_save": ["lm_head"]},
        {**CONFIG, "trainable_token_indices": [3, 5]},
        {**CONFIG, "lora_bias": True},
    ],
    ids=["lora", "dora", "patterns", "all linear", "embeddings", "modules_to_save", "tokens", "bias"],
)
def test_peft_gives_the_same_logits(tiny_model, save_with_peft, config):
    directory, expected = save_with_peft(**config)
    with torch.no_grad():
        assert torch.equal(PeftModel.from_pretrained(tiny_model(), directory).eval()(IDS).logits, expected)
    assert torch.equal(logits_as_actor(tiny_model(), directory), expected)


def test_embeddings_that_peft_saves_along_have_to_be_the_bases(tiny_model, save_with_peft):
    directory, _ = save_with_peft(**{**CONFIG, "target_modules": ["embed_tokens"]})
    assert "base_model.model.model.embed_tokens.base_layer.weight" in load_file(directory / "adapter_model.safetensors")
    with pytest.raises(AdapterFileError, match=r"embed_tokens.base_layer.weight.* which is not this base model's"):
        logits_as_actor(tiny_model(seed=1), directory)


def test_trl_and_its_reference(tiny_model, tiny_tokenizer, make_pairs, trl_one_step, tmp_path, monkeypatch):
    monkeypatch.setenv("CI", "1")  # TRL sends telemetry otherwise
    trainer = DPOTrainer(
        model=tiny_model(),
        args=DPOConfig(
            output_dir=str(tmp_path / "trl"),
            learning_rate=0.01,
            **trl_one_step,
        ),
        train_dataset=make_pairs(4),
        processing_class=tiny_tokenizer,
        peft_config=LoraConfig(**CONFIG, task_type="CAUSAL_LM"),
    )
    trainer.train()
    trainer.save_model()
    with torch.no_grad():
        expected, plain = trainer.model.eval()(IDS).logits, tiny_model()(IDS).logits
    assert (expected - plain).abs().max() > 1e-3
    assert find_actor(tmp_path / "trl") == tmp_path / "trl"
    assert torch.equal(logits_as_actor(tiny_model(), tmp_path / "trl"), expected)


def test_the_layout_of_agilerl(tiny_model, tmp_path):
    # AgileRL 2.8.4 calls save_pretrained on a PeftModel whose adapters are actor and reference, and pickles the rest.
    config = LoraConfig(**CONFIG, task_type="CAUSAL_LM")
    model = get_peft_model(tiny_model(), config, adapter_name="actor")
    model.add_adapter("reference", config)
    for number, (key, parameter) in enumerate(model.named_parameters()):
        if "lora_" in key:
            parameter.data.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    model.eval().save_pretrained(tmp_path, selected_adapters=["actor", "reference"])
    torch.save({"agilerl_version": "2.8.4", "callable": os.getcwd}, tmp_path / "attributes.pt")
    assert find_actor(tmp_path) == tmp_path / "actor"
    for role in ("actor", "reference"):
        model.set_adapter(role)
        with torch.no_grad():
            expected = model(IDS).logits
        assert torch.equal(logits_as_actor(tiny_model(), tmp_path / role), expected)


def test_our_own_checkpoint_and_a_nested_one(tiny_model, lora, randomise, tmp_path):
    agent = DPO(actor_network=tiny_model(), lora_config=lora)
    randomise(agent)
    agent.save_checkpoint(tmp_path / "ours")
    with agent.select_adapter("actor") as model, torch.no_grad():
        expected = model(IDS).logits
    assert find_actor(tmp_path / "ours") == tmp_path / "ours" / "actor"
    shutil.move(tmp_path / "ours" / "actor", tmp_path / "nested" / "actor" / "actor")
    for path in (tmp_path / "nested" / "actor", tmp_path / "nested"):
        assert torch.equal(logits_as_actor(tiny_model(), path), expected)


def test_a_half_precision_adapter_and_keys_of_a_compiled_model(tiny_model, save_with_peft):
    directory, expected = save_with_peft(**CONFIG)
    file = directory / "adapter_model.safetensors"
    renamed = {key.replace("base_model.model.", "base_model.model._orig_mod."): t for key, t in load_file(file).items()}
    save_file({key: tensor.bfloat16() for key, tensor in renamed.items()}, file)
    actual = logits_as_actor(tiny_model(), directory)
    assert 0 < (actual - expected).norm() < 0.01 * expected.norm()


def test_tensors_in_a_bin_file_are_read_and_a_smuggled_object_is_not(tiny_model, save_with_peft, tmp_path):
    directory, expected = save_with_peft(**CONFIG, pickled=True)
    file = directory / "adapter_model.bin"
    assert torch.equal(logits_as_actor(tiny_model(), directory), expected)

    class Smuggled:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "smuggled"),)

    torch.save({**torch.load(file), "extra": Smuggled()}, file)
    with pytest.raises(AdapterFileError, match=r"adapter_model\.bin holds something else than tensors.*not unpickled"):
        read_adapter(directory)
    assert not (tmp_path / "smuggled").exists()


def test_damaged_weights_are_refused_by_name(save_with_peft):
    directory, _ = save_with_peft(**CONFIG)
    file = directory / "adapter_model.safetensors"
    whole = file.read_bytes()
    for damaged in (whole[:-5], whole[:100], b"", b"\xff" * 64):
        file.write_bytes(damaged)
        with pytest.raises(AdapterFileError, match=r"adapter_model\.safetensors is damaged"):
            read_adapter(directory)
    save_file({"a": torch.ones(2, dtype=torch.int8)}, file)
    with pytest.raises(AdapterFileError, match=r"adapter_model\.safetensors has a in torch.int8"):
        read_adapter(directory)
    file.unlink()
    with pytest.raises(AdapterFileError, match=r"adapter_model\.safetensors is missing"):
        read_adapter(directory)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e5m2])
def test_weights_that_are_no_numbers_are_refused_by_key(save_with_peft, value, dtype):
    directory, _ = save_with_peft(**CONFIG)
    file = directory / "adapter_model.safetensors"
    tensors = {key: tensor.to(dtype) for key, tensor in load_file(file).items()}
    save_file(tensors, file)
    read_adapter(directory)
    key = "base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"
    tensors[key][5, 2] = value
    save_file(tensors, file)
    with pytest.raises(AdapterFileError, match=rf"adapter_model\.safetensors has infinite .*{key}"):
        read_adapter(directory)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, "type 'IA3'; only LORA"),
        ({"peft_type": None}, "type None; only LORA"),
        ({"r": 0}, "r=0; it must be a whole number above 0"),
        ({"r": "8"}, "r='8'"),
        ({"lora_alpha": None}, "lora_alpha=None"),
        ({"lora_alpha": float("nan")}, "lora_alpha=nan; it must be a finite number"),
        ({"lora_alpha": float("-inf")}, "lora_alpha=-inf"),
        ({"lora_alpha": 10**400}, "lora_alpha=1000"),
        ({"lora_dropout": float("nan")}, "lora_dropout=nan"),
        ({"lora_dropout": 1.5}, "lora_dropout=1.5; it must be a number from 0 to 1"),
        ({"alpha_pattern": {"q_proj": float("inf")}}, "alpha_pattern="),
        ({"rank_pattern": {"q_proj": 1.5}}, "rank_pattern="),
        ({"rank_pattern": {"[": 3}}, "rank_pattern="),
        ({"target_modules": "["}, r"target_modules='\['; it must be module names, or a regular expression"),
        ({"exclude_modules": "(" * 99}, "exclude_modules="),
        ({"modules_to_save": ["("]}, "modules_to_save="),
        ({"layers_pattern": "*", "layers_to_transform": [1]}, "layers_pattern="),
        ({"layers_to_transform": "x"}, "layers_to_transform='x'; it must be layer numbers"),
        ({"layers_to_transform": [1, "x"]}, "layers_to_transform="),
        ({"target_modules": [3]}, r"target_modules=\[3\]"),
        ({"megatron_config": {"a": 1}, "megatron_core": "os"}, "megatron_config="),
        ({"layers_pattern": "layers"}, "not a LoRA configuration that this version of PEFT reads"),
    ],
)
def test_configurations_that_make_no_sense_are_refused_by_name(save_with_peft, change, message):
    file = save_with_peft(**CONFIG)[0] / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(AdapterFileError, match=rf"adapter_config\.json .*{message}"):
        read_adapter(file.parent)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "JSON"), ("[" * 200_000, "JSON"), ("[1]", "JSON list"), (None, "missing"), ("\x00", "JSON")],
)
def test_a_configuration_that_is_not_one_is_refused_by_name(save_with_peft, text, message):
    file = save_with_peft(**CONFIG)[0] / "adapter_config.json"
    file.unlink() if text is None else file.write_text(text)
    with pytest.raises(AdapterFileError, match=rf"adapter_config\.json .*{message}"):
        read_adapter(file.parent)


def test_another_kind_of_adapter_is_refused(tiny_model, tmp_path):
    config = IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM")
    get_peft_model(tiny_model(), config).save_pretrained(tmp_path)
    with pytest.raises(AdapterFileError, match="type 'IA3'"):
        read_adapter(tmp_path)


def test_directories_without_an_actor_say_what_to_do(tiny_model, save_with_peft, tmp_path):
    with pytest.raises(AdapterFileError, match="nowhere is not a directory"):
        find_actor(tmp_path / "nowhere")
    tiny_model().save_pretrained(tmp_path / "whole")
    with pytest.raises(AdapterFileError, match="whole model"):
        find_actor(tmp_path / "whole")
    (tmp_path / "agilerl").mkdir()
    torch.save({}, tmp_path / "agilerl" / "attributes.pt")
    with pytest.raises(AdapterFileError, match="lora_only=True"):
        find_actor(tmp_path / "agilerl")
    (tmp_path / "empty").mkdir()
    with pytest.raises(AdapterFileError, match=r"There is no adapter_config\.json"):
        find_actor(tmp_path / "empty")
    save_with_peft("several/first", **CONFIG)
    assert find_actor(tmp_path / "several") == tmp_path / "several" / "first"
    save_with_peft("several/second", **CONFIG)
    with pytest.raises(AdapterFileError, match=r"several adapters \(first, second\)"):
        find_actor(tmp_path / "several")
