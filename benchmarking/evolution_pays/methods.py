"""The searches that are compared. Each learns from ``plan.budget`` pairs in all and chooses by the selection split.

All of them know the start: it is the first agent of a random search and the first trial of successive halving as well,
so that a tournament has no more to go by than the others. An agent learns from ``plan.pairs_per_agent`` pairs, the same
for all, except the one that is trained without a search: it gets the whole budget.
"""

from collections.abc import Callable
from importlib.util import find_spec

import numpy as np

from agiledpo.algorithms.core.errors import NonFiniteLossError, PopulationDivergedError
from agiledpo.hpo.mutation import Mutations
from agiledpo.hpo.selection import rank
from agiledpo.hpo.tournament import TournamentSelection
from agiledpo.training.train_llm import finetune_llm_preference
from benchmarking.evolution_pays.plan import Point, Space
from benchmarking.evolution_pays.problem import CountedDPO, Round

Method = Callable[[Round, Space], CountedDPO]


def tournament(round_: Round, space: Space) -> CountedDPO:
    """Evolution of a population that begins at the start: the first agent there, each other one mutation away."""
    config = space.hp_config()
    agents = [round_.agent(number, space.start, config) for number in range(round_.plan.agents)]
    mutation = _mutations(round_)
    if agents[1:]:
        mutation.mutation(agents[1:], pre_training_mut=True)
    return _evolve(round_, agents, mutation)


def tournament_drawn(round_: Round, space: Space) -> CountedDPO:
    """Evolution of the population that a random search would take: what differs from it is evolution alone."""
    return _evolve(round_, _drawn(round_, space, evolves=True), _mutations(round_))


def random_search(round_: Round, space: Space) -> CountedDPO:
    """The start and points drawn around it; the best in the end."""
    return _finetune(round_, _drawn(round_, space, evolves=False), round_.plan.pairs_per_agent)


def default(round_: Round, space: Space) -> CountedDPO:
    """One agent at the start, which learns from the whole budget."""
    return _finetune(round_, [round_.agent(0, space.start)], round_.plan.budget)


def successive_halving(round_: Round, space: Space) -> CountedDPO:
    """Optuna's asynchronous successive halving (Li et al. 2020, https://arxiv.org/abs/1810.05934), one trial at a time.

    A trial is an agent that learns for one generation after the other. After 1, 2, 4, ... of them it goes on if it is
    in the better half of those that came so far. TPE proposes. New trials begin until the budget is spent.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    plan = round_.plan
    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=round_.seed),
        pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2),
    )
    study.enqueue_trial({"lr": space.start.lr, "beta": space.start.beta})
    states = optuna.trial.TrialState
    best: CountedDPO | None = None
    left = plan.agents * plan.generations
    while left:
        trial = study.ask()
        point = Point(
            trial.suggest_float("lr", *space.lr, log=True), trial.suggest_float("beta", *space.beta, log=True)
        )
        agent = round_.agent(trial.number, point)
        round_.rewind()
        used, pruned = 0, False
        while used < min(plan.generations, left) and not pruned and agent.diverged is None:
            used += 1
            _learn_one_generation(agent, round_)
            if agent.diverged is None:
                trial.report(_score(agent, plan.selection), used)
                pruned = trial.should_prune()
        left -= used
        if agent.diverged is not None:
            study.tell(trial, state=states.FAIL)
        elif used < plan.generations:
            study.tell(trial, state=states.PRUNED)
        else:
            study.tell(trial, _score(agent, plan.selection))
        worse: CountedDPO | None = agent
        if agent.diverged is None and (best is None or rank(agent) > rank(best)):
            best, worse = agent, best
        if worse is not None:
            round_.release(worse)
    if best is None:
        raise PopulationDivergedError("Every trial diverged; narrow the ranges with --spread.")
    return best


METHODS: dict[str, Method] = {
    "tournament": tournament,
    "tournament-drawn": tournament_drawn,
    "random": random_search,
    "optuna": successive_halving,
    "default": default,
}
TITLES = {
    "tournament": "tournament",
    "tournament-drawn": "tournament, drawn founders",
    "random": "random search",
    "optuna": "Optuna's ASHA",
    "default": "no search, one agent",
}
EVOLUTION = ("tournament", "tournament-drawn")


def available(method: str) -> bool:
    """Whether what a method needs is installed."""
    return method != "optuna" or find_spec("optuna") is not None


def _mutations(round_: Round) -> Mutations:
    return Mutations(no_mutation=0.1, rl_hp=0.6, rand_seed=2 * round_.seed)


def _drawn(round_: Round, space: Space, *, evolves: bool) -> list[CountedDPO]:
    rng = np.random.default_rng((round_.seed, 1))
    points = [space.start, *(space.draw(rng) for _ in range(round_.plan.agents - 1))]
    config = space.hp_config() if evolves else None
    return [round_.agent(number, point, config) for number, point in enumerate(points)]


def _evolve(round_: Round, agents: list[CountedDPO], mutation: Mutations) -> CountedDPO:
    selection = TournamentSelection(
        min(2, len(agents)), elitism=True, population_size=len(agents), rand_seed=2 * round_.seed + 1
    )
    population, _ = finetune_llm_preference(
        agents,
        round_.env,
        tournament=selection,
        mutation=mutation,
        evo_steps=round_.plan.steps,
        max_steps=round_.plan.pairs_per_agent,
        evaluation_interval=None,
        verbose=False,
    )
    assert isinstance(population.elite, CountedDPO)
    return population.elite


def _finetune(round_: Round, agents: list[CountedDPO], pairs: int) -> CountedDPO:
    population, _ = finetune_llm_preference(
        agents, round_.env, max_steps=pairs, evaluation_interval=None, verbose=False
    )
    assert isinstance(population.elite, CountedDPO)
    return population.elite


def _learn_one_generation(agent: CountedDPO, round_: Round) -> None:
    """Learn and be measured on the selection split, or diverge."""
    try:
        for _ in range(round_.plan.steps):
            agent.learn(round_.env.step())
        agent.test(round_.env)
    except NonFiniteLossError as error:
        agent.diverged = str(error)


def _score(agent: CountedDPO, pairs: int) -> float:
    """Accuracy, and between equal ones the margin, as one number: the order in which selection ranks agents."""
    # Two accuracies differ by half a pair or not at all; the margin adds less than a quarter either way.
    return agent.fitness[-1] + agent.tie_break / (1 + abs(agent.tie_break)) / (4 * pairs)
