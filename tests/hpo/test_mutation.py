"""Mutation of real agents."""

import json
import random

import numpy as np
import pytest
import torch

from agiledpo.algorithms import DPO
from agiledpo.algorithms.core.registry import Choice, HyperparameterConfig, LogUniform, RLParameter
from agiledpo.hpo.mutation import Mutation, Mutations

LENGTHS = [(7, 5, 9), (1, 1, 1), (3, 8, 1), (12, 1, 6)]


def config():
    return HyperparameterConfig(
        lr=RLParameter(min=1e-5, max=1e-1),
        beta=LogUniform(min=0.01, max=1.0),
        batch_size=RLParameter(min=1, max=16),
        loss_type=Choice("sigmoid", "ipo", ("sigmoid", "sft")),
    )


LR = {"lr": RLParameter(min=1e-5, max=1e-1)}


@pytest.fixture
def make_population(tiny_model, lora):
    """Make agents on one tiny model: ``make_population(size, hp_config, **arguments)``."""

    def make(size, hp_config=None, **arguments):
        settings = {"lora_config": lora, "batch_size": 4, "lr": 1e-3, "nll_alpha": 0.0, **arguments}
        model = tiny_model(num_hidden_layers=1)
        return DPO.population(size, actor_network=model, hp_config=hp_config, **settings)

    return make


def values(population):
    return [agent.hyperparameters for agent in population]


def state(agent):
    """Everything a mutation must not touch."""
    return {
        "weights": [p.detach().clone() for role in ("actor", "reference") for p in agent.adapters.parameters(role)],
        "moments": [
            {name: value.clone() for name, value in agent.optimizer.state[p].items()}
            for p in agent.adapters.parameters("actor")
        ],
    }


def assert_same(one, other):
    assert all(torch.equal(a, b) for a, b in zip(one["weights"], other["weights"], strict=True))
    for mine, theirs in zip(one["moments"], other["moments"], strict=True):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


# What happens to an agent -------------------------------------------------------------------------------------------


def test_one_hyperparameter_of_each_agent_changes_and_is_noted(make_population):
    population = make_population(5, config())
    before = values(population)
    mutations = Mutations(no_mutation=0, rl_hp=1, mutate_elite=True, rand_seed=0)
    for _ in range(10):
        result = mutations.mutation(population)
        assert result is not population
        assert all(a is b for a, b in zip(result, population, strict=True))
        changes = []
        for agent, old, new in zip(population, before, values(population), strict=True):
            changed = [name for name in old if old[name] != new[name]]
            assert changed == ([] if agent.mut is None else [agent.mut])
            changes += [Mutation(agent.index, name, old[name], new[name]) for name in changed]
        assert mutations.last == changes
        before = values(population)


def test_agents_of_one_config_move_from_their_own_values(make_population):
    """AgileRL keeps the value in the config, so that the second agent moves from where the first one went."""
    one, other = make_population(2, HyperparameterConfig(**LR))
    other.lr = 1e-2
    mutations = Mutations(no_mutation=0, rl_hp=1, mutate_elite=True, rand_seed=1)
    mutations.mutation([one, other])
    assert one.lr in (1e-3 * 0.8, 1e-3 * 1.2)
    assert other.lr in (1e-2 * 0.8, 1e-2 * 1.2)
    present = one.lr
    mutations.mutation([one])
    assert one.lr in (present * 0.8, present * 1.2)


def test_a_batch_of_four_grows_to_five(make_population, make_experiences):
    seen = set()
    for seed in range(10):
        (agent,) = make_population(1, HyperparameterConfig(batch_size=RLParameter(min=1, max=16)))
        Mutations(no_mutation=0, rl_hp=1, rand_seed=seed).mutation([agent], pre_training_mut=True)
        seen.add(agent.batch_size)
        steps = agent.optimizer_steps
        agent.learn(make_experiences([LENGTHS[0]] * 12))
        assert agent.optimizer_steps - steps == {3: 4, 5: 3}[agent.batch_size]
    assert seen == {3, 5}


def test_a_learning_rate_takes_effect_at_once_and_keeps_the_moments(make_population, make_experiences):
    experiences = make_experiences(LENGTHS)
    agent, twin = make_population(2, HyperparameterConfig(**LR))
    for each in (agent, twin):
        each.learn(experiences)
    before = state(agent)
    assert_same(before, state(twin))
    Mutations(no_mutation=0, rl_hp=1, mutate_elite=True, rand_seed=0).mutation([agent])
    assert agent.lr in (1e-3 * 0.8, 1e-3 * 1.2)
    assert agent.optimizer.param_groups[0]["lr"] == agent.lr
    assert_same(before, state(agent))
    # The next steps from the same moments are proportional to the rates.
    for each in (agent, twin):
        each.learn(experiences)
    for start, moved, plain in zip(before["weights"], state(agent)["weights"], state(twin)["weights"], strict=True):
        torch.testing.assert_close(moved - start, (plain - start) * (agent.lr / twin.lr), rtol=1e-2, atol=1e-7)
    assert_same({**state(agent), "weights": []}, {**state(twin), "weights": []})


def test_a_schedule_of_the_learning_rate_goes_on_when_something_else_mutates(make_population):
    (agent,) = make_population(1, HyperparameterConfig(beta=RLParameter(0.01, 1.0)))
    agent.optimizer.param_groups[0]["lr"] = 3e-4  # as a schedule would set it
    Mutations(no_mutation=0, rl_hp=1, mutate_elite=True, rand_seed=0).mutation([agent])
    assert agent.mut == "beta"
    assert agent.optimizer.param_groups[0]["lr"] == 3e-4


def test_hooks_run_once_for_each_mutated_agent_and_see_the_change(make_population):
    population = make_population(6, config())
    calls = []
    for agent in population:
        agent.register_mutation_hook(
            lambda agent=agent: calls.append((agent.index, agent.mut, agent.hyperparameters[agent.mut]))
        )
    mutations = Mutations(no_mutation=1, rl_hp=1, rand_seed=3)
    mutations.mutation(population)
    assert calls == [(m.agent, m.parameter, m.new) for m in mutations.last]
    assert 0 < len(calls) < 5


def test_a_step_that_a_border_does_not_let_move_is_no_mutation(make_population):
    outcomes = set()
    for seed in range(12):
        (agent,) = make_population(1, HyperparameterConfig(lr=RLParameter(min=1e-3, max=1e-1)))
        calls = []
        agent.register_mutation_hook(lambda calls=calls: calls.append(1))
        agent.mut = "lr"
        mutations = Mutations(no_mutation=0, rl_hp=1, mutate_elite=True, rand_seed=seed)
        mutations.mutation([agent])
        outcomes.add((agent.lr, agent.mut, len(calls), len(mutations.last)))
    assert outcomes == {(1e-3, None, 0, 0), (1e-3 * 1.2, "lr", 1, 1)}


def test_a_value_set_by_hand_outside_its_range_is_brought_back(make_population):
    (agent,) = make_population(1, HyperparameterConfig(**LR))
    agent.lr = 5.0
    Mutations(no_mutation=0, rl_hp=1, mutate_elite=True, rand_seed=0).mutation([agent])
    assert agent.lr == 1e-1


def test_no_mutation_reaches_what_training_refuses(make_population):
    wide = HyperparameterConfig(
        lr=LogUniform(1e-7, 1.0),
        batch_size=RLParameter(1, 64),
        update_epochs=LogUniform(1, 4),
        max_grad_norm=LogUniform(0.01, 10.0),
        nll_alpha=Choice(0.0, 0.1, 1.0),
        loss_type=Choice("exo_pair", "robust"),
        label_smoothing=RLParameter(0.001, 0.49),
        ld_alpha=Choice(None, 0.0, 0.5),
    )
    population = make_population(4, wide, loss_type="robust", label_smoothing=0.1)
    mutations = Mutations(no_mutation=0, rl_hp=1, mutate_elite=True, rand_seed=0)
    seen = set()
    for _ in range(200):
        mutations.mutation(population)
        for agent in population:
            agent.check_settings()
        seen |= {agent.mut for agent in population}
    assert seen >= wide.keys()


# Who mutates --------------------------------------------------------------------------------------------------------


def test_the_elite_stays_as_it_was_evaluated(make_population, make_experiences):
    """AgileRL mutates it, and saves it with a beta that it was not trained with."""
    population = make_population(3, config())
    population[0].learn(make_experiences(LENGTHS))
    before, weights = population[0].hyperparameters, state(population[0])
    calls = []
    population[0].register_mutation_hook(lambda: calls.append(1))
    mutations = Mutations(no_mutation=0, rl_hp=1, rand_seed=0)
    for _ in range(20):
        mutations.mutation(population)
        assert population[0].mut is None
        assert {mutation.agent for mutation in mutations.last} <= {1, 2}
    assert population[0].hyperparameters == before
    assert_same(weights, state(population[0]))
    assert not calls
    Mutations(no_mutation=0, rl_hp=1, mutate_elite=True, rand_seed=0).mutation(population)
    assert population[0].hyperparameters != before


def test_weights_are_relative(make_population):
    population = make_population(10, HyperparameterConfig(beta=LogUniform(0.01, 1.0)))
    rounds = 60
    for no_mutation, rl_hp in [(0.1, 0.6), (2, 12)]:
        mutations = Mutations(no_mutation, 0, 0, 0, 0, rl_hp, mutate_elite=True, rand_seed=0)
        count = 0
        for _ in range(rounds):
            mutations.mutation(population)
            count += len(mutations.last)
        expected = 10 * rounds * 6 / 7
        assert abs(count - expected) < 4 * (expected / 7) ** 0.5


def test_nothing_mutates_without_weight(make_population):
    population = make_population(2)  # which need no hp_config then
    mutations = Mutations(no_mutation=0, rl_hp=0, mutate_elite=True)
    before = values(population)
    assert len(mutations.mutation(population)) == 2
    mutations.mutation(population, pre_training_mut=True)
    assert values(population) == before
    assert mutations.last == []
    assert Mutations(no_mutation=0.5).mutation([]) == []


def test_founders_all_mutate(make_population):
    population = make_population(8, HyperparameterConfig(beta=LogUniform(0.01, 1.0)))
    mutations = Mutations(no_mutation=100, rl_hp=0.1, rand_seed=0)
    mutations.mutation(population, pre_training_mut=True)
    assert [mutation.agent for mutation in mutations.last] == list(range(8))
    assert len({agent.beta for agent in population}) == 8


def test_an_agent_without_hp_config_stops_it_before_anything_changes(make_population):
    population = make_population(3, config())
    for missing in (None, HyperparameterConfig()):
        population[2].hp_config = missing
        before = values(population)
        mutations = Mutations(no_mutation=0, rl_hp=1, rand_seed=0)
        drawn = mutations.state_dict()
        with pytest.raises(ValueError, match=r"agent 2 was made without hp_config.*or set rl_hp=0"):
            mutations.mutation(population)
        assert values(population) == before
        assert mutations.state_dict() == drawn


# Randomness ---------------------------------------------------------------------------------------------------------


def run(make_population, mutations, rounds=12):
    population = make_population(4, config())
    made = []
    for _ in range(rounds):
        mutations.mutation(population)
        made += mutations.last
    return made, values(population)


def test_the_same_seed_makes_the_same_mutations(make_population):
    one, other, third = (run(make_population, Mutations(0.2, rl_hp=0.8, rand_seed=seed)) for seed in (5, 5, 6))
    assert one == other
    assert len(one[0]) > 12
    assert one[0] != third[0]
    unseeded = [Mutations(0.2, rl_hp=0.8).state_dict() for _ in range(2)]
    assert unseeded[0] != unseeded[1]


def test_the_generator_resumes_through_json(make_population):
    whole, final = run(make_population, Mutations(0.2, rl_hp=0.8, rand_seed=7))
    population = make_population(4, config())
    first = Mutations(0.2, rl_hp=0.8, rand_seed=7)
    made = []
    for _ in range(5):
        first.mutation(population)
        made += first.last
    kept = json.dumps(first.state_dict())
    first.mutation(make_population(4, config()))  # what it draws after that must not matter
    second = Mutations(0.2, rl_hp=0.8, rand_seed=99)
    second.load_state_dict(json.loads(kept))
    for _ in range(7):
        second.mutation(population)
        made += second.last
    assert (made, values(population)) == (whole, final)


def test_nothing_global_is_drawn_from(make_population):
    population = make_population(3, config())
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    mutations = Mutations(no_mutation=0, rl_hp=1, rand_seed=0)
    for _ in range(10):
        mutations.mutation(population)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), before[1], strict=True))  # noqa: NPY002
    assert random.getstate() == before[2]


# The signature ------------------------------------------------------------------------------------------------------


def test_agilerls_arguments_work_by_keyword_and_by_position():
    by_name = Mutations(
        no_mutation=0.4,
        architecture=0,
        new_layer_prob=0.0,
        parameters=0,
        activation=0,
        rl_hp=0.6,
        mutation_sd=0.3,
        activation_selection=["ReLU"],
        mutate_elite=True,
        rand_seed=3,
        device="cpu",
        accelerator=None,
    )
    by_place = Mutations(0.4, 0, 0.0, 0, 0, 0.6, 0.3, ["ReLU"], True, 3, "cpu", None)
    assert by_name.state_dict() == by_place.state_dict()
    fields = ("no_mutation", "rl_hp", "mutation_sd", "activation_selection", "mutate_elite", "rand_seed", "device")
    expected = (0.4, 0.6, 0.3, ["ReLU"], True, 3, "cpu")
    for mutations in (by_name, by_place):
        assert tuple(vars(mutations)[name] for name in fields) == expected


@pytest.mark.parametrize("name", ["architecture", "new_layer_prob", "parameters", "activation"])
def test_mutations_of_networks_are_refused_in_one_sentence(name):
    with pytest.raises(ValueError, match=rf"^{name}=0\.2: [^.]*language model[^.]*, so set {name}=0\.$"):
        Mutations(no_mutation=0.5, rl_hp=0.5, **{name: 0.2})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"no_mutation": -0.1}, r"no_mutation=-0\.1 must be at least 0"),
        ({"no_mutation": 0.5, "rl_hp": float("nan")}, "rl_hp=nan must be a finite number"),
        ({"no_mutation": 0.5, "rand_seed": -1}, "rand_seed=-1 must be a whole number of at least 0, or None"),
        ({"no_mutation": 0.5, "rand_seed": True}, "rand_seed=True"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Mutations(**arguments)
