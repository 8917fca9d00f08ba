"""Exact resume of one agent: everything of it, to the bit."""

from fractions import Fraction

import pytest
import torch
from peft import LoraConfig

from agiledpo.algorithms import DPO
from agiledpo.algorithms.core.domains import LogUniform
from agiledpo.algorithms.core.registry import HyperparameterConfig
from agiledpo.checkpoint import CheckpointError, restore
from agiledpo.checkpoint.attributes import read_attributes
from tests.checkpoint.conftest import everything, same
from tests.checkpoint.test_load_agent import Odd


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
        ({"reference_update": "epoch"}, "reference_update='never' instead of 'epoch'. Make the agent as it was"),
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


def test_what_only_rounds_otherwise_is_a_warning(make_trained, tiny_model, tmp_path):
    writer = make_trained(actor_network=tiny_model(dtype=torch.bfloat16))
    writer.save_checkpoint(tmp_path / "c")
    reader = make_trained(seed=50)
    with pytest.warns(UserWarning, match="a base model in bfloat16 instead of float32, .* not bit for bit"):
        restore(reader, tmp_path / "c")
    assert same(everything(reader)["adapters"], everything(writer)["adapters"])
    assert same(everything(reader)["moments"], everything(writer)["moments"])
    writer = make_trained()
    writer.save_checkpoint(tmp_path / "d")
    otherwise = {"micro_batch_size_per_gpu": 1, "fast_layers": False, "prefix_sharing": False}
    reader = make_trained(**otherwise, calc_position_embeddings=False, seed=50)
    with pytest.warns(UserWarning, match="micro_batch_size_per_gpu=None instead of 1") as caught:
        restore(reader, tmp_path / "d")
    (said,) = [str(warning.message) for warning in caught if "not bit for bit" in str(warning.message)]
    for name in (*otherwise, "calc_position_embeddings"):
        assert name in said
    assert same(everything(reader)["adapters"], everything(writer)["adapters"])
    assert reader.micro_batch_size_per_gpu == 1
    with pytest.warns(UserWarning, match="The state was taken with .*not bit for bit"):
        reader.load_state_dict(writer.state_dict())


def test_what_changes_no_result_is_not_asked_for(make_trained, make_experiences, tmp_path, recwarn):
    writer = make_trained(reference_cache=tmp_path / "one", reference_cache_bytes=2**20, pad_token="<pad>")
    writer.save_checkpoint(tmp_path / "c")
    reader = make_trained(reference_cache=tmp_path / "two", gradient_checkpointing=False, pad_token="<x>", seed=50)
    restore(reader, tmp_path / "c")
    assert not [warning for warning in recwarn if "not bit for bit" in str(warning.message)]
    pairs = make_experiences([(3, 4, 2), (5, 2, 3), (1, 1, 4)], seed=99)
    writer.learn(pairs)
    reader.learn(pairs)
    assert same(reader.adapters.state_dict(), writer.adapters.state_dict())


def test_the_ranges_of_mutation_come_back(make_trained, make_agent, tmp_path, recwarn):
    saved, other = (HyperparameterConfig(beta=LogUniform(0.01, high)) for high in (1.0, 2.0))
    make_trained(hp_config=saved).save_checkpoint(tmp_path / "c")
    reader = make_agent(hp_config=other)
    restore(reader, tmp_path / "c")
    assert reader.hp_config == saved
    make_trained().save_checkpoint(tmp_path / "none")
    restore(reader, tmp_path / "none")
    assert reader.hp_config is None

    # A class of the user's own cannot be saved; the live one stays.
    own = HyperparameterConfig(beta=Odd(), lr=LogUniform(Fraction(1, 100000), Fraction(1, 10)))
    make_trained(hp_config=own).save_checkpoint(tmp_path / "own")
    reader = make_agent(hp_config=own)
    restore(reader, tmp_path / "own")
    assert reader.hp_config is own
    assert not recwarn
    reader = make_agent(hp_config=other)
    with pytest.warns(UserWarning, match="beta, lr a class of your own"):
        restore(reader, tmp_path / "own")
    assert reader.hp_config is other


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
