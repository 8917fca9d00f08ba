"""An agent whose adapters were rebuilt by a merge goes on learning, and evolves with the others."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from agiledpo.adapters.files import read_adapter

IDS = torch.arange(3, 12)[None]
TARGETS = {"target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}


@pytest.fixture
def saved(tiny_model, tmp_path):
    """Make a saved adapter: ``saved(r=8, ...)``."""

    def make(**config):
        model = get_peft_model(tiny_model(), LoraConfig(**{**TARGETS, **config}))
        generator = torch.Generator().manual_seed(5)
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
        model.save_pretrained(tmp_path)
        return read_adapter(tmp_path)

    return make


def merge(agent, role, adapter):
    assert agent.adapters.load_saved(role, adapter, merge=True)
    agent._rebuild_after_merge()


def snapshot(agent):
    return {key: p.detach().clone() for key, p in agent.base.parameters(agent.adapters.owned["actor"]).items()}


def test_the_same_pairs_have_the_same_loss_before_and_after(make_agent, experiences, saved):
    agent = make_agent(moved=True, lora_config=LoraConfig(r=4, lora_alpha=8, **TARGETS))
    before = agent.learn(experiences, training=False)
    merge(agent, "reference", saved(r=8, target_modules=["up_proj", "lm_head"]))
    agent.adapters.clear_reference()
    after = agent.learn(experiences, training=False)
    for name, value in before.items():
        assert after[name] == pytest.approx(value, abs=2e-5), name


@pytest.mark.parametrize("fast_layers", [True, False])
def test_a_step_after_the_merge_is_the_step_without_it(make_agent, experiences, saved, fast_layers):
    # Unclipped: alpha / r goes from 2 to 1, so B doubles and its gradient halves, which clipping would notice.
    settings = {"moved": True, "fast_layers": fast_layers, "max_grad_norm": 1e9}
    agents = [make_agent(lora_config=LoraConfig(r=4, lora_alpha=8, **TARGETS), **settings) for _ in range(2)]
    for agent in agents:
        agent.learn(experiences)
    merge(agents[1], "reference", saved(r=8))
    factors = {key: 2.0 for key in snapshot(agents[1]) if "lora_B" in key}
    agents[1].adapters.clear_reference()
    agents[0].adapters.clear_reference()
    before = [snapshot(agent) for agent in agents]
    results = [agent.learn(experiences) for agent in agents]
    assert results[0]["loss"] == pytest.approx(results[1]["loss"], abs=1e-5)
    after = [snapshot(agent) for agent in agents]
    for key, value in after[0].items():
        corner = tuple(map(slice, value.shape))
        steps = value - before[0][key], after[1][key][corner] - before[1][key][corner]
        assert before[1][key][corner] == pytest.approx(before[0][key] * factors.get(key, 1.0), abs=1e-6)
        assert steps[0].abs().max() > 1e-4
        close = (steps[0] - steps[1]).abs() < 1e-5
        assert close.double().mean() > 0.98  # where the gradient is about epsilon AdamW's step does depend on its scale
    moved = {key for key, value in after[1].items() if not torch.equal(value, before[1][key])}
    assert moved == set(after[1])


def test_the_optimizer_is_the_same_one_and_steps_the_new_parameters(make_agent, experiences, saved):
    agent = make_agent(lora_config=LoraConfig(r=4, lora_alpha=8, **TARGETS))
    agent.learn(experiences)
    optimizer, old = agent.optimizer, {id(p) for p in agent.adapters.parameters("actor")}
    merge(agent, "actor", saved(r=8, target_modules=["down_proj", "up_proj"]))
    assert agent.optimizer is optimizer
    parameters = agent.adapters.parameters("actor")
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in parameters}
    assert not old & {id(p) for p in parameters}
    assert agent.lora_config is agent.adapters.lora_config
    assert agent.adapters.move is None
    with_state = {
        key for key, p in agent.base.parameters(agent.adapters.owned["actor"]).items() if p in optimizer.state
    }
    assert with_state == {key for key in snapshot(agent) if "q_proj" in key or "down_proj" in key}
    agent.learn(experiences)
    assert all(p in optimizer.state for p in parameters)


def test_a_head_that_gets_an_adapter_is_scored_with_it(make_agent, experiences, saved):
    agent = make_agent(lora_config=LoraConfig(r=4, lora_alpha=8, **TARGETS))
    plain = agent.learn(experiences, training=False)["logps/chosen"]
    merge(agent, "actor", saved(r=8, target_modules=["lm_head"]))
    twin = make_agent(lora_config=agent.lora_config)
    for mine, its in zip(agent.adapters.parameters("actor"), twin.adapters.parameters("actor"), strict=True):
        its.data.copy_(mine)
    chosen = agent.learn(experiences, training=False)["logps/chosen"]
    assert chosen == pytest.approx(twin.learn(experiences, training=False)["logps/chosen"], rel=1e-6)
    assert abs(chosen - plain) > 0.01


def test_a_population_with_one_reconciled_agent_evolves(make_agent, tiny_model, experiences, saved):
    model, config = tiny_model(), LoraConfig(r=4, lora_alpha=8, **TARGETS)
    first, second, third = (make_agent(actor_network=model, lora_config=config, index=i) for i in range(3))
    third.learn(experiences)
    before = third.learn(experiences, training=False)
    merge(first, "actor", saved(r=8, target_modules=["up_proj"]))
    first.learn(experiences)
    result = first.learn(experiences, training=False)
    assert third.learn(experiences, training=False) == before

    assert not second.built_like(first)
    child = second.replaced_by(first, index=7)  # a clone
    assert child is not second
    assert child.lora_config.r == 8
    assert child.learn(experiences, training=False) == result
    assert child.built_like(first)
    again = child.replaced_by(first, index=8)  # in place
    assert again is child
    for agent in (first, child):
        agent.learn(experiences)
    assert first.learn(experiences, training=False) == child.learn(experiences, training=False) != result
    back = child.replaced_by(third, index=9)
    assert back.lora_config.r == 4
    assert back.learn(experiences, training=False) == before
