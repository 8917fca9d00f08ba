"""A population that evolves: fairly, reproducibly, from the same pairs, and without an agent more in memory."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import PeftModel

from agiledpo.algorithms import DPO
from agiledpo.algorithms.core.errors import NonFiniteLossError, PopulationDivergedError
from agiledpo.algorithms.core.registry import Choice, HyperparameterConfig, LogUniform, RLParameter
from agiledpo.algorithms.role_scores import role_scores
from agiledpo.checkpoint.packing import unpacked
from agiledpo.hpo import Lineage, Mutations, TournamentSelection, TruncationSelection
from agiledpo.hpo.records import Born, Diverged, Evaluated, Final, Mutated, Selected
from agiledpo.hpo.selection import rank
from agiledpo.training.elite import EliteKeeper
from agiledpo.training.environments import Environments
from agiledpo.training.evolution import Evolution
from agiledpo.training.observer import Observer
from agiledpo.training.population import Population
from agiledpo.training.practice import FromRows
from agiledpo.training.run import TrainingRun
from agiledpo.training.schedule import Schedule
from agiledpo.training.train_llm import finetune_llm_preference

CONFIG = HyperparameterConfig(
    lr=RLParameter(1e-6, 1e-2),
    beta=LogUniform(0.01, 1.0),
    batch_size=RLParameter(2, 8),
    loss_type=Choice("sigmoid", "hinge", "ipo"),
)


def swapped(pairs: Dataset) -> Dataset:
    return Dataset.from_list(
        [{"prompt": row["prompt"], "chosen": row["rejected"], "rejected": row["chosen"]} for row in pairs]
    )


@pytest.fixture
def make_population(tiny_model, lora):
    def make(size=4, lrs=None, cls=DPO, **arguments):
        model = tiny_model()
        defaults = {"lora_config": lora, "batch_size": 4, "lr": 1e-3, "nll_alpha": 0.0, "hp_config": CONFIG}
        agents = cls.population(size, actor_network=model, **{**defaults, **arguments})
        for agent, lr in zip(agents, lrs or [agent.lr for agent in agents], strict=True):
            agent.lr = lr
        return agents

    return make


def tournament(size=4, **arguments):
    return TournamentSelection(2, True, size, **{"rand_seed": 3, **arguments})


def mutations(**arguments):
    return Mutations(**{"no_mutation": 0.2, "rl_hp": 0.8, "rand_seed": 5, **arguments})


def weights(agent, role="actor"):
    return [p.detach().clone() for p in agent.adapters.parameters(role)]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def evolve(population, env, **arguments):
    defaults = {"tournament": tournament(len(population)), "mutation": mutations(), "evo_steps": 2, "verbose": False}
    return finetune_llm_preference(population, env, **{**defaults, **arguments})


# What evolution does ------------------------------------------------------------------------------------------------


def test_the_learning_rate_that_learns_takes_over(make_env, make_population):
    env = make_env(train=240, test=40)
    # Mutation off, so that where the rates end is selection's doing alone.
    population, fitnesses = evolve(
        make_population(lrs=[1e-6, 1e-6, 5e-3, 1e-6]), env, mutation=None, evo_steps=10, max_steps=240
    )
    lineage = population.lineage
    assert max(fitnesses) > 0.9
    assert population.elite is not None
    assert lineage.ancestry(population.elite.index)[0] == 2
    assert sum(agent.lr == 5e-3 for agent in population) >= 3
    assert fitnesses == [agent.fitness[-1] for agent in population]
    best = max(population, key=rank)
    assert population.elite is best


def test_memory_does_not_grow_with_generations(make_env, make_population):
    agents = make_population()
    model = agents[0].base.model
    parameters = sum(1 for _ in model.parameters())
    storages = {p.data_ptr() for agent in agents for p in agent.adapters.parameters("actor")}
    population, _ = evolve(agents, make_env(train=80), evo_steps=1, max_steps=80)
    assert len(population.lineage.of(Selected)) == 19
    assert len(population.lineage.of(Born)) > 10
    assert sum(1 for _ in model.parameters()) == parameters
    assert len(model.model.embed_tokens.weight) == 97
    assert {agent.base.model for agent in population} == {model}
    assert {p.data_ptr() for agent in population for p in agent.adapters.parameters("actor")} == storages


def test_every_agent_learns_from_the_same_pairs_whatever_its_batch_size(make_env, make_population, recorder):
    agents = make_population(3, cls=recorder)
    for agent, size in zip(agents, (2, 3, 8), strict=True):
        agent.batch_size = size
    population, _ = evolve(agents, make_env(train=24, batch=4), tournament=tournament(3), mutation=None)
    orders = [[row for rows in agent.rows for row in rows] for agent in agents]
    assert orders[0] == orders[1] == orders[2]
    assert len(orders[0]) == 24
    # Every generation of 8 pairs is learned from to the end before agents are compared.
    boundaries = {sum(len(rows) for rows in agent.rows[:n]) for agent in agents for n in range(len(agent.rows) + 1)}
    assert {8, 16, 24} <= boundaries
    for selected in population.lineage.of(Selected):
        assert selected.pairs % 8 == 0
    assert {agent.steps[-1] for agent in population} == {24}


def test_a_batch_size_mutation_keeps_the_work_of_a_generation(make_env, make_population):
    config = HyperparameterConfig(batch_size=RLParameter(2, 8))
    population, _ = evolve(
        make_population(hp_config=config), make_env(train=48), mutation=mutations(no_mutation=0, rl_hp=1)
    )
    sizes = {change.new for change in population.lineage.of(Mutated)}
    assert len(sizes) > 1
    assert all(isinstance(size, int) for size in sizes)
    assert {agent.steps[-1] for agent in population} == {48}


def test_the_reference_is_scored_once_for_all_agents(make_env, make_population, monkeypatch):
    scored = []

    def note(adapters, role, batch, *args, **kwargs):
        if role == "reference":
            scored.extend(batch.labels)
        return role_scores(adapters, role, batch, *args, **kwargs)

    monkeypatch.setattr("agiledpo.algorithms.reference.role_scores", note)
    evolve(make_population(4), make_env(train=24, test=7), num_epochs=2)
    assert sorted(scored) == sorted([f"train row {i}" for i in range(24)] + [f"test row {i}" for i in range(7)])


def test_truncation_mutates_only_the_copies(make_env, make_population):
    population, _ = evolve(
        make_population(4, lrs=[1e-6, 1e-5, 1e-4, 3e-3]),
        make_env(train=40, test=20),
        tournament=TruncationSelection(4, 0.25, rand_seed=1),
        mutation=mutations(no_mutation=0, rl_hp=1),
    )
    lineage = population.lineage
    births = {born.agent: born.pairs for born in lineage.of(Born) if born.parent is not None}
    assert len(births) == len(lineage.of(Selected)) == 4
    assert lineage.of(Mutated)
    for change in lineage.of(Mutated):
        assert births[change.agent] == change.pairs


def test_a_loop_of_ones_own_as_agilerls_users_write_it(make_env, make_population):
    env, agents = make_env(train=48), make_population()
    strategy, mutation = TournamentSelection(2, True, 4, rand_seed=1), Mutations(0.1, 0, 0, 0, 0, 0.6, rand_seed=1)
    for _ in range(4):
        batch = env.step()
        for agent in agents:
            agent.learn(batch)
            agent.test(env)
        elite, agents = strategy.select(agents)
        kept = elite.hyperparameters
        agents = mutation.mutation(agents)
        assert agents[0] is elite
        assert elite.hyperparameters == kept
    assert len(agents) == 4
    assert all(agent.steps == [16] for agent in agents)
    assert any(agent.mut is not None for agent in agents)


# What is measured ---------------------------------------------------------------------------------------------------


def test_the_final_split_is_measured_once_by_the_elite_and_never_selects(make_env, make_population, make_pairs):
    # Its pairs are the test split's with the labels swapped: whatever is right there is wrong here.
    env = make_env(train=160, test=30, final_dataset=swapped(make_pairs(30, seed=1)))
    population, _ = evolve(make_population(lrs=[1e-6, 1e-6, 1e-6, 5e-3]), env, mutation=None, evo_steps=10)
    accuracy = population.elite.fitness[-1]
    assert accuracy > 0.7
    assert population.final.value == pytest.approx(1 - accuracy)
    p = 1 - accuracy
    assert population.final.error == pytest.approx(math.sqrt(p * (1 - p) / 29))
    (final,) = population.lineage.of(Final)
    assert (final.agent, final.split, final.pairs) == (population.elite.index, "final", 160)
    assert final.fitness == population.final.value
    others = make_env(train=160, test=30)
    without, _ = evolve(make_population(lrs=[1e-6, 1e-6, 1e-6, 5e-3]), others, mutation=None, evo_steps=10)
    assert without.final is None
    assert list(without.lineage) == list(population.lineage)[:-1]


def test_fitness_has_its_standard_error_and_its_tie_break(make_env, make_population):
    agents = make_population(1, lrs=[3e-3], beta=0.7)
    env = make_env(train=80, test=40)
    finetune_llm_preference(agents, env, verbose=False)
    (agent,) = agents
    held_out = agent.measure(env)
    margins = held_out.margins.numpy()
    assert held_out.metrics["rewards/margins"] == pytest.approx(0.7 * margins.mean(), rel=1e-5)
    assert agent.tie_break == pytest.approx(margins.mean())
    columns = {
        "accuracy": (margins > 0) + 0.5 * (margins == 0),
        "margin": margins,
        "loss": -np.log1p(np.exp(-0.1 * margins)),
        "reward_margin": 0.7 * margins,
    }
    for name, values in columns.items():
        estimate = held_out.fitness(name)
        assert estimate.value == pytest.approx(values.mean(), rel=1e-6)
        assert estimate.error == pytest.approx(values.std(ddof=1) / math.sqrt(40), rel=1e-6)
        assert float(agent.test(env, fitness=name)) == estimate.value == agent.fitness[-1]
        assert agent.fitness_errors[-1] == estimate.error


def test_only_agilerls_fitness_grows_with_beta(make_env, make_population):
    agents = make_population(2, lrs=[3e-3, 3e-3])
    env = make_env(train=40, test=20)
    finetune_llm_preference(agents[:1], env, verbose=False)
    agents[1].inherit(agents[0])
    agents[1].beta = 10 * agents[0].beta
    for name, factor in {"accuracy": 1, "margin": 1, "loss": 1, "reward_margin": 10}.items():
        one, other = (agent.measure(env).fitness(name).value for agent in agents)
        assert other == pytest.approx(factor * one, rel=1e-5)


def test_the_elite_is_the_fittest_over_the_evaluations_that_selection_averages(make_env, make_population):
    values = {0: iter([0.0, 0.9]), 1: iter([0.8, 0.8])}
    population, fitnesses = evolve(
        make_population(2), make_env(train=16), fitness=lambda agent, _: next(values[agent.index]),
        tournament=tournament(2, eval_loop=2), mutation=None, evo_steps=100, evaluation_interval=2,
    )  # fmt: skip
    assert fitnesses == [0.9, 0.8]
    assert population.elite.index == 1


def test_a_fitness_of_ones_own(make_env, make_population):
    env = make_env(train=16)
    seen = []

    def prefer_small_lr(agent, environment):
        seen.append((agent.index, environment is env))
        return -agent.lr, 0.25

    population, fitnesses = evolve(
        make_population(lrs=[4e-4, 3e-4, 2e-4, 1e-4]), env, fitness=prefer_small_lr, mutation=None
    )
    assert all(right for _, right in seen)
    assert population.elite.lr == 1e-4 == -max(fitnesses)
    assert {record.error for record in population.lineage.of(Evaluated)} == {0.25}


def test_a_function_that_calls_test_is_recorded_once(make_env, make_population):
    population, _ = evolve(
        make_population(2),
        make_env(train=16),
        fitness=lambda agent, env: float(agent.test(env)) - 7,
        tournament=tournament(2),
        mutation=None,
    )
    for agent in population:
        assert len(agent.fitness) == len(agent.fitness_errors) == 2
        assert -7 <= max(agent.fitness) <= -6


def test_what_is_no_fitness_is_named(make_env, make_population):
    with pytest.raises(TypeError, match="returned None for agent 0; a number is needed"):
        evolve(make_population(), make_env(), fitness=lambda agent, env: None)


def test_an_error_on_the_final_split_does_not_lose_the_run(make_env, make_population, make_pairs):
    class Broken(DPO):
        def measure(self, env, split="test"):
            if split == "final":
                raise NonFiniteLossError("The loss is not finite on final row 3")
            return super().measure(env, split)

    env = make_env(train=8, final_dataset=make_pairs(5))
    population, fitnesses = evolve(make_population(cls=Broken), env)
    assert population.final is None
    assert len(fitnesses) == 4


# AgileRL's faults (FEATURES D2 to D8) -------------------------------------------------------------------------------


def test_a_fitness_of_nan_never_wins(make_env, make_population):
    def broken(agent, _):
        return math.nan if agent.index == 1 else 0.5 + agent.index / 10

    population, _ = evolve(make_population(), make_env(train=16), fitness=broken, mutation=None)
    first = population.lineage.of(Selected)[0]
    assert first.elite == 3
    assert 1 in first.replaced
    assert population.elite.index != 1


def test_evolving_before_the_first_evaluation_evaluates(make_env, make_population):
    population, _ = evolve(make_population(), make_env(train=16), evaluation_interval=None, evo_steps=1)
    kinds = [type(record).__name__ for record in population.lineage]
    assert kinds.index("Evaluated") < kinds.index("Selected")


def test_agents_of_one_config_do_not_share_its_state(make_env, make_population):
    # B mutated from A's value in AgileRL: values then leave their own agent's neighbourhood.
    config = HyperparameterConfig(lr=RLParameter(1e-6, 1.0))
    population, _ = evolve(
        make_population(hp_config=config, lrs=[1e-6, 1e-5, 1e-4, 1e-3]),
        make_env(train=40),
        mutation=mutations(no_mutation=0, rl_hp=1),
    )
    assert population.lineage.of(Mutated)
    for change in population.lineage.of(Mutated):
        assert change.new / change.old == pytest.approx(0.8) or change.new / change.old == pytest.approx(1.2)
        agent = population.lineage.agent(change.agent)
        assert change.old in [value for _, value in agent.values("lr")]


def test_the_elite_is_saved_as_it_learned_not_as_it_mutated(make_env, make_population, tmp_path, tiny_model):
    population, _ = evolve(
        make_population(),
        make_env(train=24, test=20),
        mutation=mutations(no_mutation=0, rl_hp=1, mutate_elite=True),
        save_elite=True,
        elite_path=tmp_path / "elite",
    )
    lineage, elite = population.lineage, population.elite
    saved = torch.load(tmp_path / "elite" / "attributes.pt", weights_only=True)
    assert saved["index"] == elite.index == lineage.elite
    assert saved["hyperparameters"] == elite.hyperparameters
    ids = torch.arange(1, 9)[None]
    loaded = PeftModel.from_pretrained(tiny_model(), tmp_path / "elite" / "actor").eval()
    with elite.select_adapter("actor") as active:
        assert torch.equal(loaded(ids).logits, active(ids).logits)


def test_what_each_generation_saves_is_its_elite_before_mutation(make_env, make_population, tmp_path, monkeypatch):
    saved = []
    original = DPO.save_checkpoint

    def note(agent, path, *args, **kwargs):
        saved.append((agent.index, agent.lr, agent.steps[-1]))
        original(agent, path, *args, **kwargs)

    monkeypatch.setattr(DPO, "save_checkpoint", note)
    population, _ = evolve(
        make_population(),
        make_env(train=24, test=20),
        mutation=mutations(no_mutation=0, rl_hp=1, mutate_elite=True),
        save_elite=True,
        elite_path=tmp_path / "elite",
    )
    lineage = population.lineage
    selections = lineage.of(Selected)
    assert [index for index, _, _ in saved[:-1]] == [selection.elite for selection in selections]
    changed = {(change.agent, change.pairs): change for change in lineage.of(Mutated) if change.parameter == "lr"}
    for index, lr, pairs in saved[:-1]:
        if (index, pairs) in changed:
            assert lr == changed[index, pairs].old
            assert lr != changed[index, pairs].new
    assert any((index, pairs) in changed for index, _, pairs in saved[:-1])


def test_a_periodic_checkpoint_holds_the_fittest_not_the_last(make_env, make_population, tmp_path):
    evolve(
        make_population(),
        make_env(train=24),
        mutation=None,
        fitness=lambda agent, _: -agent.index,
        evo_steps=100,
        evaluation_interval=None,
        checkpoint_steps=12,
        checkpoint_path=tmp_path / "run",
    )
    for step, fitness in ((12, [0]), (24, [0, 0])):  # a checkpoint needs to know who is the fittest
        run = torch.load(tmp_path / "run" / f"step_{step}" / "run.pt", weights_only=True)
        assert (run["elite"], run["agents"]) == (0, [0, 1, 2, 3])
        elite = tmp_path / "run" / f"step_{step}" / "agents" / "agent_0" / "attributes.pt"
        assert torch.load(elite, weights_only=True)["fitness"] == fitness


def test_an_environment_for_each_agent_gives_each_a_whole_epoch(make_env, make_population, recorder):
    made = []

    def env_fn():
        made.append(make_env(train=20, seed=len(made)))
        return made[-1]

    agents = make_population(4, cls=recorder)
    finetune_llm_preference(agents, env_fn=env_fn, num_epochs=1, verbose=False)
    assert len(made) == 4
    everything = sorted(f"train row {i}" for i in range(20))
    orders = [[row for rows in agent.rows for row in rows] for agent in agents]
    assert all(sorted(order) == everything for order in orders)
    assert len({tuple(order) for order in orders}) == 4


def test_with_evolution_too_each_place_keeps_its_environment(make_env, make_population, recorder):
    seeds = iter(range(4))
    agents = make_population(4, cls=recorder)
    population, _ = evolve(agents, None, env_fn=lambda: make_env(train=20, seed=next(seeds)), num_epochs=2)
    assert len(population.lineage.of(Selected)) == 4
    assert any(record.replaced for record in population.lineage.of(Selected))
    everything = sorted(f"train row {i}" for i in range(20))
    for agent in agents:  # a child is the object whose place it takes
        rows = [row for step in agent.rows for row in step]
        assert sorted(rows[:20]) == sorted(rows[20:]) == everything
    assert [agent is other for agent, other in zip(agents, population, strict=True)] == [True] * 4


def test_the_callers_list_is_left_alone(make_env, make_population):
    agents = make_population()
    before = list(agents)
    population, _ = evolve(agents, make_env(train=24))
    assert agents == before
    assert isinstance(population, Population)


# Divergence ---------------------------------------------------------------------------------------------------------


def poison(agent):
    with torch.no_grad():
        agent.adapters.parameters("actor")[0].fill_(math.nan)


def test_an_agent_that_diverges_is_set_aside_and_replaced(make_env, make_population):
    agents = make_population()
    poison(agents[2])
    population, fitnesses = evolve(agents, make_env(train=24))
    (diverged,) = population.lineage.of(Diverged)
    assert (diverged.agent, diverged.pairs) == (2, 4)
    assert "not finite" in diverged.reason
    assert 2 in population.lineage.of(Selected)[0].replaced
    assert len(population) == 4
    assert all(agent.diverged is None for agent in population)
    assert all(math.isfinite(value) for value in fitnesses)
    assert {agent.steps[-1] for agent in population} == {24}


def test_without_evolution_the_others_go_on(make_env, make_population):
    agents = make_population(3)
    poison(agents[1])
    population, fitnesses = finetune_llm_preference(agents, make_env(train=12), verbose=False)
    assert math.isnan(fitnesses[1])
    assert math.isfinite(fitnesses[0])
    assert agents[1].steps == [0]
    assert agents[0].steps == agents[2].steps == [12]
    assert population.elite in (agents[0], agents[2])
    with pytest.raises(ValueError, match="Agent 1 has diverged and does not learn any more: The loss is not finite"):
        finetune_llm_preference(population, make_env(train=12), verbose=False)


def test_a_single_agent_that_diverges_ends_the_run(make_env, make_population):
    (agent,) = make_population(1)
    poison(agent)
    with pytest.raises(NonFiniteLossError, match="not finite"):
        finetune_llm_preference([agent], make_env(), verbose=False)


def test_if_all_diverge_the_elite_that_was_saved_is_intact(make_env, make_population, tmp_path):
    class Fuse(DPO):
        """Diverges after 16 pairs."""

        def learn(self, experiences, training=True):
            if training and self.steps[-1] >= 16:
                poison(self)
            return super().learn(experiences, training)

    agents = make_population(cls=Fuse)
    with pytest.raises(PopulationDivergedError, match=r"agent \d+: The loss is not finite.*elite") as caught:
        evolve(agents, make_env(train=40), save_elite=True, elite_path=tmp_path / "elite")
    assert "Nothing had been saved" not in str(caught.value)
    saved = torch.load(tmp_path / "elite" / "attributes.pt", weights_only=True)
    assert saved["steps"] == [16]
    moments = [value for state in unpacked(saved["optimizer"])["state"].values() for value in state.values()]
    assert all(torch.isfinite(value).all() for value in moments)


def test_a_fitness_that_is_nowhere_a_number_leaves_the_saved_elite_alone(make_env, make_population, tmp_path):
    def fading(agent, _):
        return 0.5 if agent.steps[-1] <= 8 else math.nan

    with pytest.raises(PopulationDivergedError, match="fitness nan"):
        evolve(make_population(), make_env(train=40), fitness=fading, save_elite=True, elite_path=tmp_path / "elite")
    saved = torch.load(tmp_path / "elite" / "attributes.pt", weights_only=True)
    assert saved["steps"] == [8]


# Determinism --------------------------------------------------------------------------------------------------------


def start(make_env, make_population, path=None, *, own_envs=False):
    agents = make_population(seed=11)
    count = iter(range(100))
    environments = Environments.make(
        None if own_envs else make_env(train=20, test=9),
        (lambda: make_env(train=20, test=9, seed=next(count))) if own_envs else None,
        4,
    )
    schedule = Schedule.make(
        environments.judge, num_epochs=2, max_steps=None, evaluation_interval=3, checkpoint_steps=None, evo_steps=3
    )
    return TrainingRun(
        FromRows(DPO),
        Population(agents, Lineage(path)),
        environments,
        schedule,
        evolution=Evolution(tournament(), mutations()),
        elite=EliteKeeper(),
        observer=Observer(),
    )


@pytest.mark.parametrize("own_envs", [False, True])
def test_the_same_seed_gives_the_same_lineage_and_bitwise_the_same_elite(make_env, make_population, tmp_path, own_envs):
    populations = []
    for number in range(2):
        torch.manual_seed(number)  # the global states must not matter
        np.random.seed(number)  # noqa: NPY002
        run = start(make_env, make_population, tmp_path / f"{number}.jsonl", own_envs=own_envs)
        populations.append(run.run())
    one, other = populations
    assert (tmp_path / "0.jsonl").read_bytes() == (tmp_path / "1.jsonl").read_bytes()
    assert len(one.lineage.of(Mutated)) > 0
    assert len(one.lineage.of(Selected)) == 3
    assert same(weights(one.elite), weights(other.elite))
    lines = (tmp_path / "0.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines] == [type(r).__name__.lower() for r in one.lineage]


@pytest.mark.parametrize(("stop", "own_envs"), [(1, False), (3, False), (4, True), (7, False), (8, True)])
def test_a_run_that_is_taken_up_again_in_a_generation_ends_the_same(
    make_env, make_population, tmp_path, stop, own_envs
):
    whole = start(make_env, make_population, tmp_path / "whole.jsonl", own_envs=own_envs).run()
    broken = start(make_env, make_population, tmp_path / "broken.jsonl", own_envs=own_envs)
    # Batch sizes that leave pairs waiting when the run is put aside.
    broken._introduce()
    for _ in range(stop):
        broken.advance()
    torch.save(broken.state_dict(), tmp_path / "state.pt")
    waiting = [len(queue) for queue in broken._queues]
    broken.advance()  # what is not in the state must not count, nor what it wrote
    del broken

    taken_up = start(make_env, make_population, tmp_path / "broken.jsonl", own_envs=own_envs)
    taken_up.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert [len(queue) for queue in taken_up._queues] == waiting
    ended = taken_up.run()
    assert (tmp_path / "broken.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert ended.elite.index == whole.elite.index
    for one, other in zip(ended, whole, strict=True):
        assert one.hyperparameters == other.hyperparameters
        assert one.fitness == other.fitness
        assert one.scores == other.scores
        assert same(weights(one), weights(other))
        for mine, theirs in zip(
            one.optimizer.state_dict()["state"].values(), other.optimizer.state_dict()["state"].values(), strict=True
        ):
            assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_a_state_of_another_run_is_refused(make_env, make_population):
    run = start(make_env, make_population)
    state = run.state_dict()
    for change, message in (
        ({"agents": state["agents"][:2]}, "The state is of 2 agents; this run has 4"),
        ({"evolution": None}, "with evolution"),
        ({"environments": [*state["environments"]] * 2}, "The state is of 2 environments; this run has 1"),
    ):
        with pytest.raises(ValueError, match=message):
            start(make_env, make_population).load_state_dict({**state, **change})
    stranger = copy.deepcopy(state)
    stranger["agents"][0]["adapters"]["actor"].popitem()
    with pytest.raises(ValueError, match="other parameters"):
        start(make_env, make_population).load_state_dict(stranger)


def test_a_learning_rate_that_is_set_and_not_yet_applied_survives(make_env, make_population, tmp_path):
    def begin():
        run = start(make_env, make_population)
        for agent in run.population:
            agent.batch_size, agent.lr = 8, 2e-3  # two batches of the environment for the first step
        return run

    whole = begin().run()
    broken = begin()
    broken._introduce()
    broken.advance()
    torch.save(broken.state_dict(), tmp_path / "state.pt")
    taken_up = start(make_env, make_population)
    taken_up.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for one, other in zip(taken_up.run(), whole, strict=True):
        assert same(weights(one), weights(other))


def test_a_run_put_aside_before_its_first_batch_goes_on(make_env, make_population):
    begun = start(make_env, make_population)
    begun._introduce()
    taken_up = start(make_env, make_population)
    taken_up.load_state_dict(copy.deepcopy(begun.state_dict()))
    whole = start(make_env, make_population).run()
    assert list(taken_up.run().lineage) == list(whole.lineage)


def test_references_stay_shared_after_a_run_is_taken_up(make_env, make_population):
    begun = start(make_env, make_population)
    begun.advance()
    taken_up = start(make_env, make_population)
    taken_up.load_state_dict(copy.deepcopy(begun.state_dict()))
    assert len(taken_up.population[0].base.adapter_names) == 5


def test_agents_that_were_made_otherwise_do_not_take_a_state(make_env, make_population):
    state = start(make_env, make_population).population[0].state_dict()
    (other,) = make_population(1, hp_config=HyperparameterConfig(lr=RLParameter(1e-6, 1e-2)))
    other.load_state_dict(state)  # the ranges go along
    assert other.hp_config == start(make_env, make_population).population[0].hp_config
    (other,) = make_population(1, seed=11, reference_update="epoch")
    with pytest.raises(ValueError, match="than agent 0: reference_update='never' instead of 'epoch'"):
        other.load_state_dict(state)


# Refusals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"evo_steps": None}, "evolution needs both"),
        ({"tournament": None, "mutation": None}, "evolution needs both"),
        ({"tournament": None, "evo_steps": None}, "mutation without tournament"),
        ({"tournament": TournamentSelection(2, True, 5)}, "population_size=5, but pop holds 4"),
        ({"evo_steps": 0}, "evo_steps=0"),
        ({"fitness": "reward"}, "fitness='reward'; use one of accuracy, margin, loss, reward_margin"),
        ({"env": None}, "exactly one of env"),
        ({"env_fn": lambda: None}, "exactly one of env"),
    ],
)
def test_nonsense_is_refused_before_training(make_env, make_population, arguments, message):
    agents = make_population()
    everything = {
        "env": make_env(), "tournament": tournament(), "mutation": mutations(), "evo_steps": 2, **arguments
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        finetune_llm_preference(agents, **everything)
    assert all(agent.steps == [0] for agent in agents)


def test_paths_inside_what_is_replaced_are_refused(make_env, make_population, tmp_path):
    for arguments, name in (
        ({"checkpoint_path": tmp_path / "elite" / "run"}, "checkpoint_path"),
        ({"checkpoint_path": tmp_path / "elite"}, "checkpoint_path"),
        ({"lineage_path": tmp_path / "elite" / "lineage.jsonl"}, "lineage_path"),
    ):
        with pytest.raises(ValueError, match=f"{name}=.* lies in .*elite, which each new elite replaces as a whole"):
            evolve(make_population(), make_env(), save_elite=True, elite_path=tmp_path / "elite", **arguments)


def test_a_reference_that_moves_is_no_common_measure(make_env, make_population):
    with pytest.raises(ValueError, match="reference_update='epoch' agent 0's moves"):
        evolve(make_population(reference_update="epoch"), make_env())
    evolve(make_population(reference_update="epoch"), make_env(train=8), fitness=lambda agent, _: -agent.lr)


def test_what_was_set_outside_the_range_is_refused_before_training(make_env, make_population):
    with pytest.raises(ValueError, match=r"lr=0\.5 is outside"):
        evolve(make_population(lrs=[1e-3, 1e-3, 0.5, 1e-3]), make_env())


def test_agents_without_anything_to_mutate_are_refused(make_env, make_population):
    with pytest.raises(ValueError, match="agent 0 was made without hp_config"):
        evolve(make_population(hp_config=None), make_env())


def test_environments_of_different_sizes_are_refused(make_env, make_population):
    sizes = iter((20, 20, 19, 20))
    with pytest.raises(ValueError, match=r"\(rows, batch\) \[\(19, 4\), \(20, 4\)\]"):
        evolve(make_population(), None, env_fn=lambda: make_env(train=next(sizes)))
    env = make_env()
    with pytest.raises(ValueError, match="same environment twice"):
        evolve(make_population(), None, env_fn=lambda: env)


def test_the_lineage_of_an_earlier_run_is_not_overwritten(make_env, make_population, tmp_path):
    path = tmp_path / "lineage.jsonl"
    evolve(make_population(), make_env(train=8), lineage_path=path)
    content = path.read_bytes()
    agents = make_population()
    with pytest.raises(FileExistsError, match="earlier run"):
        evolve(agents, make_env(train=8), lineage_path=path)
    assert path.read_bytes() == content
    assert all(agent.steps == [0] for agent in agents)
    assert len(Lineage.read(path)) == len(content.splitlines())
