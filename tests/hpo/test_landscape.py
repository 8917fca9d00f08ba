"""Selection finds the best hyperparameters where they are known, and does not drift where there is nothing to find."""

import math

import numpy as np
import pytest

from agiledpo.algorithms.core.registry import HyperparameterConfig, RLParameter
from agiledpo.hpo.mutation import Mutations
from agiledpo.hpo.tournament import TournamentSelection

BEST_LR, BEST_BETA = 3e-5, 0.1


def evolve(selection, agents, fitness, generations, seed):
    """Evaluate by ``fitness``, select, and mutate one hyperparameter of each agent that is offered."""
    mutations = Mutations(no_mutation=0, rl_hp=1, rand_seed=seed)
    for _ in range(generations):
        for agent in agents:
            agent.test(fitness)
        elite, agents = selection.select(agents)
        mutations.explore([agent for agent in agents if agent.index in selection.explorers])
    return elite, agents


def test_the_tournament_finds_learning_rate_and_beta_within_a_tenth(weightless):
    # Eight agents from a learning rate 30 times too low and a beta 10 times too high; steps of 0.8 and 1.2 take 18.7
    # moves up and 10.3 down on the shortest way. Twenty seeds, sixty generations.
    ranges = HyperparameterConfig(lr=RLParameter(1e-7, 1e-2), beta=RLParameter(0.001, 10.0))
    errors = []
    for seed in range(20):
        rng = np.random.default_rng(seed)

        def fitness(agent, rng=rng):
            distance = math.log(agent.lr / BEST_LR) ** 2 + math.log(agent.beta / BEST_BETA) ** 2
            return -distance + 0.002 * rng.standard_normal()

        agents = [weightless(i, lr=BEST_LR / 30, beta=BEST_BETA * 10, hp_config=ranges) for i in range(8)]
        elite, _ = evolve(TournamentSelection(3, True, 8, rand_seed=seed), agents, fitness, 60, seed)
        errors.append((abs(elite.lr / BEST_LR - 1), abs(elite.beta / BEST_BETA - 1)))
    assert np.max(errors) < 0.1


def drift(weightless, value, seeds=100, generations=40):
    """Change of the population's mean log beta in each run, with a given fitness of (beta, log-ratio margins)."""
    # 0.8 and 1.25 are each other's inverse: without selection the mean of log beta stays where it is.
    ranges = HyperparameterConfig(beta=RLParameter(1e-9, 1e9, shrink_factor=0.8, grow_factor=1.25))
    changes = []
    for seed in range(seeds):
        rng = np.random.default_rng(seed)

        def fitness(agent, rng=rng):
            # Margins of 64 held-out pairs of a model that prefers the chosen answer at 0.3 standard deviations.
            return value(agent.beta, rng.normal(0.3, 1.0, 64))

        agents = [weightless(i, beta=0.1, hp_config=ranges) for i in range(6)]
        _, agents = evolve(TournamentSelection(2, True, 6, rand_seed=seed), agents, fitness, generations, seed)
        changes.append(np.mean([math.log(agent.beta / 0.1) for agent in agents]))
    return np.array(changes)


def test_accuracy_does_not_drift_in_beta_and_the_reward_margin_does(weightless):
    def standard_error(changes):
        return changes.std(ddof=1) / math.sqrt(len(changes))

    accuracy = drift(weightless, lambda beta, margins: np.mean(beta * margins > 0))
    assert abs(accuracy.mean()) < 2 * standard_error(accuracy)
    # AgileRL's fitness: the reward margin, beta times the log-ratio margin.
    margin = drift(weightless, lambda beta, margins: np.mean(beta * margins))
    assert margin.mean() > 20 * standard_error(margin)
    assert math.exp(margin.mean()) > 50
    # The margin itself, without beta, is as fair as accuracy.
    ratio = drift(weightless, lambda beta, margins: np.mean(margins))
    assert abs(ratio.mean()) < 2 * standard_error(ratio)
    assert standard_error(accuracy) == pytest.approx(standard_error(ratio), rel=0.3)
