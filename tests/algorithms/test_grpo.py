"""GRPO: what a step does, what moves nothing, and how agents sample, are copied and evolve."""

import inspect
import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from torch.optim import AdamW

from agiledpo.algorithms import DPO, GRPO
from agiledpo.algorithms.core.errors import NonFiniteLossError
from agiledpo.algorithms.core.registry import Choice, HyperparameterConfig, RLParameter
from agiledpo.data.trajectories import Step, Trajectory, TrajectoryGroup
from agiledpo.llm_envs import ReasoningGym
from agiledpo.losses import group_advantages
from agiledpo.scoring import QuestionBatch, RolloutBatch

TOKENS = 40  # of the 14 completions of make_rollouts()


def weights(agent, role="actor"):
    return torch.cat([p.detach().flatten() for p in agent.adapters.parameters(role)])


def passes(model):
    """Tokens of each forward pass through the model, as they come."""
    tokens = []
    model.model.embed_tokens.register_forward_hook(lambda module, inputs, output: tokens.append(inputs[0].numel()))
    return tokens


def plain_logps(model, prompt, completion, temperature):
    logits = model(input_ids=torch.cat([prompt, completion])[None]).logits[0, len(prompt) - 1 : -1]
    return (logits / temperature).log_softmax(-1).gather(1, completion[:, None])[:, 0]


def plain_losses(agent, rollouts, *, temperature, beta):
    """Loss of each completion at ratio 1, with one plain forward pass each; and its k3 and log-probability sums."""
    losses, divergences, logps = [], [], []
    advantages = group_advantages(rollouts.rewards)
    for prompt, group, pulls in zip(rollouts.prompts, rollouts.completions, advantages, strict=True):
        for completion, pull in zip(group, pulls, strict=True):
            with agent.select_adapter("reference") as model, torch.no_grad():
                reference = plain_logps(model, prompt, completion, temperature)
            with agent.select_adapter("actor") as model:
                policy = plain_logps(model, prompt, completion, temperature)
            quotient = reference - policy
            divergence = quotient.exp() - quotient - 1
            losses.append((-(policy - policy.detach()).exp() * pull + beta * divergence).mean())
            divergences.append(divergence.detach().sum())
            logps.append(policy.detach().sum())
    return torch.stack(losses), torch.stack(divergences), torch.stack(logps)


# A step ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("separate", [True, False])
def test_one_step_is_adamw_on_the_papers_loss(make_grpo, make_rollouts, separate):
    settings = {
        "max_grad_norm": 0.05, "weight_decay": 0.1, "temperature": 0.7, "use_separate_reference_adapter": separate,
    }  # fmt: skip
    agent, twin, rollouts = make_grpo(**settings), make_grpo(**settings), make_rollouts()
    losses, divergences, logps = plain_losses(twin, rollouts, temperature=0.7, beta=0.2)
    parameters = twin.adapters.parameters("actor")
    optimizer = AdamW(parameters, lr=1e-3, weight_decay=0.1)
    losses.mean().backward()
    losses = losses.detach()
    norm = torch.nn.utils.clip_grad_norm_(parameters, 0.05)
    optimizer.step()

    before = weights(agent)
    metrics = agent.learn(rollouts)
    assert (weights(agent) - before).abs().median() > 5e-4
    torch.testing.assert_close(weights(agent), weights(twin), rtol=1e-5, atol=1e-5)
    assert metrics["grad_norm"] == pytest.approx(float(norm), rel=1e-4)
    assert metrics["grad_norm"] > 0.05
    rewards = [np.array(group) for group in rollouts.rewards]
    expected = {
        "loss": float(losses.mean()),
        "mean_loss": float(losses.mean()),
        "kl": float(divergences.sum()) / TOKENS,
        "mean_token_logp": float(logps.sum()) / TOKENS,
        "mean_reward": np.concatenate(rewards).mean(),
        "reward_std": np.mean([group.std(ddof=1) for group in rewards]),
        "zero_advantage_groups": 0.0,
        "completion_length": TOKENS / 14,
        "finished_rate": 1.0,
        "clip_ratio/low": 0.0,
        "clip_ratio/high": 0.0,
        "lr": 1e-3,
        "beta": 0.2,
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert metrics.keys() - expected.keys() == {"grad_norm", "tokens_per_second"}
    assert agent.steps == [4]
    assert agent.optimizer_steps == 1
    assert agent.scores == [metrics["mean_reward"]]
    assert all(p.grad is None for p in agent.adapters.parameters("actor"))


def test_measuring_changes_nothing_and_finds_what_training_starts_from(make_grpo, make_rollouts):
    agent, rollouts = make_grpo(), make_rollouts()
    before = weights(agent)
    measured = agent.learn(rollouts, training=False)
    assert measured == agent.learn(rollouts, training=False)
    assert torch.equal(weights(agent), before)
    assert (agent.steps, agent.scores, agent.optimizer_steps) == ([0], [], 0)
    trained = agent.learn(rollouts)
    assert trained.keys() - measured.keys() == {"grad_norm", "lr", "beta", "tokens_per_second"}
    for name, value in measured.items():
        assert trained[name] == pytest.approx(value, rel=1e-6), name


@pytest.mark.parametrize("normalization", ["sequence", "token", "constant"])
@pytest.mark.parametrize("architecture", ["llama", "mistral"])
def test_micro_batches_change_nothing(make_grpo, make_rollouts, architecture, normalization):
    """Not even those that cut groups; over two passes of two steps, with ratios that leave their bounds."""
    rollouts, results = make_rollouts(), []
    for micro in (None, 1, 3, 7):
        agent = make_grpo(
            architecture=architecture, loss_normalization=normalization, micro_batch_size_per_gpu=micro, batch_size=6,
            update_epochs=2, lr=1e-2,
        )  # fmt: skip
        results.append((agent.learn(rollouts), weights(agent)))
        assert agent.optimizer_steps == 4
    whole, moved = results[0]
    assert whole["clip_ratio/low"] > 0
    assert whole["clip_ratio/high"] > 0
    for metrics, ended in results[1:]:
        for name in whole.keys() - {"tokens_per_second"}:
            assert metrics[name] == pytest.approx(whole[name], rel=1e-3, abs=1e-5), name
        torch.testing.assert_close(ended, moved, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize(
    ("batch_size", "steps"), [(1, 4), (3, 3), (4, 3), (5, 2), (7, 2), (8, 2), (9, 2), (10, 1), (14, 1), (99, 1)]
)
def test_steps_are_made_of_whole_groups(make_grpo, make_rollouts, batch_size, steps):
    """Groups of 4, 3, 2 and 5: the first ones that together reach batch_size, then the next ones."""
    agent, rollouts = make_grpo(batch_size=batch_size), make_rollouts()
    agent.learn(rollouts)
    assert agent.optimizer_steps == steps
    spans = list(rollouts.group_spans(batch_size))
    assert len(spans) == steps
    counts = [sum(len(group) for group in rollouts.completions[start:stop]) for start, stop in spans]
    assert all(count >= batch_size for count in counts[:-1])
    assert all(sum(len(g) for g in rollouts.completions[start : stop - 1]) < batch_size for start, stop in spans)


def test_two_steps_are_steps_on_their_own_groups_with_ratios_to_the_start(make_grpo, make_rollouts):
    """With beta=0 and nothing clipped the second step would be another one if its ratio were 1."""
    rollouts = make_rollouts()
    one, two = (make_grpo(batch_size=7, beta=0.0, clip_coef=(0.0, 9.0)) for _ in range(2))
    metrics = one.learn(rollouts)
    first, second = two.learn(rollouts.slice(0, 2)), two.learn(rollouts.slice(2, 4))
    assert one.optimizer_steps == two.optimizer_steps == 2
    assert metrics["grad_norm"] != pytest.approx((first["grad_norm"] + second["grad_norm"]) / 2, rel=1e-4)
    assert abs(metrics["loss"]) > 1e-4  # the mean advantage of a group is 0
    assert first["loss"] == pytest.approx(0.0, abs=1e-6)


def test_the_policy_left_behind_is_scored_only_for_several_steps(make_grpo, make_rollouts):
    for arguments, count in (
        ({"beta": 0.0}, 1),  # the policy
        ({}, 2),  # and the reference
        ({"update_epochs": 3}, 1 + 1 + 3),  # and the one that is left behind
        ({"update_epochs": 3, "beta": 0.0}, 1 + 3),
        ({"batch_size": 7, "beta": 0.0}, 2 + 2),
        ({"generator": None, "vllm_importance_sampling_correction": True, "beta": 0.0}, 1),
        ({"vllm_importance_sampling_correction": True, "beta": 0.0}, 1 + 1),  # what it is corrected to
    ):
        rollouts = make_rollouts()
        sampled = [[torch.full((len(ids),), -4.0) for ids in group] for group in rollouts.completions]
        agent = make_grpo(gradient_checkpointing=False, **arguments)
        tokens = passes(agent.base.model)
        agent.learn(replace(rollouts, sampling_logps=sampled))
        assert len(tokens) == count, arguments


def test_a_group_goes_through_the_model_with_one_prompt(make_grpo, make_rollouts):
    prompts = 4 + 1 + 7 + 3
    for arguments, expected in (
        ({"batch_size": 14}, prompts + TOKENS),
        ({"batch_size": 14, "prefix_sharing": False}, 4 * 4 + 3 * 1 + 2 * 7 + 5 * 3 + TOKENS),
    ):
        agent = make_grpo(gradient_checkpointing=False, beta=0.0, **arguments)
        tokens = passes(agent.base.model)
        agent.learn(make_rollouts())
        assert tokens == [expected]


def test_with_one_step_the_ratio_is_1_whatever_dropout_does(make_grpo, make_rollouts):
    dropping = LoraConfig(r=4, lora_dropout=0.5, target_modules="all-linear", task_type="CAUSAL_LM")
    rollouts = make_rollouts()
    agent, other = (make_grpo(lora_config=dropping, beta=0.0, clip_coef=0.0) for _ in range(2))
    metrics = agent.learn(rollouts)
    assert metrics["loss"] == pytest.approx(0.0, abs=1e-6)
    assert metrics["clip_ratio/low"] == metrics["clip_ratio/high"] == 0.0
    torch.manual_seed(99)
    other.learn(rollouts)
    assert torch.equal(weights(agent), weights(other))  # dropout has its own stream
    several = make_grpo(lora_config=dropping, beta=0.0, clip_coef=0.0, batch_size=7)
    assert several.learn(rollouts)["clip_ratio/low"] > 0.1


def test_it_learns(make_grpo, make_rollouts):
    """The log-probability of what was better rises, that of what was worse falls."""
    agent, rollouts = make_grpo(beta=0.0, lr=1e-2, update_epochs=2), make_rollouts()
    advantages = torch.cat(group_advantages(rollouts.rewards))

    def logps():
        with agent.select_adapter("actor") as model, torch.no_grad():
            return torch.stack(
                [plain_logps(model, rollouts.prompts[place], ids, 0.9).mean() for place, ids in rollouts.numbered]
            )

    before = logps()
    for _ in range(5):
        agent.learn(rollouts)
    assert np.corrcoef((logps() - before).numpy(), advantages.numpy())[0, 1] > 0.7


# Advantages -----------------------------------------------------------------------------------------------------------


def test_given_advantages_bypass_rewards(make_grpo, make_rollouts):
    rollouts = make_rollouts()
    scalars = group_advantages(rollouts.rewards)
    given = [
        [value.expand(len(ids)) for value, ids in zip(values, group, strict=True)]
        for values, group in zip(scalars, rollouts.completions, strict=True)
    ]
    unjudged = replace(rollouts, rewards=[[math.nan] * len(group) for group in rollouts.rewards], advantages=given)
    partly = replace(rollouts, advantages=[given[0], None, given[2], None])
    results = []
    for batch in (rollouts, unjudged, partly):
        agent = make_grpo()
        results.append((agent.learn(batch), weights(agent)))
    for metrics, moved in results[1:]:
        assert torch.equal(moved, results[0][1])
        assert metrics["loss"] == results[0][0]["loss"]
    assert math.isnan(results[1][0]["mean_reward"])
    assert math.isnan(results[1][0]["reward_std"])


def test_token_advantages_reach_their_tokens(make_grpo, make_rollouts):
    """With beta=0 only one token has an advantage: the gradient is that of its log-probability."""
    rollouts = make_rollouts([(4, [3, 2])])
    pull = [[torch.tensor([0.0, -2.0, 0.0]), torch.zeros(2)]]
    agent, twin = (make_grpo(beta=0.0, max_grad_norm=1e9, temperature=0.5) for _ in range(2))
    with twin.select_adapter("actor") as model:
        logp = plain_logps(model, rollouts.prompts[0], rollouts.completions[0][0], 0.5)[1]
        gradients = torch.autograd.grad(2.0 * logp / 3 / 2, twin.adapters.parameters("actor"))
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    assert agent.learn(replace(rollouts, advantages=pull))["grad_norm"] == pytest.approx(float(norm), rel=1e-4)


def test_advantage_settings(make_grpo, make_rollouts):
    rollouts = make_rollouts()
    clipped = [[values.clamp(-0.5, 0.5) for values in group] for group in group_advantages(rollouts.rewards)]
    plain = group_advantages(rollouts.rewards, adv_norm="mean_only")
    for arguments, scalars in (({"adv_clip_range": 0.5}, clipped), ({"adv_norm": "mean_only"}, plain)):
        given = replace(
            rollouts,
            advantages=[
                [value.expand(len(ids)) for value, ids in zip(values, group, strict=True)]
                for values, group in zip(scalars, rollouts.completions, strict=True)
            ],
        )
        agent, twin, other = make_grpo(**arguments), make_grpo(), make_grpo()
        agent.learn(rollouts)
        twin.learn(given)
        other.learn(rollouts)
        assert torch.equal(weights(agent), weights(twin))
        assert not torch.equal(weights(agent), weights(other))
    given = replace(rollouts.slice(0, 1), advantages=[[torch.full((n,), 9.0) for n in (3, 1, 5, 2)]])
    metrics = make_grpo(adv_clip_range=0.5, beta=0.0).learn(given, training=False)
    assert metrics["loss"] == pytest.approx(-0.5)  # the limit holds for given ones too


def equal_rewards(rollouts, *places):
    rewards = [[0.5] * len(group) if place in places else group for place, group in enumerate(rollouts.rewards)]
    return replace(rollouts, rewards=rewards)


def test_no_signal_moves_nothing(make_grpo, make_rollouts):
    """Although AdamW has moments and weight decay, which would."""
    agent, rollouts = make_grpo(beta=0.0, weight_decay=0.1), make_rollouts()
    agent.learn(rollouts)
    before = weights(agent)
    tokens = passes(agent.base.model)
    metrics = agent.learn(equal_rewards(rollouts, 0, 1, 2, 3))
    assert torch.equal(weights(agent), before)
    assert tokens == []
    assert (metrics["zero_advantage_groups"], metrics["loss"], metrics["grad_norm"]) == (1.0, 0.0, 0.0)
    assert agent.optimizer_steps == 1
    assert agent.steps == [8]
    agent.beta = 0.1  # the reference does pull
    agent.learn(equal_rewards(rollouts, 0, 1, 2, 3))
    assert not torch.equal(weights(agent), before)


@pytest.mark.parametrize("normalization", ["sequence", "token", "constant"])
def test_groups_without_signal_cost_nothing_but_count(make_grpo, make_rollouts, normalization):
    """The same step as with a divergence of next to no weight, for which everything is computed."""
    rollouts = equal_rewards(make_rollouts(), 0, 3)
    settings = {"loss_normalization": normalization, "gradient_checkpointing": False, "max_grad_norm": 1e9}
    skipping, computing = make_grpo(beta=0.0, **settings), make_grpo(beta=1e-12, **settings)
    tokens = passes(skipping.base.model)
    one, other = skipping.learn(rollouts), computing.learn(rollouts)
    assert sum(tokens) == 1 + 7 + 10 + 7
    assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-5)
    for name in ("loss", "zero_advantage_groups", "completion_length", "mean_reward"):
        assert one[name] == pytest.approx(other[name], abs=1e-7)
    torch.testing.assert_close(weights(skipping), weights(computing), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("normalization", ["sequence", "token", "constant"])
def test_what_is_filtered_was_never_there(make_grpo, make_rollouts, normalization):
    rollouts = make_rollouts()
    settings = {"loss_normalization": normalization, "batch_size": 6}
    filtering, other = make_grpo(filter_zero_adv=True, **settings), make_grpo(**settings)
    one, two = filtering.learn(equal_rewards(rollouts, 1, 2)), other.learn(rollouts.select([0, 3]))
    assert torch.equal(weights(filtering), weights(other))
    assert one["loss"] == two["loss"]
    assert one["zero_advantage_groups"] == 0.5

    truncated = replace(rollouts, finished=[[True, False, True, False], [False] * 3, [True] * 2, [True] * 5])
    given = make_grpo()._with_advantages(rollouts)
    whole = given.where(truncated.finished)
    masking, other = make_grpo(mask_truncated_completions=True, **settings), make_grpo(**settings)
    one, two = masking.learn(truncated), other.learn(whole)
    assert torch.equal(weights(masking), weights(other))
    assert one["loss"] == two["loss"]
    assert one["finished_rate"] == 9 / 14
    assert one["completion_length"] == TOKENS / 14
    before = weights(masking)
    masking.learn(replace(rollouts, finished=[[False] * len(group) for group in rollouts.finished]))
    assert torch.equal(weights(masking), before)


def test_the_filters_threshold(make_grpo, make_rollouts):
    rollouts = make_rollouts([(3, [2, 3, 4])])
    given = replace(rollouts, advantages=[[torch.tensor([0.1, -0.2]), torch.full((3,), 0.3), torch.full((4,), -0.5)]])
    agent = make_grpo(filter_zero_adv=True, adv_filter_eps=0.2, beta=0.0)
    assert agent.learn(given, training=False)["loss"] == pytest.approx((-0.3 + 0.5) / 2)


# What was sampled elsewhere -------------------------------------------------------------------------------------------


def test_what_another_engine_sampled_is_corrected(make_grpo, make_rollouts):
    rollouts = make_rollouts()
    teacher = make_grpo(temperature=0.7)
    with teacher.select_adapter("actor") as model, torch.no_grad():
        exact = [
            [plain_logps(model, prompt, ids, 0.7) for ids in group]
            for prompt, group in zip(rollouts.prompts, rollouts.completions, strict=True)
        ]
    shifted = [[logps - torch.linspace(-1, 2, len(logps)) for logps in group] for group in exact]
    settings = {"temperature": 0.7, "max_grad_norm": 1e9, "beta": 0.0}

    def gradient(sampled, **arguments):
        agent = make_grpo(**settings, **{"vllm_importance_sampling_correction": True} | arguments)
        return agent.learn(replace(rollouts, sampling_logps=sampled))["grad_norm"]

    with pytest.warns(UserWarning, match="correction does nothing: TokenSampler did not say"):
        plain = gradient([None] * 4)
    assert gradient(exact) == pytest.approx(plain, rel=1e-4)
    assert gradient(shifted) != pytest.approx(plain, rel=0.05)
    assert gradient(shifted, vllm_importance_sampling_correction=False) == pytest.approx(plain, rel=1e-6)
    assert gradient(shifted, generator=None) == pytest.approx(plain, rel=1e-6)
    explicit = make_grpo(**settings, vllm_importance_sampling_correction=True, generator=None)
    given = explicit.learn(rollouts, sampling_logps=[logps for group in shifted for logps in group])
    assert given["grad_norm"] == pytest.approx(gradient(shifted), rel=1e-5)

    # The weights, applied to the advantages by hand.
    pulls = [
        [pull * (torch.linspace(-1, 2, len(ids))).exp().clamp(max=1.5) for pull, ids in zip(values, group, strict=True)]
        for values, group in zip(group_advantages(rollouts.rewards), rollouts.completions, strict=True)
    ]
    by_hand = make_grpo(**settings).learn(replace(rollouts, advantages=pulls))["grad_norm"]
    assert gradient(shifted, vllm_importance_sampling_cap=1.5) == pytest.approx(by_hand, rel=1e-4)


# Sampling -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def judge(make_judge):
    """Five prompts of different lengths; even tokens are worth something."""
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(3, 97, (n,), generator=generator) for n in (3, 1, 6, 2, 4)]
    return make_judge(prompts, lambda row, tokens: float((tokens % 2 == 0).double().mean()))


@pytest.mark.parametrize("masks", [False, True])
def test_padding_is_never_judged(make_grpo, tiny_tokenizer, masks):
    """The agent's pad token, 7, is a word of the environment's, whose own is not even the tokenizer's first token."""
    tiny_tokenizer.pad_token = "</s>"
    rows, judged = Dataset.from_list([{"prompt": f"w{i} w5", "answer": i} for i in range(10, 14)]), []

    def reward(completion, answer, question):
        judged.append(completion)
        return float(len(completion))

    env = ReasoningGym(rows, rows, tiny_tokenizer, reward, data_batch_size_per_gpu=4)
    agent = make_grpo(pad_token_id=7, group_size=6, max_completion_length=50)
    batch = env.reset()
    questions = QuestionBatch.from_experiences(batch)
    completion_ids, action_masks, _ = agent.get_action(questions if masks else batch)
    sampled = [
        [ids[1:][mask] for ids, mask in zip(*group, strict=True)]
        for group in zip(completion_ids, action_masks, strict=True)
    ]
    assert len({len(ids) for group in sampled for ids in group}) > 1  # otherwise nothing is padded
    expected = [tiny_tokenizer.decode(ids, skip_special_tokens=True) for group in sampled for ids in group]
    if masks:
        _, rewards = env.step(completion_ids, action_masks)
    else:
        _, rewards = env.step(completion_ids)
    assert judged == expected
    assert rewards.flatten().tolist() == [float(len(text)) for text in expected]


def test_rolling_out_and_agilerls_loop_are_the_same(make_grpo, judge):
    one, other = (make_grpo(group_size=3, max_completion_length=4, pad_token_id=0) for _ in range(2))
    experiences = judge.experiences([0, 1, 2])
    rollouts = one.roll_out(experiences, judge)
    assert [len(group) for group in rollouts.completions] == [3, 3, 3]
    assert rollouts.labels == ["train row 0", "train row 1", "train row 2"]
    assert all(1 <= len(ids) <= 4 for _, ids in rollouts.numbered)
    assert all(len({tuple(ids.tolist()) for ids in group}) > 1 for group in rollouts.completions)

    completion_ids, action_masks, logps = other.get_action(experiences)
    rewards = torch.tensor([[judge.reward(0, ids) for ids in group] for group in rollouts.completions])
    for prompt, ids, masks, group in zip(
        rollouts.prompts, completion_ids, action_masks, rollouts.completions, strict=True
    ):
        assert masks.shape == (3, ids.shape[1] - 1)
        assert masks.dtype == torch.bool
        for row, mask, completion in zip(ids, masks, group, strict=True):
            assert torch.equal(row[: len(prompt)], prompt)
            assert torch.equal(row[1:][mask], completion)
            assert int(row[len(prompt) + len(completion) :].abs().sum()) == 0
    assert [len(values) for values in logps] == [len(ids) for _, ids in rollouts.numbered]

    batches = [
        RolloutBatch.from_experiences(
            {"completion_ids": completion_ids, "action_masks": action_masks, "rewards": rewards}
        ),
        rollouts,
    ]
    for name in ("prompts", "completions"):
        for mine, theirs in zip(vars(batches[0])[name], vars(batches[1])[name], strict=True):
            assert all(map(torch.equal, mine, theirs)) if name == "completions" else torch.equal(mine, theirs)
    first = one.learn(rollouts)
    second = other.learn((completion_ids, action_masks, rewards))
    assert first["loss"] == pytest.approx(second["loss"], abs=1e-7)
    torch.testing.assert_close(weights(one), weights(other), rtol=1e-5, atol=1e-6)
    twin = make_grpo(vllm_importance_sampling_correction=True)
    metrics = twin.learn((completion_ids, action_masks, rewards), sampling_logps=logps)
    assert metrics["grad_norm"] == pytest.approx(second["grad_norm"], rel=1e-3)
    with pytest.raises(ValueError, match="sampling_logps are of 2 completions, but there are 9"):
        twin.learn((completion_ids, action_masks, rewards), sampling_logps=logps[:2])


def test_what_agilerls_lists_do_not_say(make_grpo, judge, tiny_tokenizer):
    experiences = judge.experiences([0, 1])
    agent = make_grpo(group_size=2, max_completion_length=4, generator=None, stop="###")
    with pytest.raises(ValueError, match="tokenizer"):
        agent.get_action(experiences)
    for training in (True, False):
        ids, masks, _ = agent.get_action(experiences, training, tokenizer=tiny_tokenizer)
        assert len(ids) == 2
    ids, masks, _ = agent.get_action(experiences, tokenizer=tiny_tokenizer)
    lists = (ids, masks, torch.tensor([[0.0, 1.0], [0.5, 0.0]]))
    assert math.isnan(agent.learn(lists)["finished_rate"])
    agent.mask_truncated_completions = True
    with pytest.raises(ValueError, match=r"Pass what agent\.roll_out"):
        agent.learn(lists)


def test_a_generator_that_does_not_say_how_likely_is_warned_of_once(make_grpo, make_rollouts):
    agent = make_grpo(vllm_importance_sampling_correction=True)
    with pytest.warns(UserWarning, match="temperature=1, or with top_p=1, top_k=0"):
        agent.learn(make_rollouts())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        agent.learn(make_rollouts())
        make_grpo(vllm_importance_sampling_correction=True, generator=None).learn(make_rollouts())


def test_metrics_without_a_step(make_grpo, make_rollouts):
    """The divergence has its key, and the learning rate is that of the next step."""
    rollouts = make_rollouts()
    agent = make_grpo(filter_zero_adv=True)
    agent.lr = 0.5
    metrics = agent.learn(replace(rollouts, rewards=[[1.0] * len(group) for group in rollouts.rewards]))
    assert (metrics["lr"], metrics["kl"], metrics["grad_norm"]) == (0.5, 0.0, 0.0)
    assert agent.learn(rollouts).keys() == metrics.keys()


def test_the_next_completions_do_not_depend_on_evaluations(make_grpo, judge):
    questions = QuestionBatch.from_experiences(judge.experiences([0, 1]))
    results = []
    for evaluations in (0, 3):
        agent = make_grpo(group_size=2, max_completion_length=4, eval_temperature=0.8)
        for _ in range(evaluations):
            agent.test(judge)
            agent.get_action(questions, training=False)
        assert len(set(agent.fitness)) <= 1  # the same draws each time
        torch.rand(evaluations)
        results.append(agent.roll_out(questions, judge).completions)
    for one, other in zip(*results, strict=True):
        assert all(map(torch.equal, one, other))
    greedy = make_grpo(max_completion_length=4)
    answers = [greedy.get_action(questions, training=False).completion_ids for _ in range(2)]
    assert all(map(torch.equal, *answers))
    assert [ids.shape[0] for ids in answers[0]] == [1, 1]


def test_settings_of_sampling(make_grpo):
    agent = make_grpo(
        temperature=0.7, top_p=0.8, top_k=5, min_p=0.1, repetition_penalty=1.1, min_output_tokens=2, max_model_len=30,
        stop=["###", "END"],
    )  # fmt: skip
    settings = agent.sampling_settings
    assert vars(settings) == {
        "max_new_tokens": 12, "max_model_len": 30, "min_new_tokens": 2, "temperature": 0.7, "top_p": 0.8, "top_k": 5,
        "min_p": 0.1, "repetition_penalty": 1.1, "stop": ("###", "END"),
    }  # fmt: skip
    assert agent.evaluation_settings == replace(settings, temperature=0.0)
    assert agent.max_output_tokens == agent.max_completion_length == 12
    assert make_grpo(stop="###").stop == ("###",)
    assert make_grpo(stop=None).stop == ()


# Populations ----------------------------------------------------------------------------------------------------------


def test_a_copy_goes_on_like_the_original(make_grpo, judge):
    experiences = judge.experiences([0, 1, 2, 3])
    dropping = LoraConfig(r=4, lora_dropout=0.3, target_modules="all-linear", task_type="CAUSAL_LM")
    agent = make_grpo(
        lora_config=dropping, update_epochs=2, group_size=3, max_completion_length=4, clip_coef=(0.8, 1.28)
    )
    agent.learn(agent.roll_out(experiences, judge))
    agent.test(judge)
    twin = agent.clone(index=3)
    other = make_grpo(
        lora_config=dropping, update_epochs=2, group_size=3, max_completion_length=4, clip_coef=(0.8, 1.28)
    )
    other.load_state_dict(agent.state_dict())
    assert (twin.index, twin.fitness, twin.held_out, twin.steps) == (3, agent.fitness, agent.held_out, [4])
    assert twin.objective == other.objective == agent.objective
    assert twin.generator is agent.generator
    assert twin.built_like(agent)
    metrics = [each.learn(each.roll_out(experiences, judge)) for each in (agent, twin, other)]
    for each in metrics[1:]:
        assert {**each, "tokens_per_second": 0} == {**metrics[0], "tokens_per_second": 0}
    assert torch.equal(weights(agent), weights(twin))
    assert torch.equal(weights(agent), weights(other))
    twin.learn(twin.roll_out(experiences, judge))
    assert not torch.equal(weights(agent), weights(twin))
    agent.inherit(twin)
    assert torch.equal(weights(agent), weights(twin))
    assert all(
        map(torch.equal, agent.sampling_stream.state_dict()["states"], twin.sampling_stream.state_dict()["states"])
    )


def test_a_saved_agent_comes_back_without_its_generator(make_grpo, make_rollouts, sampler, tmp_path):
    agent = make_grpo(clip_coef=(0.8, 1.28), stop=["###"], update_epochs=2)
    agent.learn(make_rollouts())
    agent.save_checkpoint(tmp_path / "agent")
    loaded = GRPO.load(tmp_path / "agent", actor_network=agent.base.model)
    assert loaded.generator is None
    assert (loaded.hyperparameters, loaded.stop) == (agent.hyperparameters, ("###",))
    assert loaded.objective == agent.objective
    loaded.generator = sampler
    one, other = agent.learn(make_rollouts(seed=1)), loaded.learn(make_rollouts(seed=1))
    assert one["loss"] == other["loss"]
    assert torch.equal(weights(agent), weights(loaded))


def test_states_of_other_objectives_are_refused(make_grpo):
    state = make_grpo(top_p=0.9).state_dict()
    with pytest.raises(ValueError, match=r"made otherwise .*top_p=0\.9 instead of 0\.95"):
        make_grpo().load_state_dict(state)
    with pytest.warns(UserWarning, match="generator=TokenSampler instead of TransformersGenerator"):
        make_grpo(generator=None, top_p=0.9).load_state_dict(state)


def test_hyperparameters_evolve(make_grpo, judge):
    config = HyperparameterConfig(
        group_size=RLParameter(min=2, max=5, dtype=int),
        temperature=RLParameter(min=0.5, max=1.5),
        clip_coef=RLParameter(min=0.1, max=0.4),
        clip_coef_high=RLParameter(min=0.1, max=0.4),
        loss_type=Choice("grpo", "gspo", "cispo"),
        beta=Choice(0.0, 0.2),
    )
    agents = GRPO.population(
        2, actor_network=make_grpo().base.model, lora_config=make_grpo().lora_config, hp_config=config, group_size=2,
        temperature=1.0, beta=0.2, clip_coef=(0.8, 1.28), max_completion_length=3, generator=make_grpo().generator,
        lr=1e-3,
    )  # fmt: skip
    agents[1].group_size, agents[1].temperature, agents[1].loss_type = 4, 0.5, "gspo"
    agents[1].clip_coef, agents[1].beta = 0.4, 0.0
    agents[1].check_settings()
    sizes = []
    for agent in agents:
        rollouts = agent.roll_out(judge.experiences([0, 1]), judge)
        sizes.append([len(group) for group in rollouts.completions])
        scored = agent.scorer(temperature=agent.temperature)
        assert scored.temperature == agent.temperature
        agent.learn(rollouts)
    assert sizes == [[2, 2], [4, 4]]
    assert agents[0].objective.bounds == (0.8, 1.28)
    assert agents[1].objective.bounds == (0.6, 1.28)
    assert agents[0].describe_objective().startswith("grpo(token ratios from 0.8 to 1.28")
    assert agents[1].describe_objective().startswith("gspo(trajectory")
    child = agents[0].replaced_by(agents[1], index=0)
    assert child is agents[0]
    assert (child.group_size, child.temperature, child.loss_type, child.parent) == (4, 0.5, "gspo", 1)


def test_ratios_bounds(make_grpo):
    assert make_grpo().objective.bounds == (0.8, 1.2)
    assert make_grpo(clip_coef=0.3).objective.bounds == (0.7, 1.3)
    assert make_grpo(clip_coef=0.2, clip_coef_high=0.28).objective.bounds == (0.8, 1.28)
    asymmetric = make_grpo(clip_coef=[0.8, 1.28])
    assert asymmetric.objective.bounds == (0.8, 1.28)
    assert (asymmetric.clip_coef, asymmetric.clip_coef_high) == pytest.approx((0.2, 0.28))
    assert make_grpo(clip_coef=1.5).objective.bounds == (0.0, 2.5)
    assert make_grpo(clip_coef=(0.0, 5.0)).objective.bounds == (0.0, 5.0)


def test_grpo_and_dpo_agents_share_a_base(make_grpo, make_rollouts, lora, make_experiences):
    agent = make_grpo()
    other = DPO(actor_network=agent.base.model, lora_config=lora, batch_size=2, lr=1e-2)
    before = weights(agent)
    other.learn(make_experiences([(3, 4, 2), (2, 3, 5)]))
    assert torch.equal(weights(agent), before)
    moved = weights(other)
    agent.learn(make_rollouts())
    assert torch.equal(weights(other), moved)


def test_the_reference_follows_epochs_if_asked(make_grpo, make_rollouts):
    still, moving = make_grpo(), make_grpo(reference_update="epoch")
    for agent in (still, moving):
        agent.learn(make_rollouts())
        agent.end_epoch()
    assert moving.learn(make_rollouts(), training=False)["kl"] == pytest.approx(0.0, abs=1e-9)
    assert still.learn(make_rollouts(), training=False)["kl"] > 1e-3


def test_agilerls_defaults(make_grpo):
    defaults = {name: p.default for name, p in inspect.signature(GRPO).parameters.items()}
    expected = {
        "batch_size": 16, "beta": 0.001, "lr": 5e-7, "clip_coef": 0.2, "max_grad_norm": 0.1, "update_epochs": 1,
        "group_size": 8, "temperature": 0.9, "repetition_penalty": 1.0, "top_p": 0.95, "top_k": 50, "min_p": 0.0,
        "calc_position_embeddings": True, "micro_batch_size_per_gpu": None, "max_output_tokens": None, "wrap": True,
        "clone": False, "seed": 42, "gradient_checkpointing": True, "torch_compiler": None, "use_liger_loss": False,
        "adv_norm": "mean_std", "loss_type": "grpo", "importance_sampling_level": None,
        "use_separate_reference_adapter": True, "adv_clip_range": None, "filter_zero_adv": False,
        "adv_filter_eps": 0.0, "activation_offload": False, "vllm_importance_sampling_correction": True,
        "vllm_importance_sampling_cap": 2.0,
    }  # fmt: skip
    assert {name: defaults[name] for name in expected} == expected
    with pytest.warns(UserWarning, match="use_liger_loss=True has no effect on GRPO"):
        make_grpo(use_liger_loss=True)
    assert make_grpo(max_completion_length=None).max_completion_length == 256
    assert make_grpo(max_completion_length=None, max_output_tokens=9).max_completion_length == 9
    assert make_grpo(max_output_tokens=12).max_completion_length == 12


# Refusals -------------------------------------------------------------------------------------------------------------


def test_nan_is_named_and_changes_nothing(make_grpo, make_rollouts):
    agent = make_grpo(micro_batch_size_per_gpu=3)
    agent.adapters.parameters("actor")[0].data[0, 0] = math.nan
    before = weights(agent)
    for training in (True, False):
        with pytest.raises(NonFiniteLossError, match=r"The loss is not finite on train row 10; the step was not made"):
            agent.learn(make_rollouts(), training=training)
    torch.testing.assert_close(weights(agent), before, equal_nan=True, rtol=0, atol=0)
    assert agent.optimizer_steps == 0
    assert all(p.grad is None for p in agent.adapters.parameters("actor"))


def test_experiences_that_cannot_be_learned_from(make_grpo, make_rollouts, judge):
    agent, rollouts = make_grpo(), make_rollouts()
    before = weights(agent)
    nan = replace(rollouts, rewards=[*rollouts.rewards[:2], [1.0, math.nan], rollouts.rewards[3]])
    with pytest.raises(ValueError, match="train row 12 has the rewards 1, nan"):
        agent.learn(nan)
    with pytest.raises(ValueError, match=r"train row 10 has 1 completion"):
        agent.learn(make_rollouts([(3, [2])]))
    with pytest.raises(ValueError, match=r"Pass what agent.roll_out\(questions, env\) returns"):
        agent.learn(QuestionBatch.from_experiences(judge.experiences([0])))
    with pytest.raises(ValueError, match="token id 97"):
        agent.learn(replace(rollouts, prompts=[*rollouts.prompts[:3], torch.tensor([97])]))
    with pytest.raises(ValueError, match="train row 10 has 70 tokens"):
        agent.learn(make_rollouts([(60, [10, 2])]))
    with pytest.raises(ValueError, match="lack action_masks, rewards"):
        agent.learn({"completion_ids": []})
    assert torch.equal(weights(agent), before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"update_epochs": 1.5}, "update_epochs=1.5"),
        ({"group_size": 1}, "group_size=1 must be a whole number of at least 2"),
        ({"micro_batch_size_per_gpu": 0}, "micro_batch_size_per_gpu=0"),
        ({"lr": 0.0}, "lr=0.0"),
        ({"temperature": 0.0}, "temperature=0.0 must be greater than 0"),
        ({"eval_temperature": -0.1}, "eval_temperature=-0.1"),
        ({"max_completion_length": 0}, "max_completion_length=0"),
        ({"max_output_tokens": 13}, "max_completion_length=12 and max_output_tokens=13 are two names"),
        ({"min_output_tokens": 13}, "min_output_tokens=13 is above max_completion_length=12"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"top_k": -1}, "top_k=-1"),
        ({"min_p": 1.5}, "min_p=1.5"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0"),
        ({"stop": [""]}, "stop="),
        ({"filter_zero_adv": 1}, "filter_zero_adv=1 must be True or False"),
        ({"mask_truncated_completions": "yes"}, "mask_truncated_completions='yes' must be True or False"),
        ({"vllm_importance_sampling_correction": None}, "vllm_importance_sampling_correction=None must be"),
        ({"beta": -1.0}, "beta=-1.0"),
        ({"clip_coef": -0.2}, "clip_coef=-0.2 must be at least 0"),
        ({"clip_coef": (1.1, 1.2)}, "min <= 1 <= max"),
        ({"clip_coef": (0.8, 1.28), "clip_coef_high": 0.3}, "clip_coef_high=0.3 another one"),
        ({"clip_coef_high": -1.0}, "clip_coef_high=-1.0"),
        ({"loss_type": "ppo"}, "loss_type: 'ppo' is unknown"),
        ({"loss_type": "gspo", "importance_sampling_level": "token"}, "one ratio per completion"),
        ({"loss_normalization": "mean"}, "loss_normalization: 'mean' is unknown"),
        ({"adv_norm": "std"}, "adv_norm: 'std' is unknown"),
        ({"adv_clip_range": 0.0}, "adv_clip_range=0.0"),
        ({"adv_filter_eps": -1.0}, "adv_filter_eps=-1.0"),
        ({"vllm_importance_sampling_cap": 0.0}, "vllm_importance_sampling_cap=0.0"),
        ({"prefix_sharing": "yes"}, "prefix_sharing='yes'"),
        ({"reference_update": 3}, "reference_update: 3 is unknown"),
        ({"reference_update": "epoch", "use_separate_reference_adapter": False}, "needs a reference that can move"),
        (
            {"hp_config": HyperparameterConfig(group_size=RLParameter(min=1, max=9, dtype=int))},
            "lets evolution reach group_size=1",
        ),
    ],
)
def test_bad_settings(make_grpo, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_grpo(**arguments)


# A task ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_a_bandit_reaches_the_optimum(tiny_model, make_grpo, make_judge, seed):
    """Two prompts with eight arms each: from about chance to playing the best one with a probability above 0.95."""
    prompts, best = [torch.tensor([1, 3]), torch.tensor([1, 4])], [5, 7]
    env = make_judge(prompts, lambda row, tokens: float(tokens[0] == best[row]))
    model = tiny_model(vocab_size=8, seed=seed)
    model.lm_head.weight.data.mul_(2)  # which is not trained, and bounds how sure the model can be
    agent = make_grpo(
        moved=False, actor_network=model, seed=seed, lr=5e-3, beta=0.0, group_size=64, batch_size=128,
        max_grad_norm=1.0, max_completion_length=1, temperature=1.0, top_p=1.0, top_k=0,
    )  # fmt: skip

    def probability():
        with agent.select_adapter("actor") as policy, torch.no_grad():
            logits = [policy(input_ids=prompt[None]).logits[0, -1] for prompt in prompts]
        return np.mean([float(row.softmax(-1)[arm]) for row, arm in zip(logits, best, strict=True)])

    assert probability() < 0.35
    for _ in range(30):
        agent.learn(agent.roll_out(env.experiences([0, 1]), env))
    assert probability() > 0.95


def test_groups_of_trajectories_are_learned_from_as_their_rollouts(make_grpo, make_rollouts):
    rollouts = make_rollouts()
    columns = zip(rollouts.labels, rollouts.prompts, rollouts.completions, rollouts.rewards, strict=True)
    groups = [
        TrajectoryGroup.named(
            f"{label}:solver",
            [
                Trajectory([Step(prompt.tolist(), ids.tolist())], reward)
                for ids, reward in zip(group, rewards, strict=True)
            ],
        )
        for label, prompt, group, rewards in columns
    ]
    agent, twin = make_grpo(), make_grpo()
    metrics, expected = agent.learn(groups), twin.learn(rollouts)
    assert torch.equal(weights(agent), weights(twin))
    assert metrics["grad_norm"] == expected["grad_norm"]
    steps = [replace(attempt.steps[0], advantage=2.0) for attempt in groups[0].trajectories]
    brought = replace(groups[0], trajectories=[Trajectory([step]) for step in steps])
    given = replace(
        rollouts.slice(0, 1), advantages=[[torch.full((len(ids),), 2.0) for ids in rollouts.completions[0]]]
    )
    assert agent.learn([brought])["grad_norm"] == twin.learn(given)["grad_norm"] > 0
    assert torch.equal(weights(agent), weights(twin))


def test_equal_agents_of_a_population_try_different_completions(make_grpo, judge):
    """Founders and children draw for themselves; a copy that is nobody's child goes on as the original would."""
    questions = judge.experiences([0, 1])

    def tried(agent):
        state = agent.sampling_stream.state_dict()
        completions = [ids.tolist() for _, ids in agent.roll_out(questions, judge).numbered]
        agent.sampling_stream.load_state_dict(state)
        return completions

    first, second = make_grpo(index=0), make_grpo(index=1)
    assert tried(first) != tried(second)
    assert tried(first.clone()) == tried(first)
    child = second.replaced_by(first, 2)
    assert (child.parent, child.index) == (0, 2)
    assert tried(child) != tried(first)
    another = first.child(3)
    assert (another.parent, another.index) == (0, 3)
    assert len({str(tried(agent)) for agent in (first, child, another)}) == 3
    assert tried(make_grpo(index=2)) != tried(make_grpo(index=2, seed=43))
