"""Populations that learn from what they answer themselves: GRPO from rewards, DPO from comparisons."""

import copy
import json
import math
import os
import shutil
import signal
from collections import Counter, defaultdict
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from agiledpo.algorithms import DPO, GRPO
from agiledpo.algorithms.core.registry import HyperparameterConfig, RLParameter
from agiledpo.algorithms.self_distillation import self_distillation
from agiledpo.data.rollouts.making import make_pairs
from agiledpo.generation import Completions, TransformersGenerator
from agiledpo.generation.privileged import privileged_prompts
from agiledpo.hpo import Mutations, TournamentSelection
from agiledpo.hpo.records import Born, Diverged, Evaluated, Mutated, Selected
from agiledpo.scoring import QuestionBatch
from agiledpo.training import (
    Retention,
    TrainingInterrupted,
    finetune_llm_online_preference,
    finetune_llm_preference,
    finetune_llm_reasoning,
)

FEW_TOKENS = {"group_size": 4, "max_completion_length": 3, "temperature": 1.0, "top_p": 1.0, "top_k": 0}


@pytest.fixture
def grpo(tiny_model, lora):
    def make(size=3, **arguments):
        defaults = {
            "lora_config": lora,
            "lr": 1e-2,
            "max_grad_norm": 10.0,
            "gradient_checkpointing": False,
            "group_size": 4,
            "max_completion_length": 3,
            "hp_config": HyperparameterConfig(lr=RLParameter(1e-4, 1e-1), beta=RLParameter(0.001, 1.0)),
        }
        return GRPO.population(size, actor_network=tiny_model(), **{**defaults, **arguments})

    return make


@pytest.fixture
def dpo(tiny_model, lora):
    def make(size=3, **arguments):
        defaults = {
            "lora_config": lora,
            "lr": 1e-2,
            "max_grad_norm": 10.0,
            "gradient_checkpointing": False,
            "nll_alpha": 0.0,
            "batch_size": 3,
            "reference_cache": None,
            "hp_config": HyperparameterConfig(lr=RLParameter(1e-4, 1e-1), beta=RLParameter(0.01, 1.0)),
        }
        return DPO.population(size, actor_network=tiny_model(), **{**defaults, **arguments})

    return make


def reason(agents, env=None, **arguments):
    return finetune_llm_reasoning(agents, env, **{"verbose": False, **arguments})


def prefer(agents, env=None, **arguments):
    return finetune_llm_online_preference(agents, env, **{"verbose": False, **FEW_TOKENS, **arguments})


@pytest.fixture(params=["grpo", "online dpo"])
def learning(request, grpo, dpo):
    """Makes the agents, and trains them: for what holds of both ways to learn."""
    return (grpo, reason) if request.param == "grpo" else (dpo, prefer)


def evolution(size=3):
    return {
        "tournament": TournamentSelection(2, True, size, 1, rand_seed=5),
        "mutation": Mutations(no_mutation=0.2, rl_hp=0.8, rand_seed=6),
        "evo_steps": 1,
    }


def fingerprint(population):
    """All that a population is, as plain values and tensors."""
    return copy.deepcopy([agent.state_dict() for agent in population]), [
        record.as_json() for record in population.lineage
    ]


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


def weights(agent, role="actor"):
    return [p.detach().clone() for p in agent.adapters.own_parameters(role)]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# Both ways to learn -------------------------------------------------------------------------------------------------


def test_a_population_evolves_and_does_so_again(learning, make_reasoning_env, tmp_path):
    make, train = learning
    saved = {"save_elite": True, "elite_path": tmp_path / "elite"}
    population, fitness = train(make(), make_reasoning_env(), **evolution(), **saved)
    lineage = population.lineage
    assert len(lineage.of(Selected)) == 2  # of three batches; the run's end is no selection
    assert len(lineage.of(Mutated)) >= 2
    assert any(born.parent is not None for born in lineage.of(Born))
    assert [record.pairs for record in lineage.of(Evaluated)] == [4] * 3 + [8] * 3 + [12] * 3
    assert len({json.dumps(agent.hyperparameters, default=str) for agent in population}) > 1
    assert fitness == [agent.fitness[-1] for agent in population]
    assert population.elite.fitness[-1] == max(fitness)
    elite = type(population.elite).load(tmp_path / "elite", actor_network=population.elite.base.model)
    assert same(weights(elite), weights(population.elite))
    again, _ = train(make(), make_reasoning_env(), **evolution())
    assert_same(fingerprint(again), fingerprint(population))


def test_taken_up_again_after_any_batch_a_run_ends_as_if_it_had_never_stopped(learning, make_reasoning_env, tmp_path):
    make, train = learning
    log = tmp_path / "rollouts.jsonl"

    def run(path, **arguments):
        population, _ = train(
            make(2),
            make_reasoning_env(train=6, test=4),
            num_epochs=2,
            checkpoint_steps=2,
            checkpoint_path=path,
            retention=Retention(keep_last=None),
            rollouts_path=log,
            **evolution(2),
            **arguments,
        )
        return population

    whole, written = run(tmp_path / "run"), log.read_bytes()
    assert written.count(b"\n") == 2 * 6 * 4 * 2  # epochs, prompts, completions, agents
    steps = sorted(int(path.name.removeprefix("step_")) for path in (tmp_path / "run").glob("step_*"))
    assert steps == [4, 6, 10, 12]
    for step in steps[:-1]:
        # The log is as it was when the run came to its end, and what came after the checkpoint has to go.
        where = tmp_path / f"again_{step}"
        shutil.copytree(tmp_path / "run" / f"step_{step}", where / f"step_{step}")
        assert_same(fingerprint(run(where, resume_from="latest")), fingerprint(whole))
        assert log.read_bytes() == written


def test_the_log_holds_every_rollout_and_pairs_can_be_made_of_it(learning, make_reasoning_env, low_words, tmp_path):
    make, train = learning
    log = tmp_path / "rollouts.jsonl"
    env = make_reasoning_env(train=10)
    train(make(2), env, rollouts_path=log)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    counts = Counter((line["agent"], line["iteration"], line["rows_done"]) for line in lines)
    assert counts == {(agent, batch + 1, rows): 4 * size for agent in (0, 1) for batch, (rows, size) in
                      enumerate([(4, 4), (8, 4), (10, 2)])}  # fmt: skip
    texts = [line["response"]["output"][0]["content"][0]["text"] for line in lines]
    assert [line["reward"] for line in lines] == [low_words(text, "", "") for text in texts]
    groups = defaultdict(list)
    for line, text in zip(lines, texts, strict=True):
        groups[line["row"]].append((line["reward"], text))
    assert sorted(groups) == list(range(10))
    statistics = make_pairs(log, tmp_path / "pairs.jsonl", min_gap=0.1)
    assert statistics.pairs == sum(max(group)[0] - min(group)[0] > 0.1 for group in groups.values()) > 5
    with pytest.raises(FileExistsError, match=r"rollouts_path=.*holds what another run wrote"):
        train(make(1), env, rollouts_path=log)


def test_a_signal_saves_and_stops(learning, make_reasoning_env, tmp_path):
    make, train = learning
    judged = []

    def stop(agent, env):
        judged.append(agent.index)
        if len(judged) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return agent.lr

    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with pytest.raises(TrainingInterrupted) as caught:
            train(make(2), make_reasoning_env(), fitness=stop, evaluation_interval=1, checkpoint_path=tmp_path / "run")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert caught.value.code == 128 + signal.SIGTERM
    assert "after 8 of 12 prompts" in str(caught.value)
    resumed, _ = train(
        make(2), make_reasoning_env(), fitness=lambda agent, env: agent.lr, evaluation_interval=1,
        checkpoint_path=tmp_path / "run", resume_from="latest",
    )  # fmt: skip
    whole, _ = train(make(2), make_reasoning_env(), fitness=lambda agent, env: agent.lr, evaluation_interval=1)
    assert_same(fingerprint(resumed), fingerprint(whole))


def test_each_agent_may_have_an_environment_of_its_own(learning, make_reasoning_env, tmp_path):
    make, train = learning
    envs = []

    def env_fn():
        envs.append(make_reasoning_env(seed=len(envs)))
        return envs[-1]

    asked = []

    def note(agent, env):
        asked.append(env)
        return 0.0

    population, _ = train(make(), env_fn=env_fn, fitness=note, rollouts_path=tmp_path / "log.jsonl")
    assert len(envs) == 3
    assert all(env is envs[0] for env in asked)  # one judge for all
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 12 * 4 * 3
    assert not same(weights(population[0]), weights(population[1]))


def test_what_evaluates_does_not_disturb(learning, make_reasoning_env, make_questions):
    make, train = learning
    plain, _ = train(make(2), make_reasoning_env(), evaluation_interval=None)
    validated = make_reasoning_env(validation_datasets={"hard": make_questions(5, seed=3)})
    often, _ = train(make(2), validated, evaluation_interval=1)
    for one, other in zip(plain, often, strict=True):
        assert same(weights(one), weights(other))
        assert_same(one.sampling_stream.state_dict(), other.sampling_stream.state_dict())
    figures = often.validation
    assert figures["validation-hard_loss"] == -figures["validation-hard_mean_reward"]
    assert figures["validation-hard_accuracy"] == figures["validation-hard_success_rate"]
    held_out = often.elite.held_out
    assert held_out["mean_reward"] == often.elite.fitness[-1]
    assert held_out["loss"] == -held_out["mean_reward"]


def test_an_agent_that_diverges_is_set_aside(learning, make_reasoning_env):
    make, train = learning
    agents = make(3)
    agents[1].lr = 1e38
    agents[1].weight_decay = 0.0
    population, fitness = train(agents, make_reasoning_env())
    assert [record.agent for record in population.lineage.of(Diverged)] == [1]
    assert math.isnan(fitness[1])
    assert not math.isnan(fitness[0] + fitness[2])


def test_max_steps_counts_prompts(learning, make_reasoning_env, tmp_path):
    make, train = learning
    train(make(1), make_reasoning_env(), max_steps=6, rollouts_path=tmp_path / "log.jsonl")
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 6 * 4


def test_a_run_that_is_over_when_it_is_taken_up_is_measured(learning, make_reasoning_env, make_questions, tmp_path):
    make, train = learning

    def env():
        return make_reasoning_env(final_dataset=make_questions(3, seed=2))

    run = {"checkpoint_path": tmp_path / "run", "checkpoint_steps": 4, "retention": Retention(keep_last=None)}
    train(make(2), env(), evaluation_interval=None, **run)
    shorter, expected = train(make(2), env(), max_steps=4)
    with pytest.warns(UserWarning, match="total_rows was 12"):
        population, fitness = train(
            make(2), env(), max_steps=4, checkpoint_path=tmp_path / "other", resume_from=tmp_path / "run" / "step_4"
        )
    assert fitness == expected
    assert population.elite.index == shorter.elite.index
    assert population.final == shorter.final
    assert [record.pairs for record in population.lineage.of(Evaluated)] == [4, 4]


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ({"rollouts_path": "x", "lineage_path": "run/../x"}, "lineage_path and rollouts_path are the same file"),
        ({"rollouts_path": "new", "checkpoint_path": "new"}, r"rollouts_path=.* is a file, and checkpoint_path="),
        ({"rollouts_path": "x", "save_elite": True, "elite_path": "x/elite"}, r"is a file, and elite_path="),
        ({"rollouts_path": "run/step_4", "checkpoint_path": "run"}, r"rollouts_path=.* is where a checkpoint"),
    ],
)
def test_two_things_that_are_written_to_one_place_are_refused(learning, make_reasoning_env, tmp_path, places, message):
    make, train = learning
    (tmp_path / "run").mkdir()
    arguments = {name: tmp_path / place if isinstance(place, str) else place for name, place in places.items()}
    env = make_reasoning_env(reward=None.__eq__)  # must not be asked
    with pytest.raises(ValueError, match=message):
        train(make(1), env, **arguments)
    assert [path.name for path in tmp_path.rglob("*")] == ["run"]


def test_who_goes_on_with_another_judge_is_told(learning, make_reasoning_env, low_words, tmp_path):
    make, train = learning
    train(make(1), make_reasoning_env(), max_steps=4, checkpoint_path=tmp_path / "run")
    env = make_reasoning_env(
        reward={"high": low_words}, reward_weights=[2.0], success_reward=0.5, answer_column=None
    )  # fmt: skip
    with pytest.warns(UserWarning, match="from here on") as warned:
        train(make(1), env, max_steps=4, resume_from=tmp_path / "run" / "step_4")
    assert sorted(str(warning.message).partition(" from here")[0] for warning in warned) == [
        "answer_column was answer in the run that was saved and is None",
        "reward functions was ['share_of_low_words'] in the run that was saved and is ['high']",
        "reward_weights was [1.0] in the run that was saved and is [2.0]",
        "success_reward was 1.0 in the run that was saved and is 0.5",
    ]


class Other(TransformersGenerator):
    """A generator of another name."""


def test_who_goes_on_with_another_generator_is_told(grpo, make_reasoning_env, tmp_path):
    reason(grpo(1), make_reasoning_env(), max_steps=4, checkpoint_path=tmp_path / "run")
    with pytest.warns(UserWarning, match="generator was TransformersGenerator in .* and is Other from here"):
        reason(grpo(1, generator=Other()), make_reasoning_env(), max_steps=4, resume_from=tmp_path / "run" / "step_4")


def test_a_prompt_without_room_is_found_before_training(learning, make_reasoning_env, make_questions):
    make, train = learning
    agents = make(1)
    limit = agents[0].lm.max_positions
    long = make_questions(3).add_item({"prompt": " ".join(["w5"] * limit), "answer": "w4"})
    env = make_reasoning_env(final_dataset=long)
    with pytest.raises(ValueError, match=rf"Row 3 of the final split .*max_context_length={limit - 1}"):
        train(agents, env)
    assert agents[0].optimizer_steps == 0


# GRPO ---------------------------------------------------------------------------------------------------------------


def test_rewards_raise_the_mean_reward(grpo, make_reasoning_env):
    agents = grpo(1, max_completion_length=1, group_size=8, batch_size=32)
    env = make_reasoning_env(train=64, batch=8, test=40)
    before = agents[0].measure(env).fitness("reward").value
    _, (after,) = reason(agents, env, num_epochs=2, evaluation_interval=None)
    assert before < 0.7
    assert after > 0.95


def test_a_rollout_of_ones_own_takes_the_place_of_the_agents(grpo, make_reasoning_env, tmp_path):
    seen = []

    def upside_down(agent, questions, env):
        seen.append((agent.index, len(questions), env))
        rollouts = agent.roll_out(questions, env)
        return replace(rollouts, rewards=[[-reward for reward in group] for group in rollouts.rewards])

    env = make_reasoning_env(train=64, batch=8, test=40)
    agents = grpo(1, max_completion_length=1, group_size=8, batch_size=32)
    before = agents[0].measure(env).fitness("reward").value
    log = tmp_path / "log.jsonl"
    _, (after,) = reason(agents, env, evaluation_interval=None, rollout=upside_down, rollouts_path=log)
    assert after < before - 0.2
    assert seen == [(0, 8, env)] * 8  # each batch of the environment at once
    with pytest.raises(TypeError, match=r"returned a dict; an agiledpo.scoring.RolloutBatch is needed"):
        reason(agents, env, rollout=lambda agent, questions, env: {})


def test_who_goes_on_with_another_rollout_is_told(grpo, make_reasoning_env, tmp_path):
    reason(grpo(1), make_reasoning_env(), max_steps=4, checkpoint_path=tmp_path / "run")
    with pytest.warns(UserWarning, match="rollout was the agent's own in the run that was saved and is a function"):
        reason(
            grpo(1),
            make_reasoning_env(),
            max_steps=4,
            rollout=lambda agent, questions, env: agent.roll_out(questions, env),
            resume_from=tmp_path / "run" / "step_4",
        )


# Online DPO ---------------------------------------------------------------------------------------------------------


class Recited:
    """Answers every prompt with the same completions."""

    def __init__(self, *tokens):
        self.tokens = [torch.tensor(ids) for ids in tokens]

    def generate(self, agent, prompts, *, group_size, settings, tokenizer=None):
        group = self.tokens[:group_size]
        assert len(group) == group_size
        return Completions(
            tokens=[group for _ in prompts],
            logps=[[torch.zeros(len(ids)) for ids in group] for _ in prompts],
            finished=[[False] * group_size for _ in prompts],
        )


def test_comparisons_raise_the_mean_reward(dpo, make_reasoning_env):
    env = make_reasoning_env(train=64, batch=8, test=40)
    sampled = {"eval_temperature": 1.0, "eval_group_size": 8, "group_size": 8, "max_completion_length": 2}
    untrained, (before,) = prefer(dpo(1, lr=1e-12, hp_config=None), env, max_steps=8, **sampled)
    population, (after,) = prefer(dpo(1, lr=3e-2, batch_size=4), env, num_epochs=3, evaluation_interval=None, **sampled)
    assert untrained.elite.held_out["mean_reward"] == pytest.approx(before)
    errors = [
        evaluated.error for evaluated in (untrained.lineage.of(Evaluated)[-1], population.lineage.of(Evaluated)[-1])
    ]
    assert after - before > max(0.2, 5 * math.hypot(*errors))


def test_every_round_learns_all_of_its_pairs_and_none_waits(dpo, make_reasoning_env, recorder, tiny_model, lora):
    agent = recorder(actor_network=tiny_model(), lora_config=lora, batch_size=3, reference_cache=None)
    env = make_reasoning_env(train=10, batch=4)
    order = [QuestionBatch.from_experiences(env.next_batch()).labels for _ in range(3)]
    prefer([agent], make_reasoning_env(train=10, batch=4), group_size=2, generator=Recited([60], [5]))
    assert agent.rows == order
    assert [len(rows) for rows in agent.rows] == [4, 4, 2]
    assert agent.optimizer_steps == 2 + 2 + 1  # in threes
    assert agent.steps == [10]


def test_a_round_without_pairs_changes_nothing(dpo, make_reasoning_env):
    agents = dpo(2)
    before = [weights(agent) for agent in agents]
    population, fitness = prefer(agents, make_reasoning_env(reward=lambda *_: 0.25))
    assert fitness == [0.25, 0.25]
    assert [agent.optimizer_steps for agent in population] == [0, 0]
    assert all(same(weights(agent), start) for agent, start in zip(population, before, strict=True))


def test_the_reference_is_refreshed_after_every_n_rounds_and_only_then(dpo, make_reasoning_env):
    (agent,) = dpo(1)
    actors, references = [weights(agent)], [weights(agent, "reference")]

    def note(agent, env):
        actors.append(weights(agent))
        references.append(weights(agent, "reference"))
        return 0.0

    prefer([agent], make_reasoning_env(train=20), fitness=note, evaluation_interval=1, reference_refresh_rounds=2)
    assert len(actors) == 6
    assert all(not same(one, other) for one, other in pairwise(actors))
    for iteration, expected in enumerate([references[0], references[0], actors[2], actors[2], actors[4], actors[4]]):
        assert same(references[iteration], expected)
    assert not same(references[0], actors[2])
    assert agent.reference_update_tracker == 2


@pytest.mark.parametrize(
    ("made", "asked", "message"),
    [
        ({}, {"group_size": 1}, "group_size=1"),
        ({}, {"temperature": 0.0}, "temperature=0 gives a prompt the same completion each time"),
        ({}, {"top_p": 1.5}, "top_p=1.5"),
        ({}, {"max_completion_length": 0}, "max_completion_length=0"),
        ({}, {"min_reward_gap": -1.0}, "min_reward_gap must be a finite number, at least 0"),
        ({}, {"eval_temperature": -1.0}, "eval_temperature=-1.0"),
        ({}, {"eval_group_size": 0}, "eval_group_size=0"),
        ({}, {"reference_refresh_rounds": 0}, "reference_refresh_rounds=0"),
        ({}, {"fitness": "accuracy"}, "fitness='accuracy'; use one of reward, success_rate"),
        (
            {"reference_update": "epoch"},
            {"reference_refresh_rounds": 2},
            "reference_refresh_rounds=2 and agent 0's reference_update='epoch' would both move the reference",
        ),
        (
            {"use_separate_reference_adapter": False},
            {"reference_refresh_rounds": 2},
            "Make the agent with use_separate_reference_adapter=True",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_computed(dpo, make_reasoning_env, made, asked, message):
    with pytest.raises(ValueError, match=message):
        prefer(dpo(1, **made), make_reasoning_env(), generator=Recited(), **asked)


def test_a_directory_for_the_reference_is_refused(dpo, make_reasoning_env, tmp_path):
    with pytest.raises(ValueError, match=r"would grow with every pair.*reference_cache=None"):
        prefer(dpo(1, reference_cache=tmp_path), make_reasoning_env())


def test_the_environment_has_to_ask_and_in_tokens_that_there_are(dpo, grpo, make_env, make_reasoning_env, tiny_model):
    with pytest.raises(ValueError, match=r"PreferenceGym lack prompt_input_ids, prompt_attention_mask. For pairs"):
        prefer(dpo(1), make_env())
    with pytest.raises(ValueError, match=r"GRPO learns from .*PreferenceGym lack prompt_input_ids"):
        reason(grpo(1), make_env())
    with pytest.raises(ValueError, match="DPO learns from preference pairs"):
        finetune_llm_preference(dpo(1), make_reasoning_env(), verbose=False)
    few = tiny_model(vocab_size=50)
    with pytest.raises(ValueError, match="97 tokens, but LlamaForCausalLM embeds only 50"):
        prefer([DPO(actor_network=few, lora_config=dpo(1)[0].lora_config)], make_reasoning_env())


def test_who_goes_on_with_other_sampling_is_told(dpo, make_reasoning_env, tmp_path):
    prefer(dpo(1), make_reasoning_env(), max_steps=4, checkpoint_path=tmp_path / "run")
    with pytest.warns(UserWarning, match="in the run that was saved") as caught:
        prefer(
            dpo(1),
            make_reasoning_env(),
            max_steps=4,
            resume_from=tmp_path / "run" / "step_4",
            group_size=5,
            temperature=0.5,
            reference_refresh_rounds=3,
        )
    messages = "\n".join(str(warning.message) for warning in caught)
    assert "group_size was 4 in the run that was saved and is 5 from here on" in messages
    assert "sampling's temperature was 1.0 in the run that was saved and is 0.5" in messages
    assert "reference_refresh_rounds was None in the run that was saved and is 3" in messages


def test_the_policy_teaches_itself_what_it_says_with_the_solution_before_it(grpo, make_reasoning_env):
    """Through a whole run: the environment's answers go into the teacher's prompt, and the student comes nearer."""
    env = make_reasoning_env(train=8, batch=4)
    (agent,) = grpo(1, hp_config=None, beta=0.0, top_p=1.0, top_k=0, temperature=1.0, group_size=16)
    found = []

    def noted(agent, questions, env):
        rollouts = distilled(agent, questions, env)
        found.append(distilled.last["distillation/reverse_kl"])
        assert all(group is not None for group in rollouts.advantages)
        return rollouts

    solution = privileged_prompts(lambda question, answer: f"{question} {answer} {answer} {answer}")
    distilled = self_distillation(GRPO.roll_out, solution)
    reason([agent], env, num_epochs=12, evaluation_interval=None, rollout=noted)
    assert len(found) == 24
    assert 0 < sum(found[12:]) < 0.7 * sum(found[:12])


def test_how_completions_are_sampled_reaches_the_generator(dpo, make_reasoning_env):
    heard = []

    class Listening(TransformersGenerator):
        def generate(self, agent, prompts, *, group_size, settings, tokenizer=None):
            heard.append((group_size, settings))
            return super().generate(agent, prompts, group_size=group_size, settings=settings, tokenizer=tokenizer)

    told = {"temperature": 0.7, "top_p": 0.9, "top_k": 20, "min_p": 0.01, "repetition_penalty": 1.1, "stop": ("w5 w6",)}
    prefer(
        dpo(1),
        make_reasoning_env(train=4),
        generator=Listening(),
        min_output_tokens=2,
        eval_temperature=0.3,
        eval_group_size=2,
        **told,
    )
    (group_size, sampled), (held_out_size, held_out) = heard
    assert (group_size, held_out_size) == (4, 2)
    assert vars(sampled).items() >= {**told, "min_new_tokens": 2, "max_new_tokens": 3}.items()
    assert (held_out.temperature, held_out.max_new_tokens, held_out.stop) == (0.3, 3, ("w5 w6",))
