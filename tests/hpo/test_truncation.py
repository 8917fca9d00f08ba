"""Truncation replaces the worst by the best and leaves the middle alone."""

from collections import Counter
from math import nan, sqrt

import numpy as np
import pytest

from agiledpo.hpo.truncation import TruncationSelection


@pytest.mark.parametrize(
    ("count", "fraction", "cut"),
    [(2, 0.2, 1), (3, 0.5, 1), (4, 0.2, 1), (5, 0.2, 1), (7, 0.5, 3), (8, 0.2, 2), (10, 0.3, 3), (10, 0.5, 5)],
)
def test_exactly_the_middle_and_the_top_go_on(herd, count, fraction, cut):
    fitness = np.random.default_rng(count).permutation(count).astype(float).tolist()
    agents = herd(fitness)
    worst = {agent.index for agent in agents if agent.fitness[-1] < cut}
    best = {agent.index for agent in agents if agent.fitness[-1] >= count - cut}
    elite, new = TruncationSelection(count, fraction, rand_seed=0).select(agents)
    assert elite.fitness[-1] == count - 1
    staying = [agent.index for agent in new if agent.index < count]
    assert set(staying) == set(range(count)) - worst
    assert staying[1:] == sorted(staying[1:])
    children = [agent for agent in new if agent.index >= count]
    assert [agent.index for agent in children] == list(range(count, count + cut))
    assert {agent.parent for agent in children} <= best
    assert all(agent.fitness[-1] >= count - cut for agent in children)


def test_parents_are_drawn_evenly_among_the_best(herd):
    agents, selection = herd([float(i) for i in range(10)])[::-1], TruncationSelection(3006, 0.4, rand_seed=0)
    chosen = Counter(agent.index for agent in selection.choose(agents, []))
    assert [chosen[i] for i in (0, 1, 2, 3, 4, 5)] == [0, 0, 0, 0, 1, 1]
    draws = 3000
    for i in (6, 7, 8, 9):
        assert abs((chosen[i] - 1) / draws - 1 / 4) < 4 * sqrt(3 / 16 / draws)


def test_the_ill_are_replaced_wherever_the_cut_is(herd):
    agents = herd([nan, 0.5, nan, nan, 0.4, nan, nan, nan])
    _, new = TruncationSelection(8, rand_seed=0).select(agents)
    # A fifth of eight are two; they are among the ill, and the two that are well are the best as well.
    assert [agent.index for agent in new] == [1, 4, 8, 9, 10, 11, 12, 13]
    assert {agent.parent for agent in new[2:]} <= {1, 4}


def test_one_agent_goes_on_alone(herd):
    agents = herd([0.5])
    elite, new = TruncationSelection(1, rand_seed=0).select(agents)
    assert new == [elite] == agents
    _, three = TruncationSelection(3, rand_seed=0).select(agents)
    assert [agent.parent for agent in three] == [None, 0, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((4, 0.0), "fraction=0.0 must be greater than 0"),
        ((4, 0.6), "fraction=0.6 must be at most 0.5"),
        ((4, nan), "fraction=nan must be a finite number"),
        ((0,), "population_size=0"),
        ((4, 0.2, 1.5), "eval_loop=1.5"),
    ],
)
def test_bad_settings_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        TruncationSelection(*arguments)
