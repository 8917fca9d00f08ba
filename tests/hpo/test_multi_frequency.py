"""Subpopulations evolve at their own frequencies and exchange agents as the paper says."""

from math import nan

import numpy as np
import pytest

from agiledpo.algorithms.core.registry import HyperparameterConfig, RLParameter
from agiledpo.hpo.multi_frequency import MultiFrequencySelection

RANGES = HyperparameterConfig(lr=RLParameter(0.5, 1e6))


def population(weightless, fitness):
    """Agents whose fitness stands for their weights, and whose learning rate evolves while beta does not."""
    agents = [weightless(i, lr=i + 1.0, beta=i + 1.0, hp_config=RANGES) for i in range(len(fitness))]
    for agent, value in zip(agents, fitness, strict=True):
        agent.record_fitness(value)
    return agents


def by_the_paper(fitness, ratios, call):
    """The rule over whole arrays at once: whose weights and whose hyperparameters each place gets, and who explores.

    Every place reads the generation before, so nothing can be overwritten before it is read.
    """
    total, parts = len(fitness), len(ratios)
    size = total // parts
    weights, settings, explores = np.arange(total), np.arange(total), np.zeros(total, bool)
    home = np.arange(total) // size
    for part in range(parts):
        if call % ratios[part]:
            continue
        order = [i for i in np.argsort(-fitness) if home[i] == part]
        first, _, third, fourth = np.split(np.array(order), 4)
        weights[fourth] = settings[fourth] = first
        explores[fourth] = True
        others = [i for i in np.argsort(-fitness) if home[i] != part]
        for i in third:
            if fitness[others[0]] > fitness[i]:
                weights[i] = others.pop(0)
                settings[i] = weights[i] if home[weights[i]] > part else order[0]
    return weights, settings, explores


@pytest.mark.parametrize(("ratios", "total"), [((1, 2), 8), ((1, 5), 16), ((1, 2, 3), 24), ((2, 3, 5, 7), 32)])
def test_every_step_is_that_of_the_paper(weightless, ratios, total):
    rng = np.random.default_rng(total)
    migrants = 0
    for trial in range(20):
        selection = MultiFrequencySelection(total, ratios)
        agents = population(weightless, np.zeros(total))
        places = list(agents)  # who stands where
        for call in range(1, 7):
            # Subpopulations that are far apart at times, so that whole quarters are filled from outside.
            fitness = rng.random(total) + rng.random(len(ratios)).repeat(total // len(ratios)) * (trial % 3)
            for agent, value in zip(places, fitness, strict=True):
                agent.record_fitness(value)
            learning_rates = np.array([agent.lr for agent in places])
            betas = np.array([agent.beta for agent in places])
            indices = np.array([agent.index for agent in places])
            weights, settings, explores = by_the_paper(fitness, ratios, call)
            elite, new = selection.select(agents)
            assert elite.fitness[-1] == fitness.max()
            by_index = {agent.index: agent for agent in new}
            members = [i for part in selection.state_dict()["members"] for i in part]
            places = [by_index[i] for i in members]
            moved = weights != np.arange(total)
            assert [agent.index != i for agent, i in zip(places, indices, strict=True)] == moved.tolist()
            assert [agent.fitness[-1] for agent in places] == fitness[weights].tolist()
            assert [agent.beta for agent in places] == betas[weights].tolist()
            assert [agent.lr for agent in places] == learning_rates[settings].tolist()
            assert [a.parent for a, m in zip(places, moved, strict=True) if m] == indices[weights[moved]].tolist()
            assert sorted(selection.explorers) == sorted(places[i].index for i in np.flatnonzero(explores))
            migrants += int((weights != settings).sum())
            assert not moved[weights[moved]].any()  # who is copied stays
            for agent in places:
                agent.lr *= rng.choice([0.8, 1.25])
            agents = [new[i] for i in rng.permutation(total)]
    assert migrants > 0


def test_a_resting_subpopulation_is_left_alone(weightless):
    agents = population(weightless, np.arange(16.0))
    selection = MultiFrequencySelection(16, (3, 5))
    for call in range(1, 16):
        before = {agent.index for agent in agents}
        _, agents = selection.select(agents)
        changed = len(before - {agent.index for agent in agents})
        assert (changed > 0) is (call % 3 == 0 or call % 5 == 0)
        for agent in agents:
            agent.record_fitness(float(agent.index))


def test_the_ill_are_replaced_while_their_subpopulation_rests(weightless):
    agents = population(weightless, [0.1, 0.2, 0.3, 0.4, nan, nan, 0.7, 0.6])
    agents[4].diverged = "the loss was NaN"
    selection = MultiFrequencySelection(8, (7, 9))
    _, new = selection.select(agents)
    children = [agent for agent in new if agent.index >= 8]
    assert [agent.parent for agent in children] == [6, 6]
    assert set(selection.explorers) == {8, 9}
    assert selection.state_dict()["members"][0] == [0, 1, 2, 3]
    # A subpopulation without anybody left starts again from the best of all.
    for agent in agents:
        agent.record_fitness(nan if agent.index >= 6 else 0.1 * agent.index)
    _, new = selection.select(new)
    assert {agent.parent for agent in new if agent.index >= 10} == {3}


def test_migrants_of_different_build_are_copied_before_they_are_freed(weightless):
    agents = population(weightless, [0.1, 0.2, 0.3, 0.4, 0.8, 0.7, 0.6, 0.5])
    for agent in agents[4:]:
        agent.kind = "b"
    _, new = MultiFrequencySelection(8, (1, 2)).select(agents)
    assert sorted((a.parent, a.kind, a.fitness[-1]) for a in new if a.index >= 8) == [(3, "a", 0.4), (4, "b", 0.8)]
    assert not any(agent.freed for agent in new)
    assert agents[1].freed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((12, (1, 5)), "population_size=12 does not divide into 2 subpopulations of four equal parts"),
        ((8, (1,)), "must be two or more increasing numbers"),
        ((8, (2, 1)), "must be two or more increasing numbers"),
        ((8, (1, 1)), "must be two or more increasing numbers"),
        ((8, (0, 1)), "evolution_frequency_ratios=0 must be a whole number"),
    ],
)
def test_bad_settings_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        MultiFrequencySelection(*arguments)


def test_another_population_is_refused(weightless):
    selection = MultiFrequencySelection(8, (1, 2))
    agents = population(weightless, np.arange(8.0))
    with pytest.raises(ValueError, match="The population has 7 agents; population_size=8"):
        selection.check(agents[1:])
    selection.check(agents)
    selection.select(agents)
    with pytest.raises(ValueError, match=r"Agents \[0, 1\] belong to no subpopulation"):
        selection.select(population(weightless, np.arange(8.0)))
