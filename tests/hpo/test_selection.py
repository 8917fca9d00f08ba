"""What all strategies of selection share: ranking, places, and what happens to real agents."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig

from agiledpo.algorithms.core.errors import PopulationDivergedError
from agiledpo.hpo.multi_frequency import MultiFrequencySelection
from agiledpo.hpo.selection import arrange, rank, ranked
from agiledpo.hpo.tournament import TournamentSelection
from agiledpo.hpo.truncation import TruncationSelection

STRATEGIES = {
    "tournament": lambda size: TournamentSelection(2, True, size, rand_seed=0),
    "tournament without elitism": lambda size: TournamentSelection(2, False, size, rand_seed=0),
    "truncation": lambda size: TruncationSelection(size, 0.25, rand_seed=0),
    "multi-frequency": lambda size: MultiFrequencySelection(size, (1, 2)),
}


@pytest.fixture(params=STRATEGIES)
def make_selection(request):
    return STRATEGIES[request.param]


def snapshot(agent):
    """Everything that a copy must have: weights, moments and step counts of the optimizer, hyperparameters."""
    tensors = [p.detach().clone() for role in ("actor", "reference") for p in agent.adapters.parameters(role)]
    for parameter in agent.adapters.parameters("actor"):
        state = agent.optimizer.state[parameter]
        tensors += [state[name].clone() for name in ("step", "exp_avg", "exp_avg_sq")]
    return tensors, agent.hyperparameters, agent.optimizer.param_groups[0]["lr"], agent.fitness[:], agent.steps[:]


def assert_same(one, other):
    assert one[1:] == other[1:]
    assert all(torch.equal(a, b) for a, b in zip(one[0], other[0], strict=True))


def places(agent):
    return {role: [p.data_ptr() for p in agent.adapters.parameters(role)] for role in ("actor", "reference")}


def tensors(agents):
    return sorted(pointer for agent in agents for role in places(agent).values() for pointer in role)


# Ranking ------------------------------------------------------------------------------------------------------------


def test_the_mean_of_the_last_fitnesses_ranks_then_the_tie_break_then_the_lower_index(herd):
    agents = herd([0.5, 0.7, 0.7, 0.7, 0.6], [9.0, 0.1, 0.3, 0.3, 0.0])
    well, ill = ranked(agents, 1)
    assert [agent.index for agent in well] == [2, 3, 1, 4, 0]
    assert ill == []
    assert [agent.index for agent in ranked(agents[::-1], 1)[0]] == [2, 3, 1, 4, 0]
    agents[0].fitness = [0.0, 1.0, 0.9]  # mean of the last two 0.95, of the last three 0.633
    assert ranked(agents, 2)[0][0] is agents[0]
    assert rank(agents[0], 3)[1] == pytest.approx(1.9 / 3)
    assert rank(agents[1], 3)[1] == 0.7  # the mean of what there is


@pytest.mark.parametrize("value", [math.nan, -math.inf, math.inf])
def test_what_is_not_finite_ranks_below_everything(herd, value):
    agents = herd([-1e300, value, 0.1], [0.0, 5.0, math.nan])
    well, ill = ranked(agents, 1)
    assert [agent.index for agent in well] == [2, 0]
    assert [agent.index for agent in ill] == [1]
    # Two evaluations ago is enough to spoil the mean.
    agents[1].fitness.append(1.0)
    assert ranked(agents, 2)[1] == [agents[1]]
    assert ranked(agents, 1)[0][0] is agents[1]


def test_a_tie_break_that_is_nan_loses_wherever_it_stands(herd):
    for tie_breaks in ([math.nan, 0.0, -1.0], [0.0, math.nan, -1.0], [-1.0, 0.0, math.nan]):
        agents = herd([0.5] * 3, tie_breaks)
        order = [agent.tie_break for agent in ranked(agents, 1)[0]]
        assert order[:2] == [0.0, -1.0]
        assert math.isnan(order[2])


def test_a_diverged_agent_ranks_last_whatever_its_fitness_and_needs_none(herd):
    agents = herd([0.9, 0.1, 0.2])
    agents[0].diverged = "the loss was NaN"
    agents[1].fitness, agents[1].diverged = [], "the gradient was NaN"
    well, ill = ranked(agents, 1)
    assert [agent.index for agent in well] == [2]
    assert [agent.index for agent in ill] == [0, 1]


def test_selecting_before_the_first_evaluation_says_what_to_do(herd, make_selection):
    agents = herd([0.1] * 8)
    agents[3].fitness = []
    with pytest.raises(ValueError, match=r"Agent 3 has no fitness yet\. Evaluate every agent"):
        make_selection(8).select(agents)


def test_a_population_without_a_well_agent_is_named(herd, make_selection):
    agents = herd([math.nan] * 8)
    agents[1].diverged = "the loss of batch 3 was NaN"
    with pytest.raises(PopulationDivergedError, match=r"agent 0: fitness nan; agent 1: the loss of batch 3 was NaN;"):
        make_selection(8).select(agents)
    assert not any(agent.freed for agent in agents)


def test_agents_need_indices_of_their_own(herd, make_selection):
    agents = herd([0.1] * 8)
    agents[1].index = 0
    for act in (make_selection(8).select, make_selection(8).check):
        with pytest.raises(ValueError, match="Agents share an index"):
            act(agents)
        with pytest.raises(ValueError, match="population is empty"):
            act([])


# Places -------------------------------------------------------------------------------------------------------------


@given(st.data())
def test_an_arrangement_copies_before_it_overwrites(weightless, data):
    count = data.draw(st.integers(1, 8))
    agents = [weightless(i, lr=i + 1.0, kind=data.draw(st.sampled_from("ab"))) for i in range(count)]
    before = list(agents)
    chosen = data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=12))
    kinds = [agent.kind for agent in agents]
    new = arrange(agents, [agents[i] for i in chosen], 50)
    assert agents == before
    assert len(new) == len(chosen)
    staying = sorted(set(chosen))
    assert new[: len(staying)] == [before[i] for i in staying]
    assert [agent.index for agent in new] == [*staying, *range(50, 50 + len(chosen) - len(staying))]
    # Every child is what its parent is, also where the child sits in the object of an agent that was there before.
    assert sorted(agent.lr for agent in new) == sorted(i + 1.0 for i in chosen)
    assert all(child.lr == child.parent + 1.0 and child.kind == kinds[child.parent] for child in new[len(staying) :])
    assert all(not agent.freed for agent in new)
    assert all(agent in new or agent.freed for agent in before)


def test_a_larger_population_clones_and_a_smaller_one_frees(herd):
    agents = herd([0.1, 0.4, 0.3])
    elite, new = TournamentSelection(3, True, 6, rand_seed=0).select(agents)
    assert elite is agents[1]
    assert [agent.index for agent in new] == [1, 3, 4, 5, 6, 7]  # three contestants of three: the best wins them all
    assert {agent.parent for agent in new[1:]} == {1}
    assert len({id(agent) for agent in new}) == 6
    for agent in new:
        agent.record_fitness(agent.index)
    elite, smaller = TruncationSelection(2, rand_seed=0).select(new)
    assert [agent.index for agent in smaller] == [7, 6]
    assert [agent.index for agent in new if agent.freed] == [1, 3, 4, 5]


def test_indices_are_never_used_again(herd, make_selection):
    selection = make_selection(8)
    agents, seen, rng = herd([0.0] * 8), set(range(8)), np.random.default_rng(0)
    for _ in range(10):
        before = {agent.index for agent in agents}
        for agent in agents:
            agent.record_fitness(rng.random())
        _, agents = selection.select(agents)
        born = {agent.index for agent in agents} - before
        assert not born & seen
        seen |= born
    if isinstance(selection, MultiFrequencySelection):
        return  # it needs all its agents
    # Those with the highest indices may be gone; their indices are not given again, also after a resume.
    rest = sorted(agents, key=lambda agent: agent.index)[:2]
    before = {agent.index for agent in rest}
    resumed = make_selection(8)
    resumed.load_state_dict(selection.state_dict())
    _, new = resumed.select(rest)
    assert len(new) == 8
    assert all(agent.index in before or agent.index > max(seen) for agent in new)


def test_the_elite_comes_first_and_never_explores(herd, make_selection):
    rng = np.random.default_rng(1)
    for _ in range(10):
        agents = herd(rng.random(8).tolist())
        before = list(agents)
        selection = make_selection(8)
        elite, new = selection.select(agents)
        assert agents == before  # AgileRL fills the caller's list with None
        assert new[0] is elite
        assert max(agent.fitness[-1] for agent in new) == elite.fitness[-1]
        assert elite.index not in selection.explorers
        assert set(selection.explorers) <= {agent.index for agent in new}
        if isinstance(selection, TournamentSelection):
            assert set(selection.explorers) == {agent.index for agent in new[1:]}
        elif isinstance(selection, TruncationSelection):
            assert set(selection.explorers) == {agent.index for agent in new if agent.index >= 8}


def test_whoever_has_diverged_is_gone_after_one_selection(herd, make_selection):
    rng = np.random.default_rng(2)
    for _ in range(20):
        agents = herd(rng.random(8).tolist())
        ill = rng.choice(8, 6, replace=False)
        for number in ill[:3]:
            agents[number].diverged = "the loss was NaN"
        for number in ill[3:]:
            agents[number].fitness = [math.nan]
        _, new = make_selection(8).select(agents)
        assert len(new) == 8
        assert not {agent.index for agent in new} & set(ill.tolist())
        assert all(agent.diverged is None and math.isfinite(agent.fitness[-1]) for agent in new)
        assert all(agent.parent not in ill for agent in new)


# Determinism --------------------------------------------------------------------------------------------------------


def run(selection, agents, generations, rng):
    history = []
    for _ in range(generations):
        for agent in agents:
            agent.record_fitness(rng.random())
        elite, agents = selection.select(agents)
        history.append((elite.index, [(a.index, a.parent, a.fitness[-1]) for a in agents], selection.explorers))
    return agents, history


def test_the_same_seed_selects_the_same_and_a_resumed_one_goes_on_as_if_nothing_had_happened(herd, make_selection):
    _, expected = run(make_selection(8), herd([0.0] * 8), 12, np.random.default_rng(3))
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    first, rng = make_selection(8), np.random.default_rng(3)
    agents, begun = run(first, herd([0.0] * 8), 5, rng)
    second = make_selection(8)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.explorers == first.explorers
    _, rest = run(second, agents, 7, rng)
    assert begun + rest == expected


def test_another_seed_selects_otherwise_and_none_is_fresh(herd):
    def choice(seed):
        return run(TournamentSelection(2, True, 8, rand_seed=seed), herd([0.0] * 8), 5, np.random.default_rng(0))[1]

    assert choice(0) != choice(1)
    assert choice(None) != choice(None)


def test_a_state_does_not_move_with_the_selection_it_was_taken_from(herd):
    selection = TournamentSelection(2, True, 8, rand_seed=0)
    state = selection.state_dict()
    before = json.dumps(state)
    selection.select(herd([0.1] * 8))
    assert json.dumps(state) == before
    with pytest.raises(ValueError, match="of a TournamentSelection, not of a TruncationSelection"):
        TruncationSelection(8).load_state_dict(state)


# Real agents --------------------------------------------------------------------------------------------------------


def test_who_stays_keeps_its_adapters_and_copies_are_their_parents_in_every_bit(dpo_population, make_experiences):
    agents = dpo_population([0.2, 0.9, math.nan, 0.1])
    agents[3].diverged = "the loss was NaN"
    names = set(agents[0].base.adapter_names)
    kept = {agent.index: (places(agent), agent.adapters.owned) for agent in agents}
    of_before = {agent.index: snapshot(agent) for agent in agents}
    # Four contestants of the two that are well: the best wins everything.
    elite, new = TournamentSelection(4, True, 4, rand_seed=0).select(agents)
    assert elite is agents[1]
    assert [(agent.index, agent.parent) for agent in new] == [(1, None), (4, 1), (5, 1), (6, 1)]
    assert {id(agent) for agent in new} == {id(agent) for agent in agents}
    assert (places(elite), elite.adapters.owned) == kept[1]
    assert set(elite.base.adapter_names) == names
    for agent in new:
        assert_same(snapshot(agent), of_before[1])
        assert agent.diverged is None
    experiences = make_experiences([(3, 4, 2), (2, 3, 5)], seed=9)
    new[1].learn(experiences)
    assert_same(snapshot(elite), of_before[1])
    assert not torch.equal(snapshot(new[1])[0][1], of_before[1][0][1])
    # Trained on the same, parent and child stay the same: the optimizer's state is the parent's.
    elite.learn(experiences)
    assert all(torch.equal(a, b) for a, b in zip(snapshot(elite)[0], snapshot(new[1])[0], strict=True))


def test_the_number_of_adapters_never_grows(dpo_population, make_selection):
    agents, rng = dpo_population([0.1] * 8), np.random.default_rng(0)
    selection, base = make_selection(8), agents[0].base
    names = sorted(base.adapter_names)
    memory = tensors(agents)
    assert len(names) == 9  # eight actors and the reference that all hold
    births = 0
    for _ in range(20):
        for agent in agents:
            agent.record_fitness(rng.random())
        before = {agent.index for agent in agents}
        _, agents = selection.select(agents)
        births += len({agent.index for agent in agents} - before)
        assert sorted(base.adapter_names) == names
    assert births >= 20
    assert tensors(agents) == memory


def test_a_loser_of_another_rank_is_freed_before_the_copy_is_made(dpo_population):
    configs = [LoraConfig(r=r, target_modules="all-linear", task_type="CAUSAL_LM") for r in (2, 4, 2, 4)]
    agents = dpo_population([0.1, 0.9, 0.2, 0.3], lora_configs=configs)
    expected, freed = snapshot(agents[1]), [set(agents[i].adapters.owned.values()) for i in (0, 2)]
    _, new = TournamentSelection(4, True, 4, rand_seed=0).select(agents)
    assert [(agent.index, agent.parent) for agent in new] == [(1, None), (4, 1), (5, 1), (6, 1)]
    assert [agent in agents for agent in new] == [True, False, False, True]
    for agent in new:
        assert_same(snapshot(agent), expected)
        assert agent.lora_config.r == 4
    base = new[0].base
    assert len(base.adapter_names) == 5  # four actors and their reference
    assert not set(base.adapter_names) & set.union(*freed)
    assert len(set(tensors(new))) == 5 * len(new[0].adapters.parameters("actor"))


def test_a_nan_fitness_never_wins(dpo_population):
    # In AgileRL argsort puts NaN last, which is where the best stands.
    assert int(np.argsort([0.2, math.nan, 0.1])[-1]) == 1
    agents = dpo_population([0.2, math.nan, 0.1])
    weights = snapshot(agents[1])[0][1]
    assert not torch.equal(snapshot(agents[0])[0][1], weights)
    elite, new = TournamentSelection(1, True, 3, rand_seed=0).select(agents)
    assert elite.index == 0
    assert all(agent.parent in (None, 0, 2) for agent in new)
    assert not any(torch.equal(snapshot(agent)[0][1], weights) for agent in new)
