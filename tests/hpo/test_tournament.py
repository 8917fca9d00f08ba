"""Tournaments are won as the closed form says."""

from math import comb, sqrt

import numpy as np
import pytest

from agiledpo.hpo.tournament import TournamentSelection

DRAWS = 4000


@pytest.mark.parametrize("size", [1, 2, 3, 6, 9])
@pytest.mark.parametrize("elitism", [True, False])
def test_each_rank_wins_with_the_probability_of_the_closed_form(herd, size, elitism):
    ranking = herd([0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    n, k = 6, min(size, 6)
    selection = TournamentSelection(size, elitism, DRAWS + elitism, rand_seed=size)
    wins = np.bincount([agent.index for agent in selection.choose(ranking, [])][elitism:], minlength=n)
    assert wins.sum() == DRAWS
    for r in range(n):
        p = comb(n - r - 1, k - 1) / comb(n, k)
        # Sixty comparisons of fixed seeds; 4 standard errors leave a chance of 0.4 % that any of them fails.
        assert abs(wins[r] / DRAWS - p) <= 4 * sqrt(p * (1 - p) / DRAWS)


def test_elitism_keeps_the_best_and_without_it_the_best_may_go(herd):
    kept = lost = 0
    for seed in range(50):
        agents = herd([0.1, 0.9, 0.2, 0.3])
        elite, new = TournamentSelection(1, True, 4, rand_seed=seed).select(agents)
        kept += elite is agents[1]
        assert new[0] is elite
        agents = herd([0.1, 0.9, 0.2, 0.3])
        elite, new = TournamentSelection(1, False, 4, rand_seed=seed).select(agents)
        lost += elite.fitness[-1] != 0.9
        assert elite.fitness[-1] == max(agent.fitness[-1] for agent in new)
        assert len(new) == 4
    assert kept == 50
    # Nobody draws the best in four draws of one among four: (3/4)^4 = 0.316, standard error 0.066.
    assert lost / 50 == pytest.approx(0.316, abs=0.2)


def test_eval_loop_averages(herd):
    agents = herd([0.1, 0.2])
    agents[0].fitness = [0.9, 0.1]
    for loop, best in ((1, 1), (2, 0)):
        assert TournamentSelection(2, True, 2, loop, rand_seed=0).select(agents)[0] is agents[best]
        agents = herd([0.1, 0.2])
        agents[0].fitness = [0.9, 0.1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, True, 4), "tournament_size=0 must be a whole number of at least 1"),
        ((2.0, True, 4), "tournament_size=2.0 must be a whole number"),
        ((True, True, 4), "tournament_size=True must be a whole number"),
        ((2, 1, 4), "elitism=1 must be True or False"),
        ((2, True, 0), "population_size=0 must be a whole number"),
        ((2, True, 4, 0), "eval_loop=0 must be a whole number"),
    ],
)
def test_bad_settings_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        TournamentSelection(*arguments)
