"""load_checkpoint: the plain grid, the reference rule, and a refused checkpoint that changes nothing."""

import itertools
import shutil
import warnings
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file

from agiledpo.algorithms import DPO
from agiledpo.algorithms.core.registry import HyperparameterConfig, RLParameter
from agiledpo.checkpoint import CheckpointError, restore, written_atomically
from agiledpo.checkpoint.manifest import Manifest
from tests.checkpoint.conftest import everything, logits, same

IDS = torch.arange(1, 9)[None]


class MyDPO(DPO):
    """What a user made of DPO: the same algorithm."""


def signed(path, algorithm):
    """Make a checkpoint one that another class wrote."""
    manifest = Manifest.read(path)
    (path / "manifest.json").unlink()
    replace(manifest, algorithm=algorithm).write(path)


def kept(agent):
    """What load_checkpoint leaves alone unless it is asked to change it."""
    names = ("index", "fitness", "hyperparameters", "random_stream", "seed", "applied", "lora_config", "base", "steps")
    return {name: everything(agent)[name] for name in names}


@pytest.mark.parametrize(
    ("lora_only", "save_optimizer", "load_optimizer"), list(itertools.product((True, False), repeat=3))
)
def test_the_plain_grid(make_trained, tmp_path, lora_only, save_optimizer, load_optimizer):
    writer = make_trained()
    writer.save_checkpoint(tmp_path / "c", lora_only=lora_only, save_optimizer=save_optimizer)
    reader = make_trained(seed=50, index=9, beta=0.5, lr=2e-3)
    before, saved = everything(reader), everything(writer)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        reader.load_checkpoint(tmp_path / "c", load_optimizer=load_optimizer)
    after = everything(reader)
    assert same(after["adapters"], saved["adapters"])
    assert not same(after["adapters"], before["adapters"])
    messages = [str(entry.message) for entry in caught if "no optimizer state" in str(entry.message)]
    if not load_optimizer:
        assert same(after["optimizer"], before["optimizer"])
        assert after["optimizer_steps"] == before["optimizer_steps"]
    elif save_optimizer:
        assert same(after["moments"], saved["moments"])
        assert not same(after["moments"], before["moments"])
        assert after["optimizer_steps"] == saved["optimizer_steps"] == 2
        assert same(after["optimizer"]["param_groups"], before["optimizer"]["param_groups"])
    else:
        assert after["moments"] == {}
        assert after["optimizer_steps"] == 0
    assert len(messages) == (load_optimizer and not save_optimizer)
    assert same({name: after[name] for name in kept(reader)}, {name: before[name] for name in kept(reader)})


def test_the_next_step_is_the_one_that_the_writer_makes(make_trained, make_experiences, tmp_path):
    writer = make_trained()
    writer.save_checkpoint(tmp_path / "c")
    reader = make_trained(seed=50)
    reader.load_checkpoint(tmp_path / "c", load_optimizer=True)
    pairs = make_experiences([(3, 4, 2), (5, 2, 3)], seed=99)
    writer.learn(pairs)
    reader.learn(pairs)
    assert same(reader.adapters.state_dict(), writer.adapters.state_dict())


def test_peft_gives_the_same_logits_as_the_loaded_agent(make_trained, tiny_model, tmp_path):
    make_trained().save_checkpoint(tmp_path / "c")
    reader = make_trained(seed=50)
    reader.load_checkpoint(tmp_path / "c")
    for role in ("actor", "reference"):
        loaded = PeftModel.from_pretrained(tiny_model(), tmp_path / "c" / role).eval()
        assert torch.equal(loaded(IDS).logits, logits(reader, role))


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=3, use_rslora=True, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM"),
        LoraConfig(r=2, use_dora=True, target_modules=["v_proj"], task_type="CAUSAL_LM"),
        LoraConfig(r=2, target_modules=["v_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM"),
        LoraConfig(r=2, target_modules=["embed_tokens", "v_proj"], task_type="CAUSAL_LM"),
    ],
    ids=["rslora", "dora", "modules_to_save", "embedding"],
)
def test_every_kind_of_lora_comes_back(make_trained, config, tmp_path):
    writer = make_trained(lora_config=config)
    writer.save_checkpoint(tmp_path / "c")
    reader = make_trained(lora_config=config, seed=50)
    reader.load_checkpoint(tmp_path / "c", load_optimizer=True)
    assert same(reader.adapters.state_dict(), writer.adapters.state_dict())
    assert same(everything(reader)["moments"], everything(writer)["moments"])


# The reference ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("algorithm", "overwrite", "expected"),
    [
        ("DPO", None, "reference"),
        ("MyDPO", None, "reference"),
        ("SFT", None, "actor"),
        ("Unheard", None, "actor"),
        ("DPO", True, "actor"),
        ("SFT", True, "actor"),
        ("DPO", False, "reference"),
        ("SFT", False, "reference"),
    ],
)
@pytest.mark.parametrize("separate", [True, False], ids=["with a reference", "bare base"])
def test_which_adapter_becomes_the_reference(
    make_trained, randomise, tmp_path, algorithm, overwrite, expected, separate
):
    writer = make_trained(use_separate_reference_adapter=separate)
    writer.save_checkpoint(tmp_path / "c")
    signed(tmp_path / "c", algorithm)
    reader = make_trained(seed=50)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        reader.load_checkpoint(tmp_path / "c", overwrite_reference_adapter=overwrite)
    unused = [str(entry.message) for entry in caught if "c/reference was not used: Unheard" in str(entry.message)]
    assert len(unused) == (algorithm == "Unheard" and separate)
    assert torch.equal(logits(reader), logits(writer))
    assert torch.equal(logits(reader, "reference"), logits(writer, expected))
    # An agent whose reference is the bare base can follow only where that stays so.
    bare = make_trained(seed=60, use_separate_reference_adapter=False)
    before = everything(bare)
    if expected == "reference" and not separate:
        bare.load_checkpoint(tmp_path / "c", overwrite_reference_adapter=overwrite)
        assert torch.equal(logits(bare), logits(writer))
        assert torch.equal(logits(bare, "reference"), logits(writer, "reference"))
    else:
        with pytest.raises(ValueError, match="use_separate_reference_adapter=False"):
            bare.load_checkpoint(tmp_path / "c", overwrite_reference_adapter=overwrite)
        assert same(everything(bare), before)


def test_a_subclass_and_its_superclass_are_one_algorithm(make_trained, tiny_model, lora, randomise, tmp_path):
    make_trained().save_checkpoint(tmp_path / "c")
    mine = MyDPO(actor_network=tiny_model(), lora_config=lora)
    mine.load_checkpoint(tmp_path / "c")
    saved = make_trained()
    assert torch.equal(logits(mine, "reference"), logits(saved, "reference"))
    mine.save_checkpoint(tmp_path / "mine")
    reader = make_trained(seed=50)
    reader.load_checkpoint(tmp_path / "mine")
    assert torch.equal(logits(reader, "reference"), logits(saved, "reference"))


def test_a_reference_beside_a_foreign_actor_is_told_of(make_trained, tmp_path):
    writer = make_trained()
    writer.save_checkpoint(tmp_path / "c")
    for role in ("actor", "reference"):
        shutil.copytree(tmp_path / "c" / role, tmp_path / "agilerl" / role)
    reader = make_trained(seed=50)
    with pytest.warns(
        UserWarning, match=r"agilerl/reference was not used.*overwrite_reference_adapter=False"
    ) as caught:
        reader.load_checkpoint(tmp_path / "agilerl")
    assert [entry.filename for entry in caught] == [__file__]
    assert torch.equal(logits(reader, "reference"), logits(writer))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reader.load_checkpoint(tmp_path / "agilerl", overwrite_reference_adapter=False)
        assert torch.equal(logits(reader, "reference"), logits(writer, "reference"))
        reader.load_checkpoint(tmp_path / "agilerl", overwrite_reference_adapter=True)
        assert torch.equal(logits(reader, "reference"), logits(writer))


def test_a_reference_that_adds_nothing_suits_an_agent_on_the_bare_base(make_agent, randomise, tmp_path):
    writer = make_agent()
    randomise(writer)
    writer.save_checkpoint(tmp_path / "c")
    reader = make_agent(use_separate_reference_adapter=False)
    reader.load_checkpoint(tmp_path / "c")
    assert torch.equal(logits(reader), logits(writer))


def test_an_algorithm_without_a_reference_takes_the_actor_alone(make_trained, monkeypatch, tmp_path):
    make_trained().save_checkpoint(tmp_path / "c")
    reader = make_trained(use_separate_reference_adapter=False)
    monkeypatch.setattr(DPO, "USES_REFERENCE", False)
    reader.load_checkpoint(tmp_path / "c", overwrite_reference_adapter=True)
    assert same(reader.adapters.state_dict()["actor"], make_trained().adapters.state_dict()["actor"])


def test_agents_that_load_one_checkpoint_hold_one_reference(make_trained, make_agent, tmp_path):
    make_trained().save_checkpoint(tmp_path / "c")
    first = make_agent()
    others = [make_agent(actor_network=first.base.model, index=index) for index in (1, 2)]
    for agent in (first, *others):
        agent.load_checkpoint(tmp_path / "c", overwrite_reference_adapter=True)
    assert len({agent.adapters.name("reference") for agent in (first, *others)}) == 1
    assert len(first.base.adapter_names) == 4


# Coming in ----------------------------------------------------------------------------------------------------------


def test_an_adapter_that_peft_saved_becomes_actor_and_reference(make_trained, tiny_model, lora, tmp_path):
    peft = PeftModel(tiny_model(), lora)
    for number, parameter in enumerate(p for n, p in peft.named_parameters() if "lora_" in n):
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(number))
    peft.save_pretrained(tmp_path / "p")
    expected = peft.eval()(IDS).logits
    agent = make_trained()
    with pytest.warns(UserWarning, match="no optimizer state"):
        agent.load_checkpoint(tmp_path / "p", load_optimizer=True)
    assert torch.equal(logits(agent), expected)
    assert torch.equal(logits(agent, "reference"), expected)
    agent.load_checkpoint(tmp_path / "p", overwrite_reference_adapter=False)
    assert torch.equal(logits(agent, "reference"), tiny_model()(IDS).logits)
    bare = make_trained(use_separate_reference_adapter=False)
    with pytest.raises(ValueError, match="overwrite_reference_adapter=False"):
        bare.load_checkpoint(tmp_path / "p")
    bare.load_checkpoint(tmp_path / "p", overwrite_reference_adapter=False)
    assert torch.equal(logits(bare), expected)


def test_an_adapter_of_another_base_model_is_told_by_name_and_shape(make_trained, tiny_model, lora, tmp_path):
    tiny_model().save_pretrained(tmp_path / "base")
    agent = make_trained(model_name=str(tmp_path / "base"))
    peft = PeftModel(tiny_model(), lora)
    peft.peft_config["default"].base_model_name_or_path = "somebody/else"
    peft.save_pretrained(tmp_path / "p")
    with pytest.warns(UserWarning, match=r"adapter_config\.json names the base model 'somebody/else'"):
        agent.load_checkpoint(tmp_path / "p")
    before = everything(agent)
    PeftModel(tiny_model(hidden_size=64), lora).save_pretrained(tmp_path / "q")
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors"):
        agent.load_checkpoint(tmp_path / "q")
    assert same(everything(agent), before)


# Hyperparameters ----------------------------------------------------------------------------------------------------


def test_hyperparameters_are_taken_over_when_asked_and_the_optimizer_follows(make_trained, tmp_path):
    writer = make_trained(lr=3e-4, weight_decay=0.05, loss_type=("sigmoid", "ipo"))
    writer.save_checkpoint(tmp_path / "c")
    reader = make_trained(seed=50, beta=0.7)
    before = everything(reader)
    reader.load_checkpoint(tmp_path / "c", load_hyperparameters=True)
    assert reader.hyperparameters == writer.hyperparameters
    group = reader.optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (3e-4, 0.05)
    after = everything(reader)
    assert same(after["moments"], before["moments"])
    assert (after["index"], after["fitness"]) == (before["index"], before["fitness"])


def test_hyperparameters_that_the_agent_cannot_have_are_refused(make_trained, tmp_path):
    make_trained(beta=0.9).save_checkpoint(tmp_path / "c")
    reader = make_trained(seed=50, hp_config=HyperparameterConfig(beta=RLParameter(min=0.1, max=0.5)))
    before = everything(reader)
    with pytest.raises(CheckpointError, match=r"attributes\.pt.*beta=0\.9"):
        reader.load_checkpoint(tmp_path / "c", load_hyperparameters=True)
    assert same(everything(reader), before)


# Other configurations -----------------------------------------------------------------------------------------------


def lora_of(rank, alpha, targets="all-linear"):
    return LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, task_type="CAUSAL_LM")


@pytest.mark.parametrize(
    ("saved", "live", "rank"),
    [
        (lora_of(6, 6), lora_of(4, 8), 6),
        (lora_of(2, 6), lora_of(4, 8), 4),
        (lora_of(3, 6, ["q_proj", "lm_head"]), lora_of(4, 8, ["q_proj", "v_proj"]), 4),
    ],
    ids=["grows", "has room", "other modules"],
)
def test_moments_follow_into_another_configuration(make_trained, make_experiences, tmp_path, saved, live, rank):
    writer = make_trained(lora_config=saved)
    writer.save_checkpoint(tmp_path / "c")
    reader = make_trained(lora_config=live, seed=50)
    kept_moments = everything(make_trained(lora_config=live, seed=50))["moments"]
    with pytest.raises(ValueError, match="merge_lora_configs=True"):
        reader.load_checkpoint(tmp_path / "c", load_optimizer=True)
    assert same(everything(reader)["moments"], kept_moments)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reader.load_checkpoint(tmp_path / "c", load_optimizer=True, merge_lora_configs=True)
    for role in ("actor", "reference"):
        torch.testing.assert_close(logits(reader, role), logits(writer, role), rtol=0, atol=1e-5)
    theirs, mine = everything(writer)["moments"], everything(reader)["moments"]
    parameters = reader.base.parameters(reader.adapters.owned["actor"])
    assert mine.keys() == theirs.keys() <= parameters.keys()
    for name, state in theirs.items():
        # B became c times what it was, so its gradient 1 / c times.
        c = (saved.lora_alpha / saved.r) / (live.lora_alpha / rank) if "lora_B" in name else 1.0
        corner = tuple(slice(0, size) for size in state["exp_avg"].shape)
        torch.testing.assert_close(mine[name]["exp_avg"][corner], state["exp_avg"] / c)
        torch.testing.assert_close(mine[name]["exp_avg_sq"][corner], state["exp_avg_sq"] / c**2)
        assert mine[name]["exp_avg"].shape == parameters[name].shape
        assert mine[name]["exp_avg"].count_nonzero() == state["exp_avg"].count_nonzero()
        assert mine[name]["step"] == state["step"]
    reader.learn(make_experiences([(3, 4, 2), (5, 2, 3)], seed=99))
    reader.save_checkpoint(tmp_path / "d")
    again = make_trained(lora_config=reader.lora_config, seed=60)
    restore(again, tmp_path / "d")
    assert same(again.adapters.state_dict(), reader.adapters.state_dict())


def test_an_optimizer_that_is_left_alone_follows_an_adapter_that_was_rebuilt(make_trained, tmp_path):
    make_trained(lora_config=lora_of(6, 12)).save_checkpoint(tmp_path / "c")
    reader = make_trained(lora_config=lora_of(4, 8), seed=50)
    before = everything(reader)["moments"]
    reader.load_checkpoint(tmp_path / "c", merge_lora_configs=True)
    after = everything(reader)["moments"]
    assert after.keys() == before.keys()
    for name, state in before.items():
        c = 1.5 if "lora_B" in name else 1.0  # alpha / r went from 8 / 4 to 8 / 6
        corner = tuple(slice(0, size) for size in state["exp_avg"].shape)
        torch.testing.assert_close(after[name]["exp_avg"][corner], state["exp_avg"] / c)
        assert after[name]["exp_avg"].count_nonzero() == state["exp_avg"].count_nonzero()
    assert reader.optimizer_steps == 2


# Refused ------------------------------------------------------------------------------------------------------------


def test_another_lora_configuration_is_refused_and_changes_nothing(make_trained, tmp_path):
    other = LoraConfig(r=2, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    make_trained(lora_config=other).save_checkpoint(tmp_path / "c")
    reader = make_trained(seed=50)
    before = everything(reader)
    with pytest.raises(ValueError, match=r"(?i)lora config"):
        reader.load_checkpoint(tmp_path / "c", load_optimizer=True, load_hyperparameters=True)
    assert same(everything(reader), before)


def test_a_reference_that_the_merged_configuration_has_no_room_for_changes_nothing(make_trained, tmp_path):
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM")
    for role, writer in (
        ("actor", make_trained(lora_config=lora_of(2, 4, ["lm_head"]))),
        ("reference", make_trained(lora_config=config)),
    ):
        writer.save_checkpoint(tmp_path / "c")
        shutil.copytree(tmp_path / "c" / "actor", tmp_path / "foreign" / role)
    reader = make_trained(lora_config=lora_of(2, 4, ["v_proj"]), seed=50)
    before = everything(reader)
    with pytest.raises(ValueError, match=r"lm_head is among the target_modules of one .* and the modules_to_save"):
        reader.load_checkpoint(tmp_path / "foreign", overwrite_reference_adapter=False, merge_lora_configs=True)
    assert same(everything(reader), before)
    reader.load_checkpoint(tmp_path / "foreign", overwrite_reference_adapter=True, merge_lora_configs=True)


def with_rmsprop(agent, make_experiences):
    agent.optimizer = torch.optim.RMSprop(agent.adapters.parameters("actor"), lr=1e-3)
    agent.learn(make_experiences([(3, 4, 2), (2, 2, 5)]))
    assert all("square_avg" in state for state in agent.optimizer.state.values())
    return agent


@pytest.mark.filterwarnings("ignore:This agent keeps its own")
def test_an_optimizer_that_cannot_follow_changes_nothing(make_trained, make_experiences, tmp_path):
    with_rmsprop(make_trained(lora_config=lora_of(6, 12)), make_experiences).save_checkpoint(tmp_path / "c")
    reader = with_rmsprop(make_trained(lora_config=lora_of(4, 8), seed=50), make_experiences)
    before = everything(reader)
    for load_optimizer in (False, True):
        with pytest.raises(ValueError, match=r"RMSprop cannot follow.*'square_avg' cannot be scaled"):
            reader.load_checkpoint(tmp_path / "c", load_optimizer=load_optimizer, merge_lora_configs=True)
        assert same(everything(reader), before)
    # There is room, but alpha / r is 2 and not 1, so only the saved moments would have to be scaled.
    roomy = with_rmsprop(make_trained(lora_config=lora_of(8, 8), seed=50), make_experiences)
    before = everything(roomy)
    with pytest.raises(ValueError, match=r"RMSprop cannot follow.*'square_avg' cannot be scaled"):
        roomy.load_checkpoint(tmp_path / "c", load_optimizer=True, merge_lora_configs=True)
    assert same(everything(roomy), before)
    roomy.load_checkpoint(tmp_path / "c", merge_lora_configs=True)
    assert same(everything(roomy)["moments"], before["moments"])


@pytest.mark.parametrize("difference", [{"seed": 5}, {"rope_theta": 500.0}, {"num_hidden_layers": 3}])
def test_the_wrong_base_model_is_refused_and_named(make_trained, tiny_model, tmp_path, difference):
    make_trained().save_checkpoint(tmp_path / "c")
    settings = {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}} if "rope_theta" in difference else {}
    reader = make_trained(actor_network=tiny_model(**(settings or difference)), seed=50)
    before = everything(reader)
    with pytest.raises(CheckpointError, match=r"manifest\.json.*LlamaForCausalLM.*LlamaForCausalLM"):
        reader.load_checkpoint(tmp_path / "c")
    assert same(everything(reader), before)


def test_a_run_is_no_agent_and_its_agents_are_listed(make_trained, tmp_path):
    agent = make_trained()
    with written_atomically(tmp_path / "run") as draft:
        for index in (0, 1):
            agent.save_checkpoint(draft / "agents" / str(index))
        Manifest(kind="run", algorithm="DPO").write(draft)
    with pytest.raises(CheckpointError, match=r"whole run.*agents/0, .*agents/1"):
        agent.load_checkpoint(tmp_path / "run")
    agent.load_checkpoint(tmp_path / "run" / "agents" / "1")


def test_nothing_at_the_path(make_trained, tmp_path):
    with pytest.raises(CheckpointError, match=r"missing is not a directory"):
        make_trained().load_checkpoint(tmp_path / "missing")


# Base weights -------------------------------------------------------------------------------------------------------


def test_saved_base_weights_are_loaded_where_no_other_agent_lives(make_trained, tiny_model, tmp_path):
    writer = make_trained()
    writer.save_checkpoint(tmp_path / "c", lora_only=False)
    reader = make_trained(actor_network=tiny_model(seed=5), seed=50)
    company = reader.clone(index=1)
    before = everything(reader)
    with pytest.raises(ValueError, match="other agents use"):
        reader.load_checkpoint(tmp_path / "c")
    assert same(everything(reader), before)
    company.clean_up()
    reader.load_checkpoint(tmp_path / "c")
    assert torch.equal(logits(reader), logits(writer))
    assert same(reader.base.base_state(), writer.base.base_state())
    company = reader.clone(index=1)
    reader.load_checkpoint(tmp_path / "c")  # the same weights: nothing to write


def test_the_actor_is_what_the_file_holds(make_trained, tmp_path):
    writer = make_trained()
    writer.save_checkpoint(tmp_path / "c")
    tensors = load_file(tmp_path / "c" / "actor" / "adapter_model.safetensors")
    actor = writer.adapters.state_dict()["actor"]
    assert same(dict(sorted(tensors.items())), dict(sorted(actor.items())))
