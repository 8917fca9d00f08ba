"""One base model, many adapters: sharing, isolation, switching, disappearance."""

import contextlib
import gc

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM

from agiledpo.adapters import AgentAdapters, SharedBaseModel

IDS = torch.arange(1, 9)[None]


def adapters(base, lora, *, separate=True, seed=0):
    return AgentAdapters(base, lora, separate_reference=separate, seed=seed)


def fill(parameters, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator))


def test_the_same_model_gives_the_same_base_and_no_base_weight_is_copied(tiny_model, lora):
    model = tiny_model()
    before = {id(p) for p in model.parameters()}
    base = SharedBaseModel.of(model)
    agents = [adapters(base, lora, seed=i) for i in range(3)]
    assert SharedBaseModel.of(model) is base
    assert SharedBaseModel.of(base.peft) is base
    owned = {id(p) for agent in agents for role in ("actor", "reference") for p in agent.parameters(role)}
    assert {id(p) for p in model.parameters()} == before | owned


def test_a_new_adapter_leaves_the_function_unchanged_and_roles_give_different_ones(tiny_model, lora):
    model = tiny_model()
    plain = model(IDS).logits
    first, second = (adapters(SharedBaseModel.of(model), lora, seed=i) for i in range(2))
    with first.select("actor") as active:
        assert torch.equal(active(IDS).logits, plain)
    fill(first.parameters("actor"), 1)
    with first.select("actor") as active:
        moved = active(IDS).logits
    assert (moved - plain).abs().max() > 0.1
    for agent, role in ((first, "reference"), (second, "actor"), (second, "reference")):
        with agent.select(role) as active:
            assert torch.equal(active(IDS).logits, plain)


def test_the_bare_base_is_the_reference_without_a_separate_adapter(tiny_model, lora):
    model = tiny_model()
    plain = model(IDS).logits
    agent = adapters(SharedBaseModel.of(model), lora, separate=False)
    fill(agent.parameters("actor"), 1)
    with agent.select("reference") as active:
        assert torch.equal(active(IDS).logits, plain)
    assert agent.parameters("reference") == []
    with pytest.raises(ValueError, match="bare base"):
        agent.copy_role("actor", "reference")


def test_select_restores_what_was_active_also_when_nested_and_on_errors(tiny_model, lora):
    base = SharedBaseModel.of(tiny_model())
    first, second = adapters(base, lora), adapters(base, lora)
    fill(first.parameters("actor"), 1)
    fill(second.parameters("actor"), 2)
    with first.select("actor") as model:
        expected = model(IDS).logits
        with contextlib.suppress(RuntimeError), second.select("actor"):
            with first.select("reference"):
                pass
            assert not torch.equal(model(IDS).logits, expected)
            raise RuntimeError("on purpose")
        assert torch.equal(model(IDS).logits, expected)


def test_gradients_after_any_switch(tiny_model, lora):
    model = tiny_model()
    base = SharedBaseModel.of(model)
    agents = [adapters(base, lora), adapters(base, lora, separate=False)]
    for agent, role in [(a, r) for a in agents for r in ("reference", "actor", "reference")]:
        agent.use(role)
        trainable = {id(p) for p in model.parameters() if p.requires_grad}
        assert trainable == {id(p) for a in agents for p in a.parameters("actor")}


def test_training_one_agent_leaves_everything_else_bit_identical(tiny_model, lora):
    model = tiny_model()
    base = SharedBaseModel.of(model)
    first, second = adapters(base, lora, seed=1), adapters(base, lora, seed=2)
    own = {id(p) for p in first.parameters("actor")}
    before = {name: p.clone() for name, p in model.named_parameters()}
    with first.select("actor") as active:
        active(IDS).logits.logsumexp(-1).sum().backward()
    torch.optim.SGD(first.parameters("actor"), lr=1.0).step()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed
    assert all(id(p) in own for name, p in model.named_parameters() if name in changed)
    assert second.owned.keys() == {"actor", "reference"}


def test_an_agent_that_goes_away_takes_its_adapters_with_it(tiny_model, lora):
    model = tiny_model()
    plain = model(IDS).logits
    parameters = sum(1 for _ in model.parameters())
    base = SharedBaseModel.of(model)
    first, second = adapters(base, lora, seed=1), adapters(base, lora, seed=2)
    fill(second.parameters("actor"), 2)
    with second.select("actor") as active:
        expected = active(IDS).logits
    del first
    assert len(base.adapter_names) == 2
    with second.select("actor") as active:
        assert torch.equal(active(IDS).logits, expected)
    second.release()
    assert base.adapter_names == ()
    assert torch.equal(model(IDS).logits, plain)
    assert sum(1 for _ in model.parameters()) == parameters
    del base, second, active
    gc.collect()
    assert type(model.model.layers[0].self_attn.q_proj) is nn.Linear
    assert torch.equal(model(IDS).logits, plain)


def test_adapters_of_different_configurations_live_side_by_side(tiny_model, lora):
    base = SharedBaseModel.of(tiny_model())
    small = adapters(base, lora)
    large = adapters(base, LoraConfig(r=8, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    assert {p.shape[0] for name, p in base.parameters(small.name("actor")).items() if "lora_A" in name} == {4}
    assert {p.shape[0] for name, p in base.parameters(large.name("actor")).items() if "lora_A" in name} == {8}
    assert len(large.parameters("actor")) == 4


def test_initialisation_follows_the_seed_and_leaves_global_randomness_alone(tiny_model, lora):
    state = torch.get_rng_state()
    base = SharedBaseModel.of(tiny_model())
    one, same, other = (adapters(base, lora, seed=seed).parameters("actor") for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_state_round_trip(tiny_model, lora):
    base = SharedBaseModel.of(tiny_model())
    first, second = adapters(base, lora, seed=1), adapters(base, lora, seed=2)
    fill(first.parameters("actor"), 1)
    base.load_state(second.name("actor"), {k: v.clone() for k, v in base.state(first.name("actor")).items()})
    assert all(torch.equal(a, b) for a, b in zip(first.parameters("actor"), second.parameters("actor"), strict=True))
    with pytest.raises(ValueError, match="do not fit"):
        base.load_state(second.name("actor"), {"base_model.model.nowhere.lora_A.weight": torch.zeros(4, 32)})


def test_unsuitable_models_are_refused(tiny_model, lora):
    config = tiny_model().config
    with pytest.raises(ValueError, match="no language-model head"):
        SharedBaseModel.of(AutoModel.from_config(config))
    t5 = AutoConfig.for_model("t5", d_model=8, d_ff=8, num_layers=1, num_heads=2, d_kv=4, vocab_size=20)
    with pytest.raises(ValueError, match="encoder-decoder"):
        SharedBaseModel.of(AutoModelForSeq2SeqLM.from_config(t5))
    with pytest.raises(ValueError, match="PreTrainedModel"):
        SharedBaseModel.of(nn.Linear(2, 2))
    wrapped = get_peft_model(tiny_model(), lora)
    with pytest.raises(ValueError, match="already carries PEFT layers"):
        SharedBaseModel.of(wrapped.get_base_model())


def test_a_second_peft_model_over_one_base_is_refused(tiny_model, lora):
    model = tiny_model()
    base = SharedBaseModel.of(model)
    adapters(base, lora)
    with pytest.warns(UserWarning, match="peft_config"):
        second = PeftModel(model, lora, adapter_name="mine")
    with pytest.raises(ValueError, match="second PeftModel"):
        SharedBaseModel.of(second)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"bias": "all"}, "biases of the base"), ({"init_lora_weights": "pissa"}, "rewrites weights of the base")],
)
def test_lora_that_would_change_the_shared_base_is_refused(tiny_model, settings, message):
    model = tiny_model()
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(ValueError, match=message):
        adapters(SharedBaseModel.of(model), LoraConfig(r=2, target_modules="all-linear", **settings))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_loading_by_name_twice_loads_once(tiny_model, tmp_path):
    tiny_model().save_pretrained(tmp_path / "model")
    first = SharedBaseModel.load(str(tmp_path / "model"))
    assert SharedBaseModel.load(str(tmp_path / "model")) is first
    assert SharedBaseModel.load(str(tmp_path / "model"), {"dtype": torch.bfloat16}) is not first
