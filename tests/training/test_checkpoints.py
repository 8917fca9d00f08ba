"""A run that is killed, stopped or damaged ends like one that never was."""

import dataclasses
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig

from agiledpo.algorithms import DPO
from agiledpo.algorithms.core.domains import Domain, LogUniform
from agiledpo.algorithms.core.registry import HyperparameterConfig, RLParameter
from agiledpo.checkpoint.errors import CheckpointError
from agiledpo.checkpoint.manifest import Manifest
from agiledpo.hpo.mutation import Mutations
from agiledpo.hpo.tournament import TournamentSelection
from agiledpo.training.interruption import TrainingInterrupted
from agiledpo.training.retention import Retention
from agiledpo.training.train_llm import finetune_llm_preference


@pytest.fixture(autouse=True)
def signals_as_in_a_terminal():
    """Whoever starts the tests in the background may have SIGINT ignored for them."""
    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler),
        signal.SIGTERM: signal.signal(signal.SIGTERM, signal.SIG_DFL),
    }
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def make_population(tiny_model, lora):
    def make(size=3, **arguments):
        config = HyperparameterConfig(
            lr=RLParameter(1e-5, 1e-1), beta=RLParameter(0.01, 1.0), batch_size=RLParameter(2, 6, dtype=int)
        )
        return DPO.population(
            size, actor_network=tiny_model(), lora_config=lora, batch_size=3, lr=1e-3, hp_config=config, **arguments
        )

    return make


def evolution(size=3):
    return {
        "tournament": TournamentSelection(2, True, size, 1, rand_seed=5),
        "mutation": Mutations(no_mutation=0.2, rl_hp=0.8, rand_seed=6),
        "evo_steps": 2,
    }


def train(agents, env, **arguments):
    # Where a process begins, for fitnesses that draw from the process's own generators.
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    return finetune_llm_preference(agents, env, num_epochs=2, evaluation_interval=2, verbose=False, **arguments)[0]


def fingerprint(population):
    """All that a population is, as plain values and tensors."""
    return [agent.state_dict() for agent in population], [record.as_json() for record in population.lineage]


def assert_same(one, other):
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for mine, theirs in zip(one, other, strict=True):
            assert_same(mine, theirs)
    else:
        assert one == other or (one != one and other != other)


def steps(directory):
    return sorted(int(path.name.removeprefix("step_")) for path in Path(directory).glob("step_*"))


class StopAfter:
    """A fitness of one's own that raises a signal, or dies, at some evaluation."""

    def __init__(self, evaluation, act):
        self.left, self.act = evaluation, act

    def __call__(self, agent, env):
        self.left -= 1
        if self.left == 0:
            self.act()
        drawn = torch.rand(()).item() + random.random() + np.random.rand()  # noqa: NPY002
        return float(agent.measure(env).fitness("accuracy").value) + 0.01 * drawn


class KilledError(Exception):
    pass


def die():
    raise KilledError


@pytest.mark.parametrize("evolves", [False, True])
@pytest.mark.parametrize("evaluation", [5, 8, 11])
def test_resumed_equals_never_killed(make_env, make_population, tmp_path, evolves, evaluation):
    def settings():
        return {"checkpoint_steps": 5, **(evolution() if evolves else {})}

    whole = train(make_population(), make_env(), fitness=StopAfter(-1, die), **settings(),
                  checkpoint_path=tmp_path / "whole", lineage_path=tmp_path / "whole.jsonl")  # fmt: skip
    here = {"checkpoint_path": tmp_path / "run", "lineage_path": tmp_path / "run.jsonl"}
    with pytest.raises(KilledError):
        train(make_population(), make_env(), fitness=StopAfter(evaluation, die), **settings(), **here)
    resumed = train(
        make_population(), make_env(), fitness=StopAfter(-1, die), **settings(), **here, resume_from="latest"
    )
    assert_same(fingerprint(resumed), fingerprint(whole))
    assert resumed.elite.index == whole.elite.index
    assert (tmp_path / "run.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


class Halved(Domain):
    """A domain of the user's own, of which a checkpoint holds the name only."""

    def __init__(self, low):
        self.low = low

    def check(self, name, value, kind):
        """Anything goes."""

    def ends(self, kind):
        """The lowest value."""
        return (self.low,)

    def mutate(self, value, rng, kind):
        """Half of it."""
        return max(value / 2, self.low)


UNLIKE = {
    "ranks": [{"lora_config": LoraConfig(r=rank, target_modules="all-linear")} for rank in (2, 4, 2)],
    "micro-batches": [{"micro_batch_size_per_gpu": pairs} for pairs in (1, 2, None)],
    "hp_config": [{"hp_config": HyperparameterConfig(lr=RLParameter(1e-6, high))} for high in (0.1, 0.2, 0.3)],
    "own domains": [
        {"hp_config": HyperparameterConfig(**{name: Halved(1e-6)})} for name in ("lr", "beta", "nll_alpha")
    ],
    "all": [
        {
            "lora_config": LoraConfig(r=rank, lora_dropout=0.1, target_modules="all-linear"),
            "micro_batch_size_per_gpu": rank,
            "reference_cache": None if rank > 2 else "memory",
            "hp_config": HyperparameterConfig(beta=LogUniform(0.01, rank)),
        }
        for rank in (2, 4, 2)
    ],
}


@pytest.fixture
def make_unlike(tiny_model, lora):
    """Make a population of agents that are not built alike: ``make_unlike("ranks")``."""

    def make(which):
        model, plain = tiny_model(), HyperparameterConfig(lr=RLParameter(1e-6, 0.1))
        rates = (1e-5, 1e-3, 3e-2)
        return [
            DPO(**{"actor_network": model, "lora_config": lora, "hp_config": plain, "batch_size": 3, "lr": rate,
                   "index": index, "seed": index, **arguments})
            for index, (rate, arguments) in enumerate(zip(rates, UNLIKE[which], strict=True))
        ]  # fmt: skip

    return make


@pytest.mark.parametrize("which", UNLIKE)
def test_agents_that_are_not_built_alike_are_taken_up_wherever_selection_put_them(
    make_env, make_unlike, tmp_path, which
):
    settings = {**evolution(), "checkpoint_steps": 12, "retention": Retention(keep_last=None)}
    whole = train(make_unlike(which), make_env(), **settings, checkpoint_path=tmp_path / "run")
    assert any(agent.parent is not None for agent in whole)
    moved = 0
    for rows in (12, 36):
        fresh = make_unlike(which)
        base = fresh[0].base
        saved = torch.load(tmp_path / "run" / f"step_{rows}" / "run.pt", weights_only=True)["agents"]
        moved += saved != [0, 1, 2]
        resumed = train(
            fresh, make_env(), **{**settings, **evolution()}, resume_from=tmp_path / "run" / f"step_{rows}",
        )  # fmt: skip
        assert_same(fingerprint(resumed), fingerprint(whole))
        assert [repr(agent.hp_config) for agent in resumed] == [repr(agent.hp_config) for agent in whole]
        assert [agent.lora_config.r for agent in resumed] == [agent.lora_config.r for agent in whole]
        # Nothing is left of agents that are no longer needed.
        assert set(base.adapter_names) == {name for agent in resumed for name in agent.adapters.owned.values()}
    assert moved


def test_where_no_agent_is_built_as_a_saved_one_nothing_changes(make_env, make_unlike, tmp_path):
    whole = train(make_unlike("ranks"), make_env(), checkpoint_path=tmp_path / "run")
    agents = make_unlike("hp_config")
    agents[2].reference_update = "epoch"
    before = [agent.state_dict() for agent in agents]
    with pytest.raises(CheckpointError) as caught:
        train(agents, make_env(), checkpoint_path=tmp_path / "run", resume_from="latest")
    message = str(caught.value)
    assert re.search(r"agent_0/attributes\.pt: no agent of this run is built as the saved one was", message)
    assert "Closest is agent 0; the saved one was made with" in message
    assert "r=2 instead of 4" in message
    assert ".." not in message.replace("agents/..", "")
    assert_same([agent.state_dict() for agent in agents], before)
    assert len(whole) == 3


def test_a_run_that_rounds_otherwise_is_taken_up_with_a_warning(make_env, make_population, tmp_path):
    train(make_population(), make_env(), checkpoint_path=tmp_path / "run", checkpoint_steps=24)
    with pytest.warns(UserWarning, match="micro_batch_size_per_gpu=None instead of 1, .*not bit for bit") as caught:
        resumed = train(
            make_population(micro_batch_size_per_gpu=1), make_env(), resume_from=tmp_path / "run" / "step_24"
        )
    assert len([warning for warning in caught if "not bit for bit" in str(warning.message)]) == 1
    assert [agent.steps for agent in resumed] == [[48]] * 3
    with pytest.raises(CheckpointError, match="made with reference_update='never' instead of 'epoch'"):
        train(make_population(reference_update="epoch"), make_env(), resume_from=tmp_path / "run" / "step_24")


def test_a_cache_of_the_reference_elsewhere_is_no_other_run(make_env, make_population, tmp_path, recwarn):
    def population(where):
        return make_population(reference_cache=tmp_path / where, gradient_checkpointing=where == "one")

    whole = train(population("one"), make_env(), checkpoint_path=tmp_path / "run", checkpoint_steps=24)
    resumed = train(population("two"), make_env(), resume_from=tmp_path / "run" / "step_24")
    assert_same(fingerprint(resumed), fingerprint(whole))
    assert not [warning for warning in recwarn if "not bit for bit" in str(warning.message)]


def test_a_finished_run_that_is_resumed_is_the_finished_run(make_env, make_population, make_pairs, tmp_path):
    here = {"checkpoint_path": tmp_path / "run", "lineage_path": tmp_path / "run.jsonl"}
    env = make_env(final_dataset=make_pairs(9, seed=2))
    whole = train(make_population(), env, **here, **evolution())
    text = (tmp_path / "run.jsonl").read_bytes()
    resumed = train(
        make_population(), make_env(final_dataset=make_pairs(9, seed=2)), **here, **evolution(), resume_from="latest"
    )
    assert_same(fingerprint(resumed), fingerprint(whole))
    assert resumed.final == whole.final
    assert (tmp_path / "run.jsonl").read_bytes() == text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_stops(make_env, make_population, tmp_path, number, capsys):
    whole = train(make_population(), make_env(), fitness=StopAfter(-1, die))
    with pytest.raises(TrainingInterrupted) as caught:
        train(make_population(), make_env(), fitness=StopAfter(5, lambda: os.kill(os.getpid(), number)),
              checkpoint_path=tmp_path / "run")  # fmt: skip
    assert caught.value.code == 128 + number
    assert signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)
    (stopped,) = (tmp_path / "run").glob("step_*")
    assert stopped.name == "step_16"  # two evaluations of three agents in 8 pairs each
    message = capsys.readouterr().err
    assert f"Stopped by {number.name} after 16 of 48 pairs" in message
    assert f"resume_from='latest', or '{stopped}'" in message
    resumed = train(make_population(), make_env(), fitness=StopAfter(-1, die), resume_from=stopped)
    assert_same(fingerprint(resumed), fingerprint(whole))
    assert steps(tmp_path / "run") == [16, 48]


def test_without_checkpoints_ctrl_c_is_ctrl_c(make_env, make_population):
    with pytest.raises(KeyboardInterrupt):
        train(make_population(), make_env(), fitness=StopAfter(5, lambda: signal.raise_signal(signal.SIGINT)))


def test_a_second_ctrl_c_does_not_wait(make_env, make_population, tmp_path):
    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(make_population(), make_env(), fitness=StopAfter(2, twice), checkpoint_path=tmp_path / "run")


def test_in_another_thread_signals_are_left_alone(make_env, make_population, tmp_path):
    outcome = []

    def work():
        outcome.append(train(make_population(1), make_env(), checkpoint_path=tmp_path / "run"))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(outcome) == 1
    assert steps(tmp_path / "run") == [48]


@pytest.mark.parametrize("harm", ["truncate", "flip", "remove", "pickle"])
def test_latest_falls_back_to_the_newest_complete_one_and_says_so(make_env, make_population, tmp_path, harm):
    whole = train(make_population(), make_env(), checkpoint_steps=12, checkpoint_path=tmp_path / "run",
                  retention=Retention(keep_last=None))  # fmt: skip
    assert steps(tmp_path / "run") == [12, 24, 36, 48]
    victim = tmp_path / "run" / "step_48" / "agents" / "agent_1" / "actor" / "adapter_model.safetensors"
    content = bytearray(victim.read_bytes())
    if harm == "truncate":
        victim.write_bytes(content[:-9])
    elif harm == "flip":
        content[len(content) // 2] ^= 4
        victim.write_bytes(content)
    elif harm == "remove":
        victim.unlink()
    else:
        victim = victim.with_name("extra.pkl")
        victim.write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.warns(UserWarning, match=f"Going on from .*step_36, .*{victim.name}"):
        resumed = train(make_population(), make_env(), checkpoint_path=tmp_path / "run", resume_from="latest",
                        checkpoint_steps=12, retention=Retention(keep_last=None))  # fmt: skip
    assert_same(fingerprint(resumed), fingerprint(whole))
    shutil.rmtree(tmp_path / "run" / "step_48")
    with pytest.raises(CheckpointError, match=r"step_48.*manifest\.json is missing"):
        train(make_population(), make_env(), resume_from=tmp_path / "run" / "step_48")


def test_latest_refuses_where_everything_is_damaged(make_env, make_population, tmp_path):
    train(make_population(1), make_env(), checkpoint_path=tmp_path / "run")
    (tmp_path / "run" / "step_48" / "run.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"No checkpoint in .*run is complete.*run\.pt"):
        train(make_population(1), make_env(), checkpoint_path=tmp_path / "run", resume_from="latest")


def test_latest_begins_at_the_beginning_where_nothing_was_saved(make_env, make_population, tmp_path):
    lineage = tmp_path / "lineage.jsonl"
    with pytest.raises(KilledError):
        train(
            make_population(),
            make_env(),
            fitness=StopAfter(1, die),
            checkpoint_path=tmp_path / "run",
            lineage_path=lineage,
        )
    written = lineage.read_bytes()
    ended = train(
        make_population(), make_env(), checkpoint_path=tmp_path / "run", resume_from="latest", lineage_path=lineage
    )
    assert_same(fingerprint(ended), fingerprint(train(make_population(), make_env())))
    assert (tmp_path / "lineage.jsonl.1").read_bytes() == written  # of the attempt that was lost


def test_what_a_killed_process_left_is_cleared_up(make_env, make_population, tmp_path):
    train(make_population(1), make_env(), checkpoint_steps=24, checkpoint_path=tmp_path / "run")
    gone = subprocess.Popen(["true"])  # the number of a process that is no more
    gone.wait()
    host = re.sub(r"[^A-Za-z0-9_-]", "_", socket.gethostname())
    for number, kind in ((36, "draft"), (48, "aside")):
        left = tmp_path / "run" / f".step_{number}.{kind}.{host}.{gone.pid}.1.00ff"
        left.mkdir()
        if kind == "aside":  # it had stepped aside for a new one that never came
            (tmp_path / "run" / "step_48").rename(left / "checkpoint")
    train(make_population(1), make_env(), checkpoint_path=tmp_path / "run", resume_from="latest")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [".lock", "step_24", "step_48"]


def test_what_is_resumed_from_is_never_removed(make_env, make_population, tmp_path):
    train(make_population(1), make_env(), checkpoint_steps=8, checkpoint_path=tmp_path / "run",
          retention=Retention(keep_last=None))  # fmt: skip
    assert steps(tmp_path / "run") == [8, 16, 24, 32, 40, 48]
    train(make_population(1), make_env(), checkpoint_steps=8, checkpoint_path=tmp_path / "run",
          resume_from=tmp_path / "run" / "step_16", retention=Retention(keep_last=1))  # fmt: skip
    assert steps(tmp_path / "run") == [16, 48]


def test_latest_is_the_latest_that_was_written_not_the_largest_number(make_env, make_population, tmp_path):
    here = {"checkpoint_steps": 8, "checkpoint_path": tmp_path / "run"}
    train(make_population(), make_env(), **here, retention=Retention(keep_last=None))
    with pytest.raises(KilledError):
        train(make_population(), make_env(seed=42), **here, retention=Retention(keep_last=None),
              fitness=StopAfter(4, die), resume_from=tmp_path / "run" / "step_16")  # fmt: skip
    with pytest.warns(UserWarning, match="fitness was a function"):
        train(make_population(), make_env(), **here, retention=Retention(keep_last=2), resume_from="latest")
    assert steps(tmp_path / "run") == [24, 40, 48]  # 24 was written last and resumed from


def test_the_best_by_a_metric_are_kept(make_env, make_population, tmp_path):
    retention = Retention(keep_last=1, keep_best=2, metric_name="loss", higher_is_better=False)
    population = train(
        make_population(), make_env(), checkpoint_steps=8, checkpoint_path=tmp_path / "run", retention=retention
    )
    kept = {path.name: json.loads((path / "manifest.json").read_text())["metrics"]["loss"]
            for path in (tmp_path / "run").glob("step_*")}  # fmt: skip
    assert "step_48" in kept
    assert len(kept) in (2, 3)
    assert min(kept.values()) == pytest.approx(min(agent.held_out["loss"] for agent in population), rel=1)
    assert kept["step_48"] == population.elite.held_out["loss"]


def test_an_earlier_run_is_not_overwritten(make_env, make_population, tmp_path):
    train(make_population(1), make_env(), checkpoint_path=tmp_path / "run")
    agents = make_population(1)
    with pytest.raises(FileExistsError, match=r"step_48 the newest. Pass resume_from='latest'"):
        train(agents, make_env(), checkpoint_path=tmp_path / "run")
    assert agents[0].steps == [0]


def test_other_agents_and_other_data_do_not_take_a_run_up(make_env, make_population, tmp_path, tiny_model, lora):
    train(make_population(), make_env(), checkpoint_path=tmp_path / "run")
    with pytest.raises(ValueError, match="of 3 agents; this run has 2"):
        train(make_population(2), make_env(), checkpoint_path=tmp_path / "run", resume_from="latest")
    agents = make_population()
    with pytest.raises(ValueError, match="other training rows"):
        train(agents, make_env(train=20), checkpoint_path=tmp_path / "run", resume_from="latest")
    assert all(agent.steps == [0] for agent in agents)
    with pytest.raises(ValueError, match="or the other way round"):
        train(make_population(), make_env(), checkpoint_path=tmp_path / "run", resume_from="latest", **evolution())
    elsewhere = DPO.population(3, actor_network=tiny_model(seed=9), lora_config=lora, batch_size=3, lr=1e-3)
    with pytest.raises(ValueError, match="base model"):
        train(elsewhere, make_env(), checkpoint_path=tmp_path / "run", resume_from="latest")


def test_a_disk_that_fills_up_ends_nothing(make_env, make_population, tmp_path, monkeypatch):
    """A directory that cannot be written any more, in the middle of a run; benchmarking/faults.py fills a real disk."""
    import agiledpo.training.checkpoints as module

    original, calls = module.save_run, []

    def full(path, *arguments, **named):
        calls.append(path.name)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        original(path, *arguments, **named)

    monkeypatch.setattr(module, "save_run", full)
    with pytest.warns(
        UserWarning, match=r"step_32 could not be written: .*No space left.*step_16 is intact; the run goes on"
    ):
        population = train(make_population(), make_env(), checkpoint_steps=16, checkpoint_path=tmp_path / "run")
    assert calls == ["step_16", "step_32", "step_48"]
    assert steps(tmp_path / "run") == [16, 48]
    assert population[0].steps == [48]


def test_a_directory_that_cannot_be_written_is_found_before_training(make_env, make_population):
    agents = make_population(1)
    with pytest.raises(OSError, match=r"/proc/run cannot be written to .*so no checkpoint could be saved there"):
        train(agents, make_env(), checkpoint_path="/proc/run")  # for root too
    assert agents[0].steps == [0]


def test_the_reference_cache_on_disk_is_found_again(make_env, make_population, tmp_path, monkeypatch):
    import agiledpo.algorithms.reference as module

    original, scored = module.role_scores, []

    def count(adapters, role, batch, *arguments, **named):
        if role == "reference":
            scored.extend(batch.labels)
        return original(adapters, role, batch, *arguments, **named)

    monkeypatch.setattr(module, "role_scores", count)
    cached = {"reference_cache": tmp_path / "cache"}
    here = {"checkpoint_path": tmp_path / "run", "checkpoint_steps": 8}
    with pytest.raises(KilledError):
        train(make_population(**cached), make_env(), **here, fitness=StopAfter(7, die))
    first = len(scored)
    train(make_population(**cached), make_env(), **here, fitness=StopAfter(-1, die), resume_from="latest")
    assert first <= len(scored) <= 24 + 7  # every pair once, over both processes' lives


def test_each_agent_in_a_run_is_a_checkpoint_of_its_own(make_env, make_population, tmp_path, tiny_model, lora):
    population = train(make_population(), make_env(), checkpoint_path=tmp_path / "run")
    where = tmp_path / "run" / "step_48"
    fresh = DPO(actor_network=tiny_model(), lora_config=lora)
    with pytest.raises(CheckpointError, match=re.escape("agents/agent_1")):
        fresh.load_checkpoint(where)
    fresh.load_checkpoint(where / "agents" / "agent_1")
    for mine, theirs in zip(
        fresh.adapters.parameters("actor"), population[1].adapters.parameters("actor"), strict=True
    ):
        assert torch.equal(mine, theirs)


def test_equal_references_are_on_the_disk_once(make_env, make_population, tmp_path):
    train(make_population(), make_env(), checkpoint_path=tmp_path / "run")
    files = list((tmp_path / "run").rglob("reference/adapter_model.safetensors"))
    assert len(files) == 3
    assert len({file.stat().st_ino for file in files}) == 1


# Ways to lose something -----------------------------------------------------------------------------------------------


def test_numbers_of_numpy_are_saved_as_pythons(make_env, make_population, tmp_path):
    agents = make_population(2)
    for agent, lr in zip(agents, np.geomspace(1e-4, 1e-3, 2), strict=True):
        agent.lr = lr  # a float64 of NumPy's, which its own pickle would be needed for

    def fitness(agent, env):
        agent.scores.append(np.float32(1.5))
        return np.mean([0.25, agent.lr])

    here = {"checkpoint_steps": 24, "checkpoint_path": tmp_path / "run"}
    ended = train(agents, make_env(), **here, fitness=fitness)
    (tmp_path / "run" / "step_48" / "manifest.json").unlink()
    with pytest.warns(UserWarning, match="Going on from"):
        resumed = train(make_population(2), make_env(), **here, fitness=fitness, resume_from="latest")
    assert_same(fingerprint(resumed), fingerprint(ended))


def test_what_cannot_be_saved_is_found_before_training(make_env, make_population, tmp_path):
    agents = make_population(1)
    agents[0].pad_token = object()
    with pytest.raises(TypeError, match="object"):
        train(agents, make_env(), checkpoint_path=tmp_path / "run")
    assert agents[0].steps == [0]


def test_a_clock_that_goes_back_loses_nothing(make_env, make_population, tmp_path, monkeypatch):
    here = {"checkpoint_steps": 24, "checkpoint_path": tmp_path / "run", "retention": Retention(keep_last=1)}
    with pytest.raises(KilledError):
        train(make_population(1), make_env(), **here, fitness=StopAfter(4, die))
    assert steps(tmp_path / "run") == [24]
    ahead = tmp_path / "run" / "step_24"
    manifest = dataclasses.replace(Manifest.read(ahead), created="2199-01-01T00:00:00.000000+00:00")
    manifest.write(ahead)
    with pytest.warns(UserWarning, match="fitness was a function"):
        train(make_population(1), make_env(), **here, resume_from="latest")
    assert steps(tmp_path / "run") == [24, 48]  # 24 was resumed from
    assert Manifest.read(tmp_path / "run" / "step_48").created > manifest.created


def test_another_runs_directory_is_not_written_to(make_env, make_population, tmp_path):
    for name in ("a", "b"):
        train(make_population(1), make_env(), checkpoint_steps=24, checkpoint_path=tmp_path / name)
    with pytest.raises(FileExistsError, match=r"b holds checkpoints of another run than .*a/step_24"):
        train(make_population(1), make_env(), checkpoint_path=tmp_path / "b", resume_from=tmp_path / "a" / "step_24")
    train(make_population(1), make_env(), checkpoint_path=tmp_path / "c", resume_from=tmp_path / "a" / "step_24")
    assert [steps(tmp_path / name) for name in ("a", "b", "c")] == [[24, 48], [24, 48], [48]]


def test_two_processes_do_not_write_to_one_directory(make_env, make_population, tmp_path):
    script = "import filelock, sys; l = filelock.FileLock(sys.argv[1]); l.acquire(); print('held', flush=True); input()"
    (tmp_path / "run").mkdir()
    other = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "run" / ".lock")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert other.stdout.readline() == "held\n"
    agents = make_population(1)
    with pytest.raises(RuntimeError, match=r"Another process writes checkpoints to .*run"):
        train(agents, make_env(), checkpoint_path=tmp_path / "run")
    assert agents[0].steps == [0]
    other.kill()  # a process that is killed lets go of it
    other.wait()
    train(agents, make_env(), checkpoint_path=tmp_path / "run")


def test_a_metric_that_is_not_measured_is_refused(make_env, make_population, tmp_path):
    here = {"checkpoint_path": tmp_path / "run"}
    with pytest.raises(ValueError, match="metric_name='rewards/margin' is not measured; use 'fitness' or one of loss"):
        train(make_population(1), make_env(), **here, retention=Retention(keep_best=1, metric_name="rewards/margin"))
    with pytest.raises(ValueError, match="with a function as fitness nothing else is measured"):
        train(make_population(1), make_env(), **here, retention=Retention(keep_best=1, metric_name="loss"),
              fitness=StopAfter(-1, die))  # fmt: skip
    agent = make_population(1)[0]
    assert set(agent.evaluate(make_env())) == set(DPO.METRICS)


def test_a_checkpoint_claims_no_figures_but_its_own(make_env, make_population, tmp_path):
    with pytest.raises(TrainingInterrupted):
        train(make_population(1), make_env(), checkpoint_steps=8, checkpoint_path=tmp_path / "run",
              retention=Retention(keep_last=None, keep_best=1),
              env_fn=None, fitness=StopAfter(2, lambda: os.kill(os.getpid(), signal.SIGTERM)))  # fmt: skip
    measured = {step: Manifest.read(tmp_path / "run" / f"step_{step}").metrics for step in steps(tmp_path / "run")}
    assert measured[8].keys() == measured[16].keys() == {"fitness"}
    with pytest.raises(KilledError):
        train(make_population(1), make_env(), checkpoint_steps=4, checkpoint_path=tmp_path / "odd",
              fitness=StopAfter(2, die), retention=Retention(keep_last=None))  # fmt: skip
    figures = {step: Manifest.read(tmp_path / "odd" / f"step_{step}").metrics for step in steps(tmp_path / "odd")}
    assert figures == {4: {}, 8: measured[8], 12: {}}


def test_a_working_directory_that_changes(make_env, make_population, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "else").mkdir()
    train(
        make_population(1), make_env(), checkpoint_steps=8, checkpoint_path="run", save_elite=True,
        elite_path="elite", retention=Retention(keep_last=None), fitness=StopAfter(1, lambda: os.chdir("else")),
    )  # fmt: skip
    assert steps(tmp_path / "run") == [8, 16, 24, 32, 40, 48]
    assert (tmp_path / "elite" / "actor").is_dir()
    assert list((tmp_path / "else").iterdir()) == []


def test_places_that_belong_to_the_run_are_refused(make_env, make_population, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="where a checkpoint of the run goes"):
        train(make_population(1), make_env(), checkpoint_path=tmp_path / "run", save_elite=True,
              elite_path=tmp_path / "run" / "step_24")  # fmt: skip
    population = train(make_population(1), make_env(), checkpoint_path=tmp_path / "run", checkpoint_steps=24)
    with pytest.raises(FileExistsError, match="a whole run's checkpoint"):
        population[0].save_checkpoint(tmp_path / "run" / "step_24")
    with pytest.raises(CheckpointError, match=r"holds the checkpoints of a run. Pass one of them .* or 'latest'"):
        train(make_population(1), make_env(), resume_from=tmp_path / "run")
    with pytest.raises(CheckpointError, match="nowhere"):
        train(make_population(1), make_env(), resume_from=tmp_path / "nowhere" / "step_1")
    assert not (tmp_path / "nowhere" / "step_1").exists()
    monkeypatch.chdir(tmp_path / "run" / "step_24")
    resumed = train(make_population(1), make_env(), resume_from=".")
    assert steps(tmp_path / "run") == [24, 48]
    assert_same(fingerprint(resumed), fingerprint(population))


def test_settings_that_changed_are_named(make_env, make_population, tmp_path):
    with pytest.raises(KilledError):
        train(make_population(), make_env(), checkpoint_steps=8, checkpoint_path=tmp_path / "run", **evolution(),
              fitness=StopAfter(7, die))  # fmt: skip
    other = {**evolution(), "tournament": TournamentSelection(3, True, 3, 2, rand_seed=5)}
    with pytest.warns(UserWarning) as caught:  # noqa: PT030 (several)
        train(make_population(), make_env(test=9, batch=6), checkpoint_steps=12, checkpoint_path=tmp_path / "run",
              **other, fitness=StopAfter(-1, die), resume_from="latest")  # fmt: skip
    said = [str(warning.message) for warning in caught if "in the run that was saved" in str(warning.message)]
    changed = {message.split(" was ")[0] for message in said}
    assert changed == {
        "checkpoint_steps", "data_batch_size_per_gpu", "rows of the test split",
        "selection's tournament_size", "selection's eval_loop",
    }  # fmt: skip


def test_a_longer_run_loses_no_rows_and_moves_the_reference(make_env, tiny_model, lora, tmp_path, recorder):
    def agent():
        return recorder(actor_network=tiny_model(), lora_config=lora, batch_size=4, lr=1e-3, reference_update="epoch")

    here = {"verbose": False, "checkpoint_path": tmp_path / "run"}
    first = agent()
    finetune_llm_preference([first], make_env(), max_steps=6, **here)
    longer = agent()
    with pytest.warns(UserWarning, match="total_rows was 6 .* is 24 from here on"):
        finetune_llm_preference([longer], make_env(), max_steps=24, **here, resume_from="latest")
    assert sorted(row for rows in (*first.rows, *longer.rows) for row in rows) == sorted(
        f"train row {number}" for number in range(24)
    )
    assert longer.reference_update_tracker == 0
    again = agent()
    with pytest.warns(UserWarning, match="is 28 from here on"):
        finetune_llm_preference([again], make_env(), max_steps=28, **here, resume_from="latest")
    assert again.reference_update_tracker == 1  # an epoch was complete, and the run goes on


def test_a_signal_that_is_ignored_stays_ignored(make_env, make_population, tmp_path):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as under nohup
    try:
        train(make_population(1), make_env(), checkpoint_path=tmp_path / "run",
              fitness=StopAfter(2, lambda: os.kill(os.getpid(), signal.SIGINT)))  # fmt: skip
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert steps(tmp_path / "run") == [48]
