"""The agent's surface: construction, roles, copies, and the errors that come before training."""

import gc

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from gymnasium import spaces
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModel

from agiledpo.algorithms import DPO
from agiledpo.algorithms.core.registry import HyperparameterConfig, NetworkGroup, OptimizerConfig, RLParameter
from agiledpo.algorithms.core.schedule import CosineLRScheduleConfig


def weights(agent, role="actor"):
    return [p.detach().clone() for p in agent.adapters.parameters(role)]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# Construction -------------------------------------------------------------------------------------------------------


def test_the_defaults_are_those_of_agilerl(tiny_model, no_lora_warning):
    agent = DPO(actor_network=tiny_model())
    expected = {
        "batch_size": 16, "lr": 5e-6, "beta": 0.1, "nll_alpha": 1.0, "max_grad_norm": 0.1, "update_epochs": 1,
        "calc_position_embeddings": True, "micro_batch_size_per_gpu": None, "index": 0, "seed": 42,
        "gradient_checkpointing": True, "torch_compiler": None, "use_liger_loss": False,
        "use_separate_reference_adapter": True, "hp_config": None, "accelerator": None,
    }  # fmt: skip
    assert {name: vars(agent)[name] for name in expected} == expected


def test_without_a_lora_config_the_documented_one_is_used_with_a_warning(tiny_model):
    with pytest.warns(UserWarning, match="No lora_config given; using LoraConfig\\(r=16, lora_alpha=32"):
        agent = DPO(actor_network=tiny_model())
    config = agent.base.config(agent.adapters.name("actor"))
    assert (config.r, config.lora_alpha, config.lora_dropout) == (16, 32, 0.05)
    targets = {name.split(".")[-1] for name in config.target_modules}
    assert targets == {f"{part}_proj" for part in ("q", "k", "v", "o", "gate", "up", "down")}


def test_spaces_may_be_given_positionally_and_are_only_checked(tiny_model, lora):
    space = spaces.Discrete(4)
    agent = DPO(space, space, actor_network=tiny_model(), lora_config=lora, pad_token_id=0, pad_token="<pad>")
    assert agent.observation_space is space
    with pytest.raises(ValueError, match="observation_space is a str, not a gymnasium space"):
        DPO("text", None, actor_network=tiny_model(), lora_config=lora)


def test_a_model_is_loaded_by_name(tiny_model, lora, tmp_path, experiences):
    tiny_model().save_pretrained(tmp_path / "model")
    one, other = (DPO(model_name=str(tmp_path / "model"), lora_config=lora, index=i) for i in range(2))
    assert one.base is other.base
    half = DPO(model_name=str(tmp_path / "model"), lora_config=lora, model_config={"dtype": torch.bfloat16})
    assert half.base.model.dtype == torch.bfloat16
    assert {p.dtype for p in half.adapters.parameters("actor")} == {torch.float32}
    assert half.learn(experiences)["loss"] == pytest.approx(one.learn(experiences)["loss"], rel=0.02)


def test_a_plain_accelerator_without_deepspeed_works(make_agent, experiences):
    agent = make_agent(accelerator=Accelerator(cpu=True), device="cuda")
    assert agent.device.type == "cpu"
    assert agent.learn(experiences)["grad_norm"] > 0


def test_a_peft_model_is_where_actor_and_reference_start(tiny_model, lora, experiences):
    model = get_peft_model(tiny_model(), lora)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    ids = torch.arange(1, 9)[None]
    expected, users = model(ids).logits, {n: p.clone() for n, p in model.named_parameters() if "default" in n}
    agent = DPO(actor_network=model, lr=1e-2, nll_alpha=0.0)
    for role in ("actor", "reference"):
        with agent.select_adapter(role) as active:
            assert torch.equal(active(ids).logits, expected)
    agent.learn(experiences)
    assert all(torch.equal(p, users[n]) for n, p in model.named_parameters() if n in users)
    with pytest.raises(ValueError, match=r"r=8 against 4.*Leave lora_config out"):
        DPO(actor_network=model, lora_config=LoraConfig(r=8, target_modules="all-linear"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"beta": 0.0}, "beta=0"),
        ({"beta": -1.0}, "beta=-1"),
        ({"nll_alpha": -0.1}, "nll_alpha"),
        ({"lr": 0.0}, "lr=0"),
        ({"max_grad_norm": -1.0}, "max_grad_norm=-1"),
        ({"weight_decay": -1.0}, "weight_decay=-1"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 2.5}, "batch_size=2.5"),
        ({"update_epochs": 0}, "update_epochs=0"),
        ({"batch_size": True}, "batch_size=True must be a whole number of at least 1"),
        ({"micro_batch_size_per_gpu": 0}, "micro_batch_size_per_gpu=0 must be a whole number of at least 1"),
        ({"micro_batch_size_per_gpu": 1.5}, "micro_batch_size_per_gpu=1.5 must be a whole number"),
        ({"loss_type": "sigmoidal"}, "sigmoid"),
        ({"loss_type": "aot", "batch_size": 6, "micro_batch_size_per_gpu": 2}, "compares all pairs of a batch"),
        ({"loss_type": "aot", "batch_size": 6, "micro_batch_size_per_gpu": 5}, "None, or at least batch_size=6"),
        ({"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0]}, "loss_weights"),
        ({"reference_update": "sometimes"}, "reference_update='sometimes'"),
        ({"reference_update": "epoch", "use_separate_reference_adapter": False}, "separate_reference_adapter=False"),
        ({"pad_token_id": 97}, "pad_token_id=97 is outside the model's vocabulary of 97"),
        ({"hp_config": HyperparameterConfig(gamma=RLParameter(0.1, 1.0))}, "'gamma', which is no hyperparameter"),
        ({"hp_config": HyperparameterConfig(lr=RLParameter(0.1, 1.0))}, "lr=0.001 is outside the range"),
        ({"hp_config": HyperparameterConfig(loss_type=RLParameter(0.1, 1.0))}, "not a number"),
        ({"index": 0, "device": "meta"}, "other agents use it"),
    ],
)  # fmt: skip
def test_bad_arguments_are_refused_before_anything_is_made(make_agent, tiny_model, arguments, message):
    model = tiny_model()
    first = make_agent(actor_network=model)
    with pytest.raises(ValueError, match=message):
        make_agent(actor_network=model, **arguments)
    gc.collect()
    assert set(first.base.adapter_names) == set(first.adapters.owned.values())


def test_exactly_one_source_of_the_model(tiny_model, lora):
    with pytest.raises(ValueError, match="exactly one of actor_network"):
        DPO(lora_config=lora)
    with pytest.raises(ValueError, match="exactly one of actor_network"):
        DPO(actor_network=tiny_model(), model_name="somewhere", lora_config=lora)
    with pytest.raises(ValueError, match="no language-model head"):
        DPO(actor_network=AutoModel.from_config(tiny_model().config), lora_config=lora)


# Roles --------------------------------------------------------------------------------------------------------------


def test_roles_switch_and_restore(make_agent):
    agent = make_agent(moved=True)
    ids = torch.arange(1, 9)[None]
    actor = agent.get_policy()(ids).logits
    with agent.select_adapter("reference") as model:
        reference = model(ids).logits
        assert all(p.requires_grad for p in agent.adapters.parameters("actor"))
        assert not any(p.requires_grad for p in agent.adapters.parameters("reference"))
    assert not torch.equal(actor, reference)
    assert torch.equal(agent.base.peft(ids).logits, actor)
    agent.use_adapter("reference")
    assert torch.equal(agent.base.peft(ids).logits, reference)
    assert all(p.requires_grad for p in agent.adapters.parameters("actor"))
    assert torch.equal(agent.actor(ids).logits, actor)
    with pytest.raises(ValueError, match="no adapter 'critic'; this agent has actor, reference"):
        agent.use_adapter("critic")


def test_set_reference_policy_copies_the_actor_when_the_tracker_advances(make_agent):
    agent = make_agent(moved=True)
    before = weights(agent, "reference")
    agent.set_reference_policy(0)
    assert same(weights(agent, "reference"), before)
    agent.set_reference_policy(3)
    assert same(weights(agent, "reference"), weights(agent))
    assert agent.reference_update_tracker == 3
    with pytest.raises(ValueError, match="reference_update_tracker=2 is below the 3"):
        agent.set_reference_policy(2)
    with pytest.raises(ValueError, match="bare base model"):
        make_agent(use_separate_reference_adapter=False).set_reference_policy(1)


def test_training_mode_never_reaches_the_base(make_agent):
    dropped = LoraConfig(r=2, lora_dropout=0.5, target_modules="all-linear", task_type="CAUSAL_LM")
    agent = make_agent(architecture="gpt2", lora_config=dropped)
    agent.set_training_mode(True)
    training = {name for name, m in agent.base.model.named_modules() if m.training and isinstance(m, torch.nn.Dropout)}
    assert training
    assert all(agent.adapters.name("actor") in name for name in training)
    agent.set_training_mode(False)
    assert not any(module.training for module in agent.base.model.modules())


# Copies -------------------------------------------------------------------------------------------------------------


def test_a_clone_is_an_independent_copy_on_the_same_base(make_agent, experiences):
    agent = make_agent(beta=0.3)
    agent.learn(experiences)
    agent.fitness.append(0.5)
    agent.lr = 2e-3
    calls = []
    agent.register_mutation_hook(lambda: calls.append(1))
    twin = agent.clone(index=5)
    assert (twin.index, twin.beta, twin.lr, twin.fitness, twin.steps) == (5, 0.3, 2e-3, [0.5], [6])
    assert twin.base is agent.base
    assert calls == [1]
    assert agent.clone().index == agent.index
    assert same(weights(twin), weights(agent))
    assert same(weights(twin, "reference"), weights(agent, "reference"))
    before, moments = weights(agent), [s["exp_avg"].clone() for s in agent.optimizer.state.values()]
    assert twin.learn(experiences)["loss"] == agent.learn(experiences, training=False)["loss"]
    assert same(weights(agent), before)
    assert same([s["exp_avg"] for s in agent.optimizer.state.values()], moments)
    agent.learn(experiences)
    assert same(weights(twin), weights(agent))  # the optimizer's state came along
    twin.fitness.append(1.0)
    assert agent.fitness == [0.5]


def test_a_clone_takes_a_batch_size_that_its_micro_batches_do_not_divide(make_agent, experiences):
    agent = make_agent(moved=True, batch_size=6, micro_batch_size_per_gpu=3)
    agent.batch_size = 5
    twin = agent.clone()
    assert (twin.batch_size, twin.micro_batch_size_per_gpu) == (5, 3)
    for one in (agent, twin):
        one.learn(experiences)
        assert one.optimizer_steps == 2
    assert same(weights(twin), weights(agent))


def test_a_population_shares_the_base_and_starts_equal(tiny_model, lora, experiences):
    model = tiny_model()
    space = spaces.Discrete(3)
    agents = DPO.population(3, space, space, actor_network=model, lora_config=lora, batch_size=6)
    assert [agent.index for agent in agents] == [0, 1, 2]
    assert {id(agent.base.model) for agent in agents} == {id(model)}
    assert len(agents[0].base.adapter_names) == 4  # three actors and the reference that they share
    assert len({agent.learn(experiences)["loss"] for agent in agents}) == 1
    wrapped = DPO.population(
        2,
        wrapper_cls=lambda agent, tag: (tag, agent),
        wrapper_kwargs={"tag": "w"},
        actor_network=model,
        lora_config=lora,
    )
    assert [tag for tag, _ in wrapped] == ["w", "w"]
    with pytest.raises(ValueError, match="size=0"):
        DPO.population(0, actor_network=model)


def test_agents_on_one_base_learn_as_if_each_were_alone(make_agent, tiny_model, experiences):
    model = tiny_model()
    together = [make_agent(actor_network=model, seed=s, beta=b) for s, b in ((1, 0.1), (2, 0.5))]
    alone = [make_agent(seed=s, beta=b) for s, b in ((1, 0.1), (2, 0.5))]
    for _ in range(2):
        for agent in (*together, *alone):
            agent.learn(experiences)
    for one, other in zip(together, alone, strict=True):
        assert same(weights(one), weights(other))


def test_cleaning_up_removes_adapters_at_once(make_agent, tiny_model):
    model = tiny_model()
    first, second = make_agent(actor_network=model), make_agent(actor_network=model)
    first.clean_up()
    assert set(second.base.adapter_names) == set(second.adapters.owned.values())
    del second.adapters, second
    gc.collect()
    assert first.base.adapter_names == ()


# The rest of AgileRL's surface --------------------------------------------------------------------------------------


def test_dpo_takes_no_actions(make_agent):
    with pytest.raises(RuntimeError, match=r"offline algorithm.*generate"):
        make_agent().get_action(["prompt"])


def test_update_lr_and_its_schedule():
    parameter = torch.nn.Parameter(torch.zeros(1))
    other = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([{"params": [parameter]}, {"params": [other]}], lr=1.0)
    assert DPO.update_lr(optimizer, 0.5) == (None, None)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.5]
    DPO.update_lr(optimizer, (0.1, 0.2))
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.2]
    config = CosineLRScheduleConfig(num_epochs=10, warmup_proportion=0.4)
    _, schedule = DPO.update_lr(optimizer, 1.0, scheduler_config=config)
    rates = []
    for _ in range(10):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert rates[4:] == pytest.approx([0.5 * (1 + np.cos(np.pi * k / 6)) for k in range(6)])
    with pytest.raises(ValueError, match="warmup_proportion=1"):
        CosineLRScheduleConfig(num_epochs=10, warmup_proportion=1.0)


def test_reinit_optimizers_keeps_the_moments(make_agent, experiences):
    agent = make_agent()
    agent.learn(experiences)
    agent.lr = 0.5
    agent.reinit_optimizers(OptimizerConfig())
    assert agent.optimizer.param_groups[0]["lr"] == 0.5
    assert {int(state["step"]) for state in agent.optimizer.state.values()} == {1}
    with pytest.raises(ValueError, match="no optimizer 'critic_optimizer'"):
        agent.reinit_optimizers(OptimizerConfig(name="critic_optimizer"))


def test_attributes(make_agent):
    agent = make_agent(beta=0.7)
    assert isinstance(agent.evolvable_attributes(networks_only=True)["actor"], PeftModel)
    assert set(agent.evolvable_attributes()) == {"actor", "optimizer"}
    everything = DPO.inspect_attributes(agent)
    assert everything["fitness"] == []
    assert everything["beta"] == 0.7
    assert not any(isinstance(value, (torch.nn.Module, torch.optim.Optimizer)) for value in everything.values())
    arguments = DPO.inspect_attributes(agent, input_args_only=True)
    assert "beta" in arguments
    assert "fitness" not in arguments
    other = make_agent(beta=0.1)
    agent.fitness = [0.25]
    assert DPO.copy_attributes(agent, other) is other
    assert (other.beta, other.fitness) == (0.7, [0.25])
    assert other.fitness is not agent.fitness


def test_network_groups_and_hooks(make_agent):
    agent = make_agent()
    assert [group.eval_network for group in agent.network_groups if group.policy] == ["actor"]
    with pytest.raises(ValueError, match="names critic; the agent's networks are actor"):
        agent.register_network_group(NetworkGroup("critic"))
    order = []
    agent.register_mutation_hook(lambda: order.append("first"))
    agent.register_mutation_hook(lambda: order.append("second"))
    agent.mutation_hook()
    assert order == ["first", "second"]


def test_devices_observations_and_dimensions(make_agent):
    agent = make_agent()
    batch = {"ids": torch.ones(2), "texts": ["a"], "nested": [torch.zeros(1)]}
    moved, number = agent.to_device(batch, 3)
    assert torch.equal(moved["ids"], batch["ids"])
    assert moved["texts"] == ["a"]
    assert number == 3
    assert agent.preprocess_observation(batch) is batch
    space = spaces.Dict({"a": spaces.Box(0, 1, (2, 3)), "b": spaces.Discrete(5)})
    assert DPO.get_state_dim(space) == {"a": (2, 3), "b": (5,)}
    assert DPO.get_action_dim([spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(4)]) == ((5,), (4,))


def test_a_users_peft_model_is_handed_back_as_it_was(tiny_model, lora, experiences):
    model = get_peft_model(tiny_model(), lora)
    for number, (name, parameter) in enumerate(model.named_parameters()):
        if "lora_" in name:
            parameter.data.normal_(generator=torch.Generator().manual_seed(number)).mul_(0.1)
    ids = torch.arange(1, 9)[None]
    model.eval()
    before = model(ids).logits
    agent = DPO(actor_network=model, lr=1e-2)
    agent.learn(experiences)
    agent.clean_up()
    assert torch.equal(model(ids).logits, before)
    again = DPO(actor_network=model, lr=1e-2)
    again.learn(experiences)
    del agent, again
    gc.collect()
    assert list(model.peft_config) == ["default"]
    assert torch.equal(model(ids).logits, before)
    assert all(p.requires_grad for n, p in model.named_parameters() if "lora_" in n)


def test_learning_frees_the_adapters_of_agents_that_are_gone(make_agent, tiny_model, experiences):
    model = tiny_model()
    agents = [make_agent(actor_network=model, index=i) for i in range(3)]
    parameters = sum(1 for _ in model.parameters())
    survivor = agents.pop()
    agents.clear()
    gc.collect()
    survivor.learn(experiences)
    gone = 2 * len(survivor.adapters.parameters("actor"))  # the reference was everybody's and stays
    assert sum(1 for _ in model.parameters()) == parameters - gone


def test_a_method_registered_as_a_hook_belongs_to_the_clone(tiny_model, lora):
    class Counting(DPO):
        calls = 0

        def count(self):
            self.calls += 1

    agent = Counting(actor_network=tiny_model(), lora_config=lora)
    agent.register_mutation_hook(agent.count)
    twin = agent.clone()
    assert (agent.calls, twin.calls) == (0, 1)
    assert [group.eval_network for group in twin.network_groups] == ["actor"]
