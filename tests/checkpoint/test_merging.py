"""Merged models: the adapter's logits without PEFT, from files that Transformers loads by itself."""

import json
import os
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from agiledpo.adapters.files import AdapterFileError
from agiledpo.algorithms import DPO
from agiledpo.checkpoint import CheckpointError, merge
from agiledpo.checkpoint.run import save_run

IDS = torch.arange(1, 33).reshape(2, 16)


def lora_config(**settings: object) -> LoraConfig:
    return LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **settings})


@pytest.fixture
def tokenizer(tiny_tokenizer):
    tiny_tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }} {% endfor %}"
    return tiny_tokenizer


@pytest.fixture
def trained(tiny_model, randomise, tmp_path, tokenizer):
    """Make a base model on the disk, an agent on it whose adapter is not zero, and its checkpoint."""

    def make(config: LoraConfig | None = None, architecture: str = "llama", **model_settings: object) -> DPO:
        model = tiny_model(architecture, **model_settings)
        model.save_pretrained(tmp_path / "base")
        tokenizer.save_pretrained(tmp_path / "base")
        live = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        agent = DPO(actor_network=live, lora_config=config or lora_config(), use_separate_reference_adapter=False)
        randomise(agent)
        agent.save_checkpoint(tmp_path / "agent")
        return agent

    return make


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    return model.eval()(IDS).logits


def actor_logits(agent: DPO) -> Tensor:
    with agent.select_adapter("actor") as model:
        return logits(model)


def bits(model: PreTrainedModel) -> dict[str, Tensor]:
    return {key: tensor.clone() for key, tensor in model.state_dict().items()}


def stored(directory) -> dict[str, torch.dtype]:
    found = {}
    for file in directory.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            found.update({key: tensors.get_tensor(key).dtype for key in tensors.keys()})  # noqa: SIM118
    return found


@pytest.mark.parametrize(
    ("architecture", "config", "tied"),
    [
        ("llama", lora_config(), False),
        ("llama", lora_config(r=3, use_rslora=True, target_modules=["q_proj", "lm_head", "embed_tokens"]), False),
        ("llama", lora_config(rank_pattern={"q_proj": 2}, alpha_pattern={"v_proj": 32}), False),
        ("llama", lora_config(use_dora=True, target_modules=["v_proj", "down_proj", "embed_tokens"]), False),
        ("llama", lora_config(target_modules=["v_proj"], modules_to_save=["lm_head"]), False),
        ("gpt2", lora_config(target_modules=["c_attn", "c_proj"], fan_in_fan_out=True), True),
        ("gpt2", lora_config(target_modules=["c_attn"], lora_bias=True, fan_in_fan_out=True), True),
        ("qwen2", lora_config(), True),
        ("qwen2", lora_config(target_modules=["q_proj", "embed_tokens"]), False),
        ("qwen2", lora_config(target_modules=["q_proj", "lm_head"]), False),
        ("qwen2", lora_config(target_modules=["q_proj"], modules_to_save=["lm_head"]), False),
        ("qwen2", lora_config(target_modules=["q_proj"], modules_to_save=["embed_tokens"]), False),
        ("qwen2", lora_config(target_modules=["embed_tokens"], ensure_weight_tying=True), True),
        ("mixtral", lora_config(target_modules=["q_proj"], target_parameters=["experts.gate_up_proj"]), False),
        ("gemma2", lora_config(target_modules=["embed_tokens", "o_proj"]), False),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
@pytest.mark.parametrize("given", ["name", "model"])
@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings:UserWarning")
def test_the_merged_model_gives_the_adapters_logits(trained, tmp_path, tokenizer, architecture, config, tied, given):
    agent = trained(config, architecture)
    expected = actor_logits(agent)
    bare = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert (logits(bare) - expected).abs().max() > 0.1  # there is something to merge
    before = bits(agent.base.model)
    merge(tmp_path / "agent", tmp_path / "out", base_model=agent.base.model if given == "model" else None)
    merged, report = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values()), report
    assert type(merged) is type(bare)
    assert not any("lora" in key or "base_layer" in key for key in merged.state_dict())
    torch.testing.assert_close(logits(merged), expected, rtol=1e-5, atol=1e-5)
    assert merged.config.tie_word_embeddings is tied
    assert ("lm_head.weight" in stored(tmp_path / "out")) is not tied
    after = bits(agent.base.model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert torch.equal(actor_logits(agent), expected)


def test_greedy_generations_are_the_same(trained, tmp_path):
    agent = trained()
    merge(tmp_path / "agent", tmp_path / "out")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "agent/actor")
    how = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": None, "attention_mask": torch.ones_like(IDS)}
    assert torch.equal(merged.generate(IDS, **how), peft.generate(input_ids=IDS, **how))
    assert agent.base.model.generation_config.to_dict() == {
        **merged.generation_config.to_dict(),
        "transformers_version": agent.base.model.generation_config.transformers_version,
    }


def test_bfloat16_is_rounded_once(trained, tmp_path):
    """Each merged weight is the float32 sum, rounded: at most half a unit in the last place from it."""
    agent = trained(dtype=torch.bfloat16)
    assert agent.base.model.dtype == torch.bfloat16
    merge(tmp_path / "agent", tmp_path / "out")
    merge(tmp_path / "agent", tmp_path / "wide", dtype=torch.float32)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    wide = AutoModelForCausalLM.from_pretrained(tmp_path / "wide", dtype="auto")
    assert (merged.dtype, wide.dtype) == (torch.bfloat16, torch.float32)
    actor = dict(agent.base.parameters(agent.adapters.name("actor")))
    layer = "base_model.model.model.layers.1.mlp.up_proj"
    key = "model.layers.1.mlp.up_proj.weight"
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype="auto").state_dict()
    exact = base[key].double() + 2 * (
        actor[f"{layer}.lora_B.weight"].double() @ actor[f"{layer}.lora_A.weight"].double()
    )
    torch.testing.assert_close(wide.state_dict()[key].double(), exact, rtol=1e-6, atol=1e-7)
    assert torch.equal(merged.state_dict()[key], wide.state_dict()[key].bfloat16())
    assert torch.equal(merged.state_dict()["model.norm.weight"], base["model.norm.weight"])
    # Rounding of the weights moves the logits as much as rounding of everything else in bfloat16 does.
    reference = logits(wide)
    error = (logits(merged).float() - reference).abs().mean()
    assert error < 3 * (actor_logits(agent).float() - reference).abs().mean()


def test_large_models_are_written_in_pieces(trained, tmp_path):
    agent = trained()
    merge(tmp_path / "agent", tmp_path / "out", max_shard_size=20_000)
    pieces = sorted(tmp_path.glob("out/model-*.safetensors"))
    assert len(pieces) > 3
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {piece.name for piece in pieces}
    torch.testing.assert_close(
        logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), actor_logits(agent), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("where", ["checkpoint", "argument", "base"])
def test_the_tokenizer_comes_along(trained, tmp_path, tokenizer, where):
    agent = trained()
    tokenizer.chat_template += "from " + where
    if where == "checkpoint":
        tokenizer.save_pretrained(tmp_path / "agent" / "tokenizer")
    elif where == "base":
        tokenizer.save_pretrained(tmp_path / "base")
    given = tokenizer if where == "argument" else None
    merge(tmp_path / "agent", tmp_path / "out", base_model=agent.base.model, tokenizer=given)
    loaded = AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "w4 w96 unknown w17"
    assert loaded(text).input_ids == tokenizer(text).input_ids == [4, 96, 3, 17]
    chat = [{"role": "user", "content": "w5"}]
    assert loaded.apply_chat_template(chat, tokenize=False) == "user: w5 from " + where
    assert (loaded.pad_token_id, loaded.bos_token_id, loaded.eos_token_id) == (0, 1, 2)


def test_without_any_tokenizer_it_says_what_to_pass(trained, tiny_model, tmp_path):
    trained()
    with pytest.raises(ValueError, match="pass tokenizer"):
        merge(tmp_path / "agent", tmp_path / "out", base_model=tiny_model())
    assert not (tmp_path / "out").exists()


def test_a_plain_peft_directory_and_what_trl_writes(trained, tiny_model, tmp_path, tokenizer):
    agent = trained()
    merge(tmp_path / "agent" / "actor", tmp_path / "from_peft")
    trl = tmp_path / "trl"
    trl.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (trl / name).write_bytes((tmp_path / "agent" / "actor" / name).read_bytes())
    tokenizer.save_pretrained(trl)
    merge(trl, tmp_path / "from_trl", base_model=tiny_model(), tokenizer=None)
    for name in ("from_peft", "from_trl"):
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        torch.testing.assert_close(logits(merged), actor_logits(agent), rtol=1e-5, atol=1e-5)


def test_an_agent_of_a_run_takes_the_runs_tokenizer(trained, tiny_model, tmp_path, tokenizer):
    agent = trained()
    agent.held_out = {"accuracy": 0.625}
    save_run(tmp_path / "run", {}, [agent], metrics={}, tokenizer=tokenizer)
    with pytest.raises(CheckpointError, match=r"agents/agent_0"):
        merge(tmp_path / "run", tmp_path / "out")
    merge(tmp_path / "run" / "agents" / "agent_0", tmp_path / "out", base_model=tiny_model())
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(merged), actor_logits(agent), rtol=1e-5, atol=1e-5)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == tokenizer.chat_template
    assert "| accuracy | 0.625 |" in (tmp_path / "out" / "README.md").read_text()


def swapped(file):
    file.write_text(file.read_text().replace('"w4": 4', '"w4": 5', 1).replace('"w5": 5', '"w5": 4', 1))


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        ("tokenizer.json", swapped),
        ("tokenizer_config.json", lambda file: file.unlink()),
        ("chat_template.jinja", lambda file: shutil.rmtree(file.parent)),
        ("added_tokens.json", lambda file: file.write_text('{"w4": 96}')),
    ],
    ids=["changed", "missing", "all missing", "added"],
)
def test_a_runs_tokenizer_has_to_be_as_the_run_left_it(trained, tmp_path, tokenizer, monkeypatch, name, harm):
    agent = trained()
    run = tmp_path / "run"
    save_run(run, {}, [agent], metrics={}, tokenizer=tokenizer)
    place = run / "agents" / "agent_0"
    (run / "run.pt").write_bytes(b"not looked at")
    merge(place, tmp_path / "before", base_model=agent.base.model)
    before = {file.name: file.read_bytes() for file in (run / "tokenizer").glob("*")}
    harm(run / "tokenizer" / name)
    assert before != {file.name: file.read_bytes() for file in (run / "tokenizer").glob("*")}
    with pytest.raises(CheckpointError, match=rf"run/tokenizer/{name}"):
        merge(place, tmp_path / "out", base_model=agent.base.model)
    monkeypatch.chdir(run / "agents")
    with pytest.raises(CheckpointError, match=rf"tokenizer/{name}"):
        merge("agent_0", tmp_path / "out", base_model=agent.base.model)
    merge(place, tmp_path / "out", base_model=agent.base.model, tokenizer=tokenizer)
    tokenizer.save_pretrained(place / "tokenizer")  # one of its own comes first
    merge(place, tmp_path / "own", base_model=agent.base.model)
    shutil.rmtree(place / "tokenizer")
    (run / "tokenizer").mkdir(exist_ok=True)
    (run / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"run/manifest\.json is missing"):
        merge(place, tmp_path / "again", base_model=agent.base.model)


def test_a_live_model_keeps_what_users_set(tiny_model, trained, tmp_path, tokenizer):
    """A model that never saw an agent: trainable, in training mode, with a hook and a tied head."""
    trained(architecture="qwen2")
    model = tiny_model("qwen2").train()
    called = []
    model.model.norm.register_forward_hook(lambda *_: called.append(1))
    before = bits(model)
    tied = model.lm_head.weight is model.model.embed_tokens.weight
    merge(tmp_path / "agent", tmp_path / "out", base_model=model, tokenizer=tokenizer)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert tied == (model.lm_head.weight is model.model.embed_tokens.weight)
    assert model.config.tie_word_embeddings
    assert {key: tensor.dtype for key, tensor in before.items()} == {k: t.dtype for k, t in model.state_dict().items()}
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    model(IDS)
    assert called == [1]


def test_another_base_model_is_refused(trained, tiny_model, tmp_path, tokenizer):
    trained()
    for other in (tiny_model(seed=1), tiny_model(hidden_size=64), tiny_model("mistral")):
        with pytest.raises(CheckpointError, match=r"manifest\.json"):
            merge(tmp_path / "agent", tmp_path / "out", base_model=other, tokenizer=tokenizer)
    with pytest.raises(AdapterFileError, match="does not fit the base model"):
        merge(tmp_path / "agent/actor", tmp_path / "out", base_model=tiny_model(hidden_size=64), tokenizer=tokenizer)
    tiny_model(seed=1).save_pretrained(tmp_path / "other")
    with pytest.warns(UserWarning, match="names the base model"):
        merge(tmp_path / "agent/actor", tmp_path / "out", base_model=tmp_path / "other", tokenizer=tokenizer)


@pytest.mark.parametrize("change", ["config", "weights", "nan"])
def test_damaged_adapters_are_refused(trained, tmp_path, change):
    agent = trained()
    directory = tmp_path / "agent" / "actor"
    if change == "config":
        settings = json.loads((directory / "adapter_config.json").read_text())
        (directory / "adapter_config.json").write_text(json.dumps({**settings, "alora_invocation_tokens": [1, 2]}))
    elif change == "weights":
        weights = directory / "adapter_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-8])
    else:
        with torch.no_grad():
            agent.adapters.parameters("actor")[0][0, 0] = float("nan")
        agent.save_checkpoint(tmp_path / "agent")
    with pytest.raises(AdapterFileError, match="adapter_"):
        merge(directory, tmp_path / "out")
    with pytest.raises(ValueError, match="adapter_"):
        merge(tmp_path / "agent", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_float16_that_overflows_is_refused(trained, tmp_path):
    agent = trained()
    with torch.no_grad():
        for parameter in agent.adapters.parameters("actor"):
            parameter.mul_(1e4)
    agent.save_checkpoint(tmp_path / "agent")
    with pytest.raises(AdapterFileError, match=r"infinite in torch\.float16"):
        merge(tmp_path / "agent", tmp_path / "out", dtype=torch.float16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_base_model_without_a_name_is_taken_from_the_checkpoint(tiny_model, randomise, tmp_path, tokenizer, dtype):
    agent = DPO(actor_network=tiny_model("qwen2", dtype=dtype), lora_config=lora_config())
    randomise(agent)
    agent.save_checkpoint(tmp_path / "adapters", tokenizer=tokenizer)
    with pytest.raises(ValueError, match="does not say which base model"):
        merge(tmp_path / "adapters", tmp_path / "out")
    agent.save_checkpoint(tmp_path / "whole", lora_only=False, tokenizer=tokenizer)
    merge(tmp_path / "whole", tmp_path / "out")
    merge(tmp_path / "whole", tmp_path / "given", base_model=agent.base.model)
    out, given = (AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype="auto") for name in ("out", "given"))
    assert {key: t.dtype for key, t in bits(out).items()} == {key: t.dtype for key, t in bits(given).items()}
    assert all(torch.equal(tensor, bits(given)[key]) for key, tensor in bits(out).items())
    assert (logits(out) - logits(tiny_model("qwen2", dtype=dtype))).abs().max() > 0.1


def test_what_is_there_is_not_overwritten(trained, tmp_path):
    trained()
    out = tmp_path / "out"
    out.mkdir()
    merge(tmp_path / "agent", out)  # empty: fine
    before = {file: file.read_bytes() for file in out.iterdir()}
    with pytest.raises(FileExistsError, match="not an empty directory"):
        merge(tmp_path / "agent", out)
    with pytest.raises(FileExistsError, match="not an empty directory"):
        merge(tmp_path / "agent", tmp_path / "agent")
    assert {file: file.read_bytes() for file in out.iterdir()} == before


def test_a_write_that_fails_leaves_nothing(trained, tmp_path, monkeypatch, tokenizer):
    trained()
    there = sorted(os.listdir(tmp_path))

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(type(tokenizer), "save_pretrained", full)
    with pytest.raises(OSError, match="No space left"):
        merge(tmp_path / "agent", tmp_path / "out", tokenizer=tokenizer)
    assert sorted(os.listdir(tmp_path)) == there


def test_the_card_and_the_configuration_say_what_it_is(trained, tmp_path):
    agent = trained()
    agent.fitness.append(0.8125)
    agent.save_checkpoint(tmp_path / "agent")
    merge(tmp_path / "agent", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "library_name: transformers" in card
    assert "| fitness | 0.8125 |" in card
    assert "tuned with DPO" in card
    assert "| rank | 4 |" in card
    assert not list((tmp_path / "out").glob("adapter_*"))
    assert "peft" not in (tmp_path / "out" / "config.json").read_text()
