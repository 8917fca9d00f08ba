"""Validation sets: the figures are right, the fittest agent's, and change nothing but what is kept."""

import json
import math
import warnings
from time import perf_counter

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig

from agiledpo.algorithms import DPO, SFT
from agiledpo.algorithms.core.errors import NonFiniteLossError
from agiledpo.algorithms.core.randomness import global_random_state
from agiledpo.algorithms.core.registry import HyperparameterConfig, RLParameter
from agiledpo.algorithms.role_scores import role_scores
from agiledpo.checkpoint.manifest import Manifest
from agiledpo.hpo import Lineage, Mutations, TournamentSelection
from agiledpo.hpo.records import Diverged, Evaluated, Selected, Validated
from agiledpo.llm_envs import PreferenceGym, SFTGym
from agiledpo.training import Retention, finetune_llm_preference, finetune_llm_sft
from agiledpo.training.practice import FromRows
from agiledpo.training.validation import TOTAL_TIME, validation_metrics


def swapped(pairs):
    return Dataset.from_list(
        [{"prompt": row["prompt"], "chosen": row["rejected"], "rejected": row["chosen"]} for row in pairs]
    )


@pytest.fixture
def sets(make_pairs):
    return {"helpful": make_pairs(9, seed=2), "swapped": swapped(make_pairs(7, seed=3))}


@pytest.fixture
def make_population(tiny_model):
    def make(size=3, cls=DPO, lrs=None, **arguments):
        config = HyperparameterConfig(lr=RLParameter(1e-5, 1e-2), beta=RLParameter(0.01, 1.0))
        lora = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.1, target_modules="all-linear", task_type="CAUSAL_LM")
        agents = cls.population(
            size, actor_network=tiny_model(), **{"lora_config": lora, "batch_size": 3, "lr": 1e-3, "hp_config": config,
                                                 **arguments},
        )  # fmt: skip
        for agent, lr in zip(agents, lrs or [agent.lr for agent in agents], strict=True):
            agent.lr = lr
        return agents

    return make


def evolution(size=3):
    return {
        "tournament": TournamentSelection(2, True, size, rand_seed=5),
        "mutation": Mutations(no_mutation=0.2, rl_hp=0.8, rand_seed=6),
        "evo_steps": 2,
    }


def train(agents, env, **arguments):
    return finetune_llm_preference(
        agents, env, **{"num_epochs": 2, "evaluation_interval": 2, "verbose": False, **arguments}
    )[0]


def records(population, *, validated):
    return [record for record in population.lineage if validated or not isinstance(record, Validated)]


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


# The figures --------------------------------------------------------------------------------------------------------


def test_the_figures_are_those_of_the_set_as_a_test_set(make_env, make_population, make_pairs, sets):
    env = make_env(validation_datasets=sets)
    started = perf_counter()
    population = train(make_population(), env, **evolution())
    seconds = perf_counter() - started
    elite = population.elite
    assert 0 < population.validation[TOTAL_TIME] < seconds
    assert len(population.validation) == 2 * (len(DPO.METRICS) + 1) + 1
    for name, rows in sets.items():
        alone = PreferenceGym(make_pairs(24), rows, env.tokenizer, data_batch_size_per_gpu=5)
        held_out = elite.measure(alone)
        for metric in DPO.METRICS:
            assert population.validation[f"validation-{name}_{metric}"] == held_out.metrics[metric]
        assert population.validation[f"validation-{name}_loss"] == held_out.metrics["loss"]
        accuracy = population.validation[f"validation-{name}_accuracy"]
        assert accuracy == held_out.fitness("accuracy").value == held_out.metrics["rewards/accuracies"]
        assert population.validation[f"validation-{name}_pairs"] == len(rows)
        # In numbers, from the log-probabilities: -log sigmoid(beta * margin), the default objective without the NLL.
        (batch,) = PreferenceGym(make_pairs(24), rows, env.tokenizer, data_batch_size_per_gpu=len(rows)).test_batches()
        policy, reference = (elite.score(batch, role) for role in ("actor", "reference"))
        ratios = [
            (getattr(policy, side).logps - getattr(reference, side).logps).double().sum(1).numpy()
            for side in ("chosen", "rejected")
        ]
        margins = ratios[0] - ratios[1]
        assert accuracy == (margins > 0).mean()
        assert population.validation[f"validation-{name}_preference_loss"] == pytest.approx(
            np.log1p(np.exp(-elite.beta * margins)).mean(), rel=1e-5
        )


def test_sft_reports_losses_and_accuracies_of_tokens(make_pairs, tiny_tokenizer, tiny_model, lora, sets):
    named = {"response_column": "chosen", "data_batch_size_per_gpu": 4}
    env = SFTGym(make_pairs(24), make_pairs(7, seed=1), tiny_tokenizer, **named, validation_datasets=sets)
    agent = SFT(actor_network=tiny_model(), lora_config=lora, batch_size=4, lr=1e-2, max_grad_norm=10.0)
    population, _ = finetune_llm_sft([agent], env, num_epochs=2, evaluation_interval=None, verbose=False)
    (record,) = population.lineage.of(Validated)
    assert (record.agent, record.pairs, record.generation) == (0, 48, 0)
    for name, rows in sets.items():
        held_out = agent.measure(SFTGym(make_pairs(24), rows, tiny_tokenizer, **named))
        terms = held_out.terms
        assert record.metrics[f"validation-{name}_loss"] == -held_out.fitness("loss").value
        assert record.metrics[f"validation-{name}_accuracy"] == int(terms.hits.sum()) / int(terms.tokens.sum())
        assert record.metrics[f"validation-{name}_perplexity"] == pytest.approx(
            math.exp(record.metrics[f"validation-{name}_loss"])
        )
    assert dict(population.validation) == {**record.metrics, TOTAL_TIME: population.validation[TOTAL_TIME]}


class Watched(DPO):
    """A DPO agent that notes what it is measured on."""

    noted: list[tuple[int, str]]

    def measure(self, env, split="test"):
        type(self).noted.append((self.index, split))
        return super().measure(env, split)


def test_the_fittest_alone_is_measured_and_selection_comes_after(make_env, make_population, sets):
    Watched.noted = []
    population = train(make_population(4, Watched, lrs=[1e-5, 1e-3, 1e-4, 3e-3]), make_env(validation_datasets=sets),
                       num_epochs=1, **evolution(4))  # fmt: skip
    validated = population.lineage.of(Validated)
    assert [record.pairs for record in validated] == [8, 16, 24]
    assert Watched.noted.count((0, "test")) <= 3
    assert [entry for entry in Watched.noted if entry[1] != "test"] == [
        (record.agent, f"validation-{name}") for record in validated for name in sets
    ]
    events = records(population, validated=True)
    for record in validated:
        place = events.index(record)
        judged = [event for event in events if isinstance(event, Evaluated) and event.pairs == record.pairs]
        assert record.agent == max(judged, key=lambda event: (event.fitness, event.tie_break)).agent
        assert all(events.index(event) < place for event in judged)
        assert all(events.index(event) > place for event in events
                   if isinstance(event, Selected) and event.pairs == record.pairs)  # fmt: skip
        assert TOTAL_TIME not in record.metrics
    assert validated[-1].agent == population.elite.index


def test_it_is_measured_whenever_agents_are_evaluated(make_env, make_population, sets):
    assert [
        [record.pairs for record in train(
            make_population(1), make_env(validation_datasets=sets), num_epochs=1, evaluation_interval=interval
        ).lineage.of(Validated)]
        for interval in (None, 4, 3)
    ] == [[24], [16, 24], [12, 24]]  # fmt: skip
    population = train(make_population(1), make_env())
    assert population.validation == {}
    assert population.lineage.of(Validated) == []


def test_with_a_function_as_fitness_too(make_env, make_population, sets, tmp_path):
    retention = Retention(keep_best=1, metric_name="validation-swapped_accuracy")
    population = train(
        make_population(2), make_env(validation_datasets=sets), fitness=lambda agent, env: agent.index,
        checkpoint_path=tmp_path / "run", retention=retention,
    )  # fmt: skip
    assert population.elite.index == 1
    assert {record.agent for record in population.lineage.of(Validated)} == {1}
    metrics = Manifest.read(tmp_path / "run" / "step_48").metrics
    assert metrics == {"fitness": 1.0, **population.validation}


def test_the_lines_of_progress(make_env, make_population, sets, capsys):
    population = train(make_population(1), make_env(validation_datasets=sets), verbose=True)
    printed = capsys.readouterr()
    for name in sets:
        loss, accuracy = (population.validation[f"validation-{name}_{figure}"] for figure in ("loss", "accuracy"))
        assert f"validation-{name}: loss {loss:.4f}, accuracy {accuracy:.3f}" in printed.out
        assert f"validation-{name}={loss:.4f} ({accuracy:.2f})" in printed.out


# What they do not change --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("evolves", [False, True])
def test_a_run_is_bitwise_the_same_with_and_without(make_env, make_population, sets, evolves):
    plain, watched = [
        train(make_population(3, lrs=[1e-5, 1e-3, 3e-3]), make_env(**validation), **(evolution() if evolves else {}))
        for validation in ({}, {"validation_datasets": sets})
    ]
    assert_same([agent.state_dict() for agent in watched], [agent.state_dict() for agent in plain])
    assert records(watched, validated=False) == list(plain.lineage)
    assert len(watched.lineage.of(Validated)) == 6
    assert watched.elite.index == plain.elite.index


def test_measuring_draws_from_no_generator_of_the_process(make_env, make_population, sets):
    before = global_random_state()
    train(make_population(2), make_env(validation_datasets=sets))
    assert_same(global_random_state(), before)


class KilledError(Exception):
    pass


class DiesAt(DPO):
    """A DPO agent whose process is killed while it is measured on a set, the n-th time."""

    left = -1

    def measure(self, env, split="test"):
        if split == "validation-swapped":
            DiesAt.left -= 1
            if DiesAt.left == 0:
                raise KilledError
        return super().measure(env, split)


@pytest.mark.parametrize("evaluation", [2, 4])
def test_resumed_equals_never_killed(make_env, make_population, sets, tmp_path, evaluation):
    def go(where, **arguments):
        here = {"checkpoint_path": tmp_path / where, "lineage_path": tmp_path / f"{where}.jsonl"}
        env = make_env(train=12, test=5, validation_datasets=sets)
        return train(make_population(cls=DiesAt), env, checkpoint_steps=5, **evolution(), **here, **arguments)

    DiesAt.left = -1
    whole = go("whole")
    DiesAt.left = evaluation
    with pytest.raises(KilledError):
        go("run")
    resumed = go("run", resume_from="latest")
    assert_same([agent.state_dict() for agent in resumed], [agent.state_dict() for agent in whole])
    assert (tmp_path / "run.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert Lineage.read(tmp_path / "run.jsonl").of(Validated) == whole.lineage.of(Validated)
    assert resumed.validation.keys() == whole.validation.keys()
    assert {name: value for name, value in resumed.validation.items() if name != TOTAL_TIME} == {
        name: value for name, value in whole.validation.items() if name != TOTAL_TIME
    }
    again = go("run", resume_from="latest")  # a finished run knows its figures
    assert again.validation == resumed.validation


# What is kept by them -----------------------------------------------------------------------------------------------


def test_the_best_checkpoint_by_a_validation_set_is_another_than_by_fitness(make_env, make_population, sets, tmp_path):
    def run(where, **retention):
        # What is right in the test split is wrong in the swapped set.
        train(
            make_population(1, lr=5e-3, nll_alpha=0.0), make_env(test=15, validation_datasets=sets),
            num_epochs=3, checkpoint_steps=12, checkpoint_path=tmp_path / where, retention=Retention(**retention),
            evaluation_interval=None,
        )  # fmt: skip
        return {int(path.name.removeprefix("step_")): json.loads((path / "manifest.json").read_text())["metrics"]
                for path in (tmp_path / where).glob("step_*")}  # fmt: skip

    everything = run("all", keep_last=None, keep_best=1)
    assert sorted(everything) == [12, 24, 36, 48, 60, 72]
    fittest = max(everything, key=lambda step: (everything[step]["fitness"], step))
    least = min(everything, key=lambda step: (everything[step]["validation-swapped_loss"], -step))
    assert fittest != least
    assert least != 72
    assert everything[least]["validation-swapped_loss"] < everything[fittest]["validation-swapped_loss"]
    assert all(metrics[TOTAL_TIME] > 0 for metrics in everything.values())
    by_loss = {"keep_last": 1, "keep_best": 1, "higher_is_better": False}
    assert run("loss", **by_loss, metric_name="val:validation-swapped_loss").keys() == {least, 72}
    assert run("fitness", keep_last=1, keep_best=1).keys() == {fittest, 72}


def test_the_prefix_of_nemo_rl_is_left_out():
    assert Retention(metric_name="val:validation-default_loss") == Retention(metric_name="validation-default_loss")


@pytest.mark.parametrize("fitness", [None, lambda agent, env: 1.0])
def test_a_metric_that_no_set_has_is_refused_with_those_that_there_are(
    make_env, make_population, sets, tmp_path, fitness
):
    agents = make_population(1)
    for name in ("validation-helpfull_loss", "train:loss", TOTAL_TIME):
        with pytest.raises(ValueError, match="is not measured") as caught:
            train(agents, make_env(validation_datasets=sets), checkpoint_path=tmp_path / "run", fitness=fitness,
                  retention=Retention(keep_best=1, metric_name=name))  # fmt: skip
        assert repr(name) in str(caught.value)
        for split in sets:
            assert f"validation-{split}_loss, validation-{split}_accuracy, " in str(caught.value)
        assert ("rewards/margins, rewards/accuracies" in str(caught.value).split("validation-helpful_loss")[0]) is (
            fitness is None
        )
    assert agents[0].steps == [0]


@pytest.mark.parametrize(
    ("algorithm", "names", "clash"),
    [
        (DPO, ("a", "a_mean"), "validation-a_mean_loss"),
        (DPO, ("b", "x_nll", "x"), "validation-x_nll_loss"),
        (SFT, ("a_mean_token", "a"), "validation-a_mean_token_accuracy"),
    ],
)
def test_two_sets_whose_figures_would_have_one_name_are_refused(algorithm, names, clash):
    with pytest.raises(ValueError, match=f"would both report '{clash}'. Rename one of them"):
        validation_metrics(FromRows(algorithm), names)


def test_a_clash_is_found_before_training(make_env, make_population, sets):
    agents = make_population(1)
    env = make_env(validation_datasets={"a": sets["helpful"], "a_mean": sets["helpful"]})
    with pytest.raises(ValueError, match=r"The validation sets 'a' and 'a_mean' would both report 'validation-a_mean"):
        train(agents, env)
    assert agents[0].steps == [0]


# What goes wrong ----------------------------------------------------------------------------------------------------


class Overflowing(DPO):
    """A DPO agent whose loss on a validation set is not finite if its index is the highest."""

    def measure(self, env, split="test"):
        if split == "validation-swapped" and self.index == 2:
            raise NonFiniteLossError("The loss is not finite on validation-swapped row 3")
        return super().measure(env, split)


def test_a_set_that_cannot_be_measured_has_no_figures_and_the_run_goes_on(make_env, make_population, sets, capsys):
    env = make_env(validation_datasets=sets)
    population = train(make_population(3, Overflowing), env, fitness=lambda agent, env: agent.index, verbose=True)
    assert population.lineage.of(Diverged) == []
    assert population.elite.index == 2
    records = population.lineage.of(Validated)
    assert [record.agent for record in records] == [2] * 6
    assert not any("swapped" in name for record in records for name in record.metrics)
    measured = population.elite.measure(env, "validation-helpful").metrics
    assert population.validation["validation-helpful_loss"] == measured["loss"]
    said = "could not be measured on the validation set swapped: The loss is not finite on validation-swapped row 3"
    assert capsys.readouterr().out.count(f"agent 2 {said}") == 6


def test_where_nobody_is_fit_nobody_is_measured(make_env, make_population, sets):
    population = train(make_population(2), make_env(validation_datasets=sets), fitness=lambda agent, env: math.nan)
    assert population.elite is None
    assert population.validation == {}
    assert population.lineage.of(Validated) == []


# The reference ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precomputed", [False, True])
def test_each_pair_of_a_set_is_scored_under_the_reference_once(
    make_env, make_population, sets, monkeypatch, precomputed
):
    scored = []

    def note(adapters, role, batch, *args, **kwargs):
        if role == "reference":
            scored.extend(batch.labels)
        return role_scores(adapters, role, batch, *args, **kwargs)

    monkeypatch.setattr("agiledpo.algorithms.reference.role_scores", note)
    agents, env = make_population(3), make_env(validation_datasets=sets)
    sizes = {"train": 24, "test": 7, "validation-helpful": 9, "validation-swapped": 7}
    every = sorted(f"{split} row {number}" for split, rows in sizes.items() for number in range(rows))
    if precomputed:
        agents[0].precompute_reference(env, verbose=False)
        assert sorted(scored) == every
    train(agents, env, **evolution())
    assert sorted(scored) == every


# One environment for each agent, and runs that are taken up again -----------------------------------------------------


def test_environments_with_different_validation_sets_are_refused(make_env, make_population, sets):
    given = iter((None, sets))
    with pytest.raises(ValueError, match=r"different splits, the first has .* and number 1 .*validation-helpful"):
        train(make_population(2), None, env_fn=lambda: make_env(validation_datasets=next(given)))


def test_sets_that_come_or_go_when_a_run_is_resumed_are_said(make_env, make_population, sets, tmp_path):
    path = tmp_path / "run"
    train(make_population(2), make_env(validation_datasets=sets), num_epochs=1, checkpoint_path=path)
    other = {"helpful": sets["helpful"], "other": sets["swapped"]}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(make_population(2), make_env(validation_datasets=other), checkpoint_path=path, resume_from="latest")
    said = {str(warning.message) for warning in caught if "the run that was saved" in str(warning.message)}
    assert {sentence for sentence in said if "validation" in sentence} == {
        "This run has the validation-other split, which the run that was saved had not.",
        "This run has not the validation-swapped split, which the run that was saved had.",
    }
