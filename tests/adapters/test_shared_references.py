"""Agents whose references are equal hold one adapter, and nobody notices."""

import gc

import pytest
import torch
from peft import LoraConfig

from agiledpo.adapters import AgentAdapters, SharedBaseModel

IDS = torch.arange(3, 12)[None]


def adapters(base, config, seed=0):
    return AgentAdapters(base, config, separate_reference=True, seed=seed)


def logits(agent, role):
    with agent.select(role) as model, torch.no_grad():
        return model(IDS).logits.clone()


@pytest.fixture
def base(tiny_model):
    return SharedBaseModel.of(tiny_model())


def test_equal_references_are_one_adapter_and_different_ones_are_not(base, lora):
    first, second, other_seed = adapters(base, lora), adapters(base, lora), adapters(base, lora, seed=1)
    other_rank = adapters(base, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    names = [agent.name("reference") for agent in (first, second, other_seed, other_rank)]
    assert names[0] == names[1]
    assert len(set(names)) == 3  # another seed draws another A, which a mixed reference would start from
    assert len(base.adapter_names) == 4 + 3


@pytest.mark.parametrize("write", ["copy", "mix", "load", "parameters"])
def test_a_write_to_one_agents_reference_leaves_the_others_alone(base, lora, randomise, write):
    first, second = adapters(base, lora), adapters(base, lora)
    for parameter in first.parameters("actor"):
        parameter.data.add_(0.1)
    before, moved = logits(second, "reference"), logits(first, "actor")
    if write == "copy":
        first.copy_role("actor", "reference")
    elif write == "mix":
        first.mix_role("actor", "reference", 1.0)
    elif write == "load":
        first.load_state_dict({role: first.state_dict()["actor"] for role in ("actor", "reference")})
    else:
        for own, actor in zip(first.own_parameters("reference"), first.parameters("actor"), strict=True):
            own.data.copy_(actor)
    assert torch.equal(logits(first, "reference"), moved)
    assert torch.equal(logits(second, "reference"), before)
    assert not torch.equal(moved, before)
    assert len(base.adapter_names) == 4


def test_a_mixed_reference_is_what_it_is_without_sharing(tiny_model, lora):
    results = []
    for company in (False, True):
        base = SharedBaseModel.of(tiny_model())
        agents = [adapters(base, lora) for _ in range(2 if company else 1)]
        for parameter in agents[0].parameters("actor"):
            parameter.data.add_(0.1)
        agents[0].mix_role("actor", "reference", 0.3)
        results.append(logits(agents[0], "reference"))
    assert torch.equal(*results)


def test_the_adapter_goes_when_its_last_holder_goes(base, lora):
    agents = [adapters(base, lora) for _ in range(3)]
    shared = agents[0].name("reference")
    agents.pop().release()
    agents.pop(0)
    gc.collect()
    assert shared in base.adapter_names
    assert not base.is_shared(shared)
    agents.pop().release()
    assert base.adapter_names == ()


def test_a_copy_of_an_agent_holds_its_reference_and_lets_go_of_its_own(base, lora):
    parent, child = adapters(base, lora, seed=1), adapters(base, lora, seed=2)
    parent.copy_role("actor", "reference")
    child.copy_from(parent)
    assert child.name("reference") == parent.name("reference")
    assert len(base.adapter_names) == 3
    parent.copy_role("actor", "reference")  # the same weights, but its own from now on
    assert child.name("reference") != parent.name("reference")


def test_an_active_reference_stays_active_when_it_becomes_private(base, lora):
    first, _second = adapters(base, lora), adapters(base, lora)
    for parameter in first.parameters("actor"):
        parameter.data.add_(0.1)
    expected = logits(first, "actor")
    first.use("reference")
    first.copy_role("actor", "reference")
    assert base.active_name == first.name("reference")
    with torch.no_grad():
        assert torch.equal(base.peft(IDS).logits, expected)


def test_another_agents_active_reference_is_left_to_it(base, lora):
    first, second = adapters(base, lora), adapters(base, lora)
    shared = first.name("reference")
    first.use("reference")
    second.copy_role("actor", "reference")
    assert base.active_name == first.name("reference") == shared
