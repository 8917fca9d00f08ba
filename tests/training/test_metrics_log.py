"""The log of a run's figures: what is in it, and that it follows a run that is taken up again."""

import json
import math
import resource
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from agiledpo.algorithms import DPO
from agiledpo.hpo import Mutations, TournamentSelection
from agiledpo.hpo.lineage import Lineage
from agiledpo.surroundings import peak_resident_mb
from agiledpo.training.metrics_log import MetricsLog
from agiledpo.training.observer import Observer, Outline
from agiledpo.training.population import Population
from agiledpo.training.recorder import Recorder
from agiledpo.training.train_llm import finetune_llm_preference


@pytest.fixture
def make_population(tiny_model, lora):
    def make(size: int, **arguments: Any) -> list[DPO]:
        return DPO.population(size, actor_network=tiny_model(), lora_config=lora, lr=1e-3, nll_alpha=0.0, **arguments)

    return make


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def without_times(path: Path) -> list[dict[str, Any]]:
    """What two runs of one seed have in common."""
    timed = ("elapsed_seconds", "rows_per_second", "tokens_per_second", "validation_time", "peak_memory_mb")
    return [{name: value for name, value in line.items() if not name.endswith(timed)} for line in lines(path)]


def test_figures_are_what_learning_and_measuring_returned(make_env, make_population, tmp_path):
    agents = make_population(2, batch_size=2)
    learned: dict[int, list[dict[str, float]]] = {0: [], 1: []}

    class Notes(Observer):
        def learned(self, agent, metrics):
            learned[agent.index].append(metrics)

    path = tmp_path / "metrics.jsonl"
    population, fitnesses = finetune_llm_preference(
        agents, make_env(batch=4), max_steps=8, log_path=path, observers=[Notes()], verbose=False
    )
    train = [line for line in lines(path) if "train/global_step" in line]
    assert [line["step"] for line in train] == [4, 8]
    for place, line in enumerate(train):
        for agent in population:
            steps = learned[agent.index][2 * place : 2 * place + 2]
            expected = sum(step["loss"] for step in steps) / 2
            assert line[f"train/agent_{agent.index}/loss"] == pytest.approx(expected, abs=1e-12)
            assert line[f"train/agent_{agent.index}/lr"] == agent.lr
            assert line[f"train/agent_{agent.index}/beta"] == agent.beta
    evaluated = lines(path)[-1]
    assert evaluated["step"] == 8
    assert [evaluated[f"eval/agent_{agent.index}/fitness"] for agent in population] == fitnesses
    assert evaluated["eval/best_fitness"] == max(fitnesses)
    assert evaluated["eval/mean_fitness"] == pytest.approx(math.fsum(fitnesses) / 2)


def test_a_resumed_run_writes_the_same_log(make_env, make_population, tmp_path):
    def run(name: str, **options: Any) -> Path:
        path = tmp_path / name / "metrics.jsonl"
        finetune_llm_preference(
            make_population(2, batch_size=2),
            make_env(batch=4),
            evo_steps=1,
            tournament=TournamentSelection(2, True, 2, rand_seed=1),
            mutation=Mutations(no_mutation=1.0, rl_hp=0.0, rand_seed=1),
            log_path=path,
            checkpoint_path=tmp_path / name / "checkpoints",
            checkpoint_steps=4,
            verbose=False,
            **options,
        )
        return path

    whole = run("whole", max_steps=12)
    taken = run("taken", max_steps=8)
    # What came after the checkpoint that the run goes on from is written again.
    with pytest.warns(UserWarning, match="total_rows was 8"):
        run("taken", max_steps=12, resume_from=tmp_path / "taken" / "checkpoints" / "step_4")
    assert without_times(taken)[:-1] == without_times(whole)[:-1]
    assert without_times(taken)[-1].keys() == without_times(whole)[-1].keys()
    (aside,) = taken.parent.glob("metrics.jsonl.from_*")
    assert lines(aside)[-1]["step"] == 8


def test_the_log_of_another_run_is_left_alone(make_env, make_population, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("{}\n")
    with pytest.raises(FileExistsError, match=r"log_path=.* holds what another run wrote"):
        finetune_llm_preference(make_population(1), make_env(), max_steps=4, log_path=path, verbose=False)
    assert path.read_text() == "{}\n"


def test_speed_and_memory(make_env, make_population, tmp_path):
    path = tmp_path / "metrics.jsonl"
    before, began = peak_resident_mb(), time.perf_counter()
    finetune_llm_preference(make_population(1), make_env(batch=4), max_steps=8, log_path=path, verbose=False)
    seconds = time.perf_counter() - began
    train = [line for line in lines(path) if "train/global_step" in line]
    assert [before <= line["system/peak_memory_mb"] <= peak_resident_mb() for line in train] == [True, True]
    # Four rows a batch, and both batches within the time that the call took.
    assert sum(4 / line["time/rows_per_second"] for line in train) == pytest.approx(train[-1]["time/elapsed_seconds"])
    assert train[-1]["time/elapsed_seconds"] < seconds


@contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """What a full disk does to a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_costs_lines_and_nothing_else(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    log.record(4, {"train/loss": 0.5})
    # Ten bytes of the next line find room.
    with no_file_larger_than(path.stat().st_size + 10):
        with pytest.warns(UserWarning, match="figures of step 8 are not in"):
            log.record(8, {"train/loss": 0.4})
        with warnings.catch_warnings(action="error"):  # said once
            log.record(12, {"train/loss": 0.3})
        state = log.state_dict()
    log.record(16, {"train/loss": 0.2})
    assert [line["step"] for line in lines(path)] == [4, 16]
    resumed = MetricsLog(path)
    resumed.check_state(state)
    resumed.load_state_dict(state)
    resumed.record(8, {"train/loss": 0.4})
    assert [line["step"] for line in lines(path)] == [4, 8]


class Figures(Recorder):
    """What a recorder hands on."""

    def __init__(self):
        super().__init__()
        self.told = []

    def record(self, step, figures):
        self.told.append((step, dict(figures)))


def test_what_is_told_after_the_batch_is_of_that_batch_and_of_who_learned(make_population):
    agents = make_population(2)
    outline = Outline(algorithm="DPO", unit="pair", total_rows=16, shown={})
    population = Population(agents, Lineage())
    for agent, fitness in zip(agents, (math.nan, 0.5), strict=True):
        agent.fitness, agent.fitness_errors = [fitness], [0.1]
    recorder = Figures()
    recorder.begins(outline, agents)
    recorder.learned(agents[0], {"loss": 1.0})
    recorder.advanced(8)
    # Of an agent at home in another process it is told when processes hear of each other; then its place is another's.
    learned_with = agents[1].lr
    recorder.learned(agents[1], {"loss": 3.0})
    agents[1].lr = 10 * learned_with
    recorder.evaluated(population, 8)
    recorder.evolved(1, population, 8)
    recorder.learned(agents[0], {"loss": 2.0})
    recorder.advanced(16)
    recorder.learned(agents[1], {"loss": 4.0})
    recorder.state_dict()
    steps = [step for step, _ in recorder.told]
    assert steps == [8, 8, 8, 16, 16]
    first, late, measured, second, last = (figures for _, figures in recorder.told)
    assert (first["train/agent_0/loss"], "train/agent_1/loss" in first) == (1.0, False)
    assert (late["train/agent_1/loss"], late["train/agent_1/lr"]) == (3.0, learned_with)
    assert (measured["eval/best_fitness"], measured["eval/mean_fitness"]) == (0.5, 0.5)
    assert (second["train/agent_0/loss"], "train/agent_1/loss" in second) == (2.0, False)
    assert (last["train/agent_1/loss"], last["train/agent_1/lr"]) == (4.0, 10 * learned_with)
    # A switch is a number, as trackers want it.
    assert first["train/agent_0/use_weighting"] == 0
    assert not isinstance(first["train/agent_0/use_weighting"], bool)
