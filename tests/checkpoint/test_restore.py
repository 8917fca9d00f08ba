"""Exact resume of one agent: everything of it, to the bit."""

import pytest
from peft import LoraConfig

from agiledpo.algorithms import DPO
from agiledpo.checkpoint import CheckpointError, restore
from agiledpo.checkpoint.attributes import read_attributes
from tests.checkpoint.conftest import everything, same


@pytest.mark.parametrize("lora_only", [True, False])
@pytest.mark.parametrize("separate", [True, False])
def test_everything_comes_back_and_training_goes_on_alike(
    make_trained, make_agent, make_experiences, tmp_path, lora_only, separate
):
    config = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.3, target_modules="all-linear", task_type="CAUSAL_LM")
    arguments = {"lora_config": config, "use_separate_reference_adapter": separate}
    writer = make_trained(**arguments, seed=3)
    writer.lr = 5e-4  # mutated, and not applied yet
    writer.parent, writer.mut = 2, "lr"
    writer.save_checkpoint(tmp_path / "c", lora_only=lora_only)
    saved = everything(writer)
    reader = make_agent(**arguments)
    restore(reader, tmp_path / "c")
    # Names of adapters count on in one process.
    restored = everything(reader) | {"adapter_names": saved["adapter_names"]}
    assert same(restored, saved)
    assert (reader.lr, reader.optimizer.param_groups[0]["lr"], reader.seed) == (5e-4, 1e-3, 42)
    pairs = make_experiences([(3, 4, 2), (5, 2, 3), (1, 1, 4)], seed=99)
    one, other = writer.learn(pairs), reader.learn(pairs)
    assert same({**one, "tokens_per_second": 0}, {**other, "tokens_per_second": 0})
    assert same(reader.adapters.state_dict(), writer.adapters.state_dict())
    assert same(everything(reader)["random_stream"], everything(writer)["random_stream"])


def test_a_population_that_shares_a_reference_shares_it_again(make_trained, make_agent, tmp_path):
    founder = make_trained()
    population = [founder, founder.clone(index=4), founder.clone(index=5)]
    for agent in population:
        agent.save_checkpoint(tmp_path / str(agent.index))
    fresh = make_agent()
    again = [fresh, *(make_agent(actor_network=fresh.base.model, index=index) for index in (4, 5))]
    for agent, old in zip(again, population, strict=True):
        restore(agent, tmp_path / str(old.index))
    assert len(fresh.base.adapter_names) == len(founder.base.adapter_names) == 4
    assert all(same(a.state_dict(), b.state_dict()) for a, b in zip(again, population, strict=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"beta": 0.5, "update_epochs": 2}, None),  # hyperparameters are put back
        ({"use_separate_reference_adapter": False}, "use_separate_reference_adapter"),
        ({"micro_batch_size_per_gpu": 1}, "micro_batch_size_per_gpu"),
        ({"lora_config": LoraConfig(r=2, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")}, "r=4"),
        (
            {"lora_config": LoraConfig(r=4, lora_alpha=8, lora_dropout=0.1, target_modules="all-linear")},
            "lora_dropout=0.0 instead of 0.1",
        ),
    ],
)
def test_an_agent_that_was_made_differently_is_refused(make_trained, tmp_path, arguments, message):
    make_trained().save_checkpoint(tmp_path / "c")
    reader = make_trained(**arguments, seed=50)
    before = everything(reader)
    if message is None:
        restore(reader, tmp_path / "c")
        assert reader.beta == 0.25
        return
    with pytest.raises(CheckpointError, match=message):
        restore(reader, tmp_path / "c")
    assert same(everything(reader), before)


def test_without_the_optimizer_nothing_can_go_on_exactly(make_trained, tmp_path):
    make_trained().save_checkpoint(tmp_path / "c", save_optimizer=False)
    reader = make_trained(seed=50)
    before = everything(reader)
    with pytest.raises(CheckpointError, match=r"attributes\.pt holds no optimizer"):
        restore(reader, tmp_path / "c")
    assert same(everything(reader), before)


def test_another_precision_is_another_run(make_trained, tiny_model, tmp_path):
    import torch

    make_trained(actor_network=tiny_model(dtype=torch.bfloat16)).save_checkpoint(tmp_path / "c")
    with pytest.raises(CheckpointError, match="bfloat16, and this one is in float32"):
        restore(make_trained(), tmp_path / "c")


def test_what_the_state_is_made_of(make_trained, tmp_path):
    agent = make_trained()
    agent.save_checkpoint(tmp_path / "c")
    attributes = read_attributes(tmp_path / "c")
    assert attributes.keys() == (agent.state_dict().keys() - {"adapters"}) | {
        "algorithm",
        "format_version",
        "init",
        "optimizer_parameters",
        "optimizer_type",
        "seed",
    }
    assert attributes["optimizer_parameters"] == list(agent.base.parameters(agent.adapters.owned["actor"]))


def test_a_run_goes_on_with_an_agent_that_diverged_and_nobody_else_loads_it(make_trained, tiny_model, tmp_path):
    writer = make_trained()
    parameter = writer.adapters.parameters("actor")[3]
    parameter.data[1, 0] = float("inf")
    writer.save_checkpoint(tmp_path / "c")
    reader = make_trained(seed=50)
    before = everything(reader)
    for load in (reader.load_checkpoint, lambda path: DPO.load(path, actor_network=tiny_model())):
        with pytest.raises(ValueError, match=r"actor/adapter_model\.safetensors has infinite or undefined values in"):
            load(tmp_path / "c")
    assert same(everything(reader), before)
    restore(reader, tmp_path / "c")
    assert same(reader.adapters.state_dict(), writer.adapters.state_dict())
