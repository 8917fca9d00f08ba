"""Held-out rewards: their means and standard errors, and that measuring them disturbs nothing."""

import math

import numpy as np
import pytest
import torch

from agiledpo.algorithms import DPO
from agiledpo.algorithms.reward_fitness import FITNESS, METRICS, HeldOutRewards, measure_rewards
from agiledpo.generation import SamplingSettings

PROMPTS = [3, 1, 6, 2, 4]


@pytest.fixture
def judge(make_judge):
    """Even tokens are worth something; a row has its own level."""
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(3, 97, (n,), generator=generator) for n in PROMPTS]
    env = make_judge(prompts, lambda row, tokens: 0.1 * row + float((tokens % 2 == 0).double().mean()))
    env.success_reward = 0.75
    return env


def by_hand():
    groups = [[1.0, 0.0], [0.5, 0.5], [1.0, 0.75]]
    return groups, HeldOutRewards(
        rewards=[torch.tensor(group, dtype=torch.float64) for group in groups],
        lengths=[torch.tensor(group, dtype=torch.float64) for group in ([3, 5], [1, 1], [2, 6])],
        finished=[torch.tensor(group, dtype=torch.float64) for group in ([1, 0], [1, 1], [0, 0])],
        success_reward=0.75,
    )


def test_metrics_by_hand():
    _, held_out = by_hand()
    assert len(held_out) == 3
    assert held_out.metrics == pytest.approx(
        {
            "loss": -3.75 / 6,
            "mean_reward": 3.75 / 6,
            "success_rate": 0.5,
            "completion_length": 3.0,
            "finished_rate": 0.5,
        }
    )
    assert set(held_out.metrics) == set(METRICS)


def test_standard_errors_are_over_prompts():
    """Two completions of a prompt are no two observations: 3 prompts, not 6 completions."""
    groups, held_out = by_hand()
    means = np.array([np.mean(group) for group in groups])
    successes = np.array([np.mean(np.array(group) >= 0.75) for group in groups])
    for name, values in (("reward", means), ("success_rate", successes)):
        estimate = held_out.fitness(name)
        assert estimate.value == pytest.approx(values.mean())
        assert estimate.error == pytest.approx(values.std(ddof=1) / math.sqrt(3))
    assert FITNESS == ("reward", "success_rate")
    assert held_out.tie_break == pytest.approx(means.mean())
    with pytest.raises(KeyError):
        held_out.fitness("margin")


def test_answers_are_greedy_and_judged_row_by_row(make_grpo, judge):
    agent = make_grpo(max_completion_length=4)
    held_out = agent.measure(judge)
    rewards = []
    for row, prompt in enumerate(judge.prompts):
        ids = prompt
        with agent.select_adapter("actor") as model, torch.no_grad():
            while len(ids) < len(prompt) + 4 and (len(ids) == len(prompt) or int(ids[-1]) != 2):
                ids = torch.cat([ids, model(input_ids=ids[None]).logits[0, -1].argmax()[None]])
        rewards.append(judge.reward(row, ids[len(prompt) :]))
    assert [float(group) for group in held_out.rewards] == pytest.approx(rewards)
    assert len(held_out) == 5
    assert held_out.success_reward == 0.75
    fitness = agent.test(judge)
    assert float(fitness) == agent.fitness[-1] == pytest.approx(np.mean(rewards))
    assert agent.fitness_errors[-1] == pytest.approx(np.std(rewards, ddof=1) / math.sqrt(5))
    assert agent.held_out == held_out.metrics == agent.evaluate(judge)
    assert float(agent.test(judge, fitness="success_rate")) == np.mean(np.array(rewards) >= 0.75)
    with pytest.raises(ValueError, match="fitness='margin'; use one of reward, success_rate"):
        agent.test(judge, fitness="margin")


def test_drawn_answers_are_the_same_for_all_agents_of_one_policy(make_grpo, judge):
    """Whatever they have drawn before, and whatever their seeds are."""
    agents = [make_grpo(max_completion_length=4, eval_temperature=0.9, seed=seed) for seed in (0, 1)]
    agents[1].roll_out(judge.experiences([0]), judge)
    streams = [agent.sampling_stream.state_dict()["states"][0] for agent in agents]
    measured = [agent.measure(judge) for agent in agents for _ in range(2)]
    for other in measured[1:]:
        assert all(map(torch.equal, other.rewards, measured[0].rewards))
    for agent, stream in zip(agents, streams, strict=True):
        assert torch.equal(agent.sampling_stream.state_dict()["states"][0], stream)
    state = torch.get_rng_state()
    agents[0].measure(judge)
    assert torch.equal(torch.get_rng_state(), state)
    assert not all(map(torch.equal, measured[0].rewards, make_grpo(max_completion_length=4).measure(judge).rewards))


def test_the_stream_comes_back_after_an_error(make_grpo, judge):
    agent = make_grpo(max_completion_length=4)
    own = agent.sampling_stream
    judge.reward = lambda row, tokens: 1 / 0
    with pytest.raises(ZeroDivisionError):
        agent.measure(judge)
    assert agent.sampling_stream is own


def test_any_agent_can_be_measured(tiny_model, lora, judge, sampler):
    """Online DPO, too, is judged by its answers; here with three of them for each prompt."""
    agent = DPO(actor_network=tiny_model(), lora_config=lora)
    settings = SamplingSettings(max_new_tokens=3, temperature=1.0)
    held_out = measure_rewards(agent, judge, "final", settings=settings, generator=sampler, group_size=3)
    assert [len(group) for group in held_out.rewards] == [3] * 5
    assert held_out.metrics["completion_length"] <= 3
