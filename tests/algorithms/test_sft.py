"""SFT: what a step does, what is measured, and how agents are compared and copied."""

import inspect
import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from torch.optim import AdamW

from agiledpo.algorithms import DPO, SFT
from agiledpo.algorithms.completion_fitness import HeldOutCompletions, ratio_estimate
from agiledpo.algorithms.core.errors import NonFiniteLossError
from agiledpo.algorithms.core.registry import HyperparameterConfig, RLParameter
from agiledpo.llm_envs import PreferenceGym, SFTGym
from agiledpo.losses import CompletionTerms, TokenLogProbs
from agiledpo.scoring import CompletionBatch

LENGTHS = [(7, 5), (1, 1), (3, 8), (12, 1), (4, 4), (2, 9)]


@pytest.fixture
def make_sft(tiny_model, lora, randomise):
    """Make an agent on a tiny model whose actor has weights of its own."""

    def make(*, architecture="llama", **arguments):
        settings = {"actor_network": tiny_model(architecture), "lora_config": lora, "batch_size": 6, "lr": 1e-3}
        agent = SFT(**settings | arguments)
        randomise(agent)
        return agent

    return make


@pytest.fixture
def make_env(tiny_tokenizer, make_pairs):
    def make(train=8, test=7, **options):
        return SFTGym(make_pairs(train), make_pairs(test, seed=1), tiny_tokenizer, response_column="chosen", **options)

    return make


def weights(agent):
    return torch.cat([p.detach().flatten() for p in agent.adapters.parameters("actor")])


def plain_terms(agent, experiences):
    """Negative log-likelihood, hits and tokens of each row, one plain forward pass each."""
    rows = []
    batch = CompletionBatch.from_experiences(experiences)
    with agent.select_adapter("actor") as model, torch.no_grad():
        for prompt, completion in zip(batch.prompts, batch.completions, strict=True):
            logits = model(input_ids=torch.cat([prompt, completion])[None]).logits[0, len(prompt) - 1 : -1].double()
            nll = torch.nn.functional.cross_entropy(logits, completion, reduction="sum")
            rows.append((float(nll), int((logits.argmax(-1) == completion).sum()), len(completion)))
    return np.array(rows).T


def test_one_step_is_adamw_on_the_mean_over_completion_tokens(make_sft, demonstrations):
    agent, experiences = make_sft(max_grad_norm=0.05, weight_decay=0.1), demonstrations(LENGTHS)
    twin = make_sft(max_grad_norm=0.05, weight_decay=0.1)
    batch = CompletionBatch.from_experiences(experiences)
    parameters = twin.adapters.parameters("actor")
    optimizer = AdamW(parameters, lr=1e-3, weight_decay=0.1)
    with twin.select_adapter("actor") as model:
        losses = [
            torch.nn.functional.cross_entropy(
                model(input_ids=torch.cat([p, c])[None]).logits[0, len(p) - 1 : -1], c, reduction="sum"
            )
            for p, c in zip(batch.prompts, batch.completions, strict=True)
        ]
        (sum(losses) / 28).backward()
    norm = torch.nn.utils.clip_grad_norm_(parameters, 0.05)
    optimizer.step()

    before = weights(agent)
    metrics = agent.learn(experiences)
    assert metrics["grad_norm"] == pytest.approx(float(norm), rel=1e-4)
    assert metrics["grad_norm"] > 0.05
    assert (weights(agent) - before).abs().median() > 5e-4
    torch.testing.assert_close(weights(agent), weights(twin), rtol=1e-5, atol=1e-6)
    assert metrics["loss"] == pytest.approx(float(sum(losses).detach()) / 28, rel=1e-5)
    assert agent.steps == [6]
    assert agent.optimizer_steps == 1
    assert agent.scores == [-metrics["loss"]]
    assert all(p.grad is None for p in agent.adapters.parameters("actor"))


def test_metrics_are_means_over_completion_tokens(make_sft, demonstrations):
    agent, experiences = make_sft(), demonstrations(LENGTHS)
    nll, hits, tokens = plain_terms(agent, experiences)
    before = weights(agent)
    metrics = agent.learn(experiences, training=False)
    assert torch.equal(weights(agent), before)
    assert metrics == pytest.approx(
        {
            "loss": nll.sum() / 28,
            "mean_loss": nll.sum() / 28,
            "perplexity": math.exp(nll.sum() / 28),
            "mean_token_accuracy": hits.sum() / 28,
            "num_tokens": 28,
            "rows": 6,
        },
        rel=1e-5,
    )
    assert tokens.sum() == 28
    trained = agent.learn(experiences)
    assert trained.keys() - metrics.keys() == {"grad_norm", "lr", "tokens_per_second"}
    assert trained["loss"] == pytest.approx(metrics["loss"], rel=1e-6)
    assert trained["lr"] == 1e-3
    assert agent.learn(experiences, training=False)["loss"] < trained["loss"]


@pytest.mark.parametrize("micro", [1, 2, 4, 5])
@pytest.mark.parametrize("architecture", ["llama", "mistral"])
def test_micro_batches_change_nothing(make_sft, demonstrations, micro, architecture):
    experiences = demonstrations(LENGTHS)
    whole = make_sft(architecture=architecture, update_epochs=2, batch_size=4)
    parts = make_sft(architecture=architecture, update_epochs=2, batch_size=4, micro_batch_size_per_gpu=micro)
    expected, actual = whole.learn(experiences), parts.learn(experiences)
    assert whole.optimizer_steps == parts.optimizer_steps == 4
    for name in expected.keys() - {"tokens_per_second"}:
        assert actual[name] == pytest.approx(expected[name], rel=1e-4), name
    torch.testing.assert_close(weights(parts), weights(whole), rtol=1e-4, atol=2e-5)


def test_each_step_weighs_its_own_tokens(make_sft, demonstrations):
    """Two steps of one batch are the two steps of its halves."""
    experiences = demonstrations(LENGTHS)
    batch = CompletionBatch.from_experiences(experiences)
    one, two = make_sft(batch_size=3), make_sft(batch_size=3)
    metrics = one.learn(batch)
    halves = [two.learn(batch.slice(0, 3)), two.learn(batch.slice(3, 6))]
    assert torch.equal(weights(one), weights(two))
    assert metrics["loss"] == pytest.approx((halves[0]["loss"] * 14 + halves[1]["loss"] * 14) / 28, rel=1e-6)
    assert metrics["grad_norm"] == pytest.approx((halves[0]["grad_norm"] + halves[1]["grad_norm"]) / 2)


def test_it_learns_and_dropout_has_its_own_stream(tiny_model, demonstrations, make_sft):
    dropping = LoraConfig(r=4, lora_dropout=0.3, target_modules="all-linear", task_type="CAUSAL_LM")
    experiences = demonstrations(LENGTHS)
    results = []
    for consumed in (0, 5):
        agent = make_sft(actor_network=tiny_model(), lora_config=dropping, lr=1e-2, max_grad_norm=10.0)
        losses = []
        for _ in range(20):
            torch.rand(consumed)
            losses.append(agent.learn(experiences)["loss"])
        results.append(losses)
    assert results[0] == results[1]
    assert results[0][-1] < 0.75 * results[0][0]


def test_held_out_figures_and_their_errors_against_numpy(make_sft, make_env):
    agent, env = make_sft(micro_batch_size_per_gpu=3), make_env()
    nll, hits, tokens = np.concatenate([plain_terms(agent, batch) for batch in env.test_batches()], axis=1)

    def ratio(sums):
        mean = sums.sum() / tokens.sum()
        residual = sums - mean * tokens
        return mean, np.sqrt(residual.var(ddof=1) / len(tokens)) / tokens.mean()

    held_out = agent.measure(env)
    assert len(held_out) == 7
    for name, sums in (("loss", -nll), ("accuracy", hits)):
        estimate = held_out.fitness(name)
        value, error = ratio(sums)
        assert estimate.value == pytest.approx(value, rel=1e-5, abs=1e-12)
        assert estimate.error == pytest.approx(error, rel=1e-4, abs=1e-12)
    assert held_out.tie_break == pytest.approx(-nll.sum() / tokens.sum(), rel=1e-5)
    fitness = agent.test(env)
    assert float(fitness) == agent.fitness[-1] == held_out.fitness("loss").value
    assert agent.fitness_errors[-1] == held_out.fitness("loss").error > 0
    assert agent.held_out == held_out.metrics == agent.evaluate(env)
    assert float(agent.test(env, fitness="accuracy")) == held_out.fitness("accuracy").value
    assert agent.tie_break == held_out.tie_break


def test_the_ratio_estimators_error_is_that_of_many_samples():
    """Rows of 1 to 20 tokens that share a level: the estimated error is the spread of the estimate."""
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 21, (2000, 60))
    sums = counts * (2 + 0.5 * rng.standard_normal(counts.shape)) + 0.1 * rng.standard_normal(counts.shape)
    estimates = [ratio_estimate(torch.tensor(y), torch.tensor(t)) for y, t in zip(sums, counts, strict=True)]
    spread = np.std([estimate.value for estimate in estimates])
    assert np.mean([estimate.error for estimate in estimates]) == pytest.approx(spread, rel=0.05)
    one = ratio_estimate(torch.tensor([6.0]), torch.tensor([3]))
    assert one.value == 2
    assert math.isnan(one.error)


def test_terms_are_sums_over_the_mask():
    tokens = TokenLogProbs(
        logps=torch.tensor([[-1.0, -2.0, 0.0], [-0.5, -0.25, -0.25]]),
        mask=torch.tensor([[True, True, False], [True, True, True]]),
        hits=torch.tensor([[True, False, True], [False, True, True]]),
    )
    terms = CompletionTerms.of(tokens)
    assert terms.nll.tolist() == [3.0, 1.0]
    assert terms.hits.tolist() == [1, 2]
    assert terms.tokens.tolist() == [2, 3]
    metrics = HeldOutCompletions(CompletionTerms.concat([terms, terms])).metrics
    assert metrics["loss"] == 0.8
    assert metrics["mean_token_accuracy"] == 0.6
    with pytest.raises(ValueError, match="hits"):
        CompletionTerms.of(TokenLogProbs(logps=tokens.logps, mask=tokens.mask))
    with pytest.raises(ValueError, match=r"hits must be bool of shape \(2, 3\)"):
        TokenLogProbs(logps=tokens.logps, mask=tokens.mask, hits=tokens.hits[:1])


def test_perplexity_of_an_absurd_loss_is_infinite():
    terms = CompletionTerms(nll=torch.tensor([3000.0]), hits=torch.tensor([0]), tokens=torch.tensor([2]))
    assert HeldOutCompletions(terms).metrics["perplexity"] == math.inf


def test_a_copy_goes_on_like_the_original(make_sft, demonstrations, make_env):
    experiences, env = demonstrations(LENGTHS), make_env()
    agent = make_sft()
    agent.learn(experiences)
    agent.test(env)
    twin = agent.clone(index=3)
    assert (twin.index, twin.fitness, twin.held_out, twin.steps) == (3, agent.fitness, agent.held_out, [6])
    assert agent.learn(experiences)["loss"] == twin.learn(experiences)["loss"]
    assert torch.equal(weights(agent), weights(twin))
    twin.learn(experiences)
    assert not torch.equal(weights(agent), weights(twin))
    agent.inherit(twin)
    assert torch.equal(weights(agent), weights(twin))


def test_state_round_trip(make_sft, demonstrations):
    experiences = demonstrations(LENGTHS)
    agent, other = make_sft(), make_sft()
    agent.learn(experiences)
    other.load_state_dict(agent.state_dict())
    first, second = agent.learn(experiences), other.learn(experiences)
    assert first["loss"] == second["loss"]
    assert torch.equal(weights(agent), weights(other))


def test_sft_and_dpo_agents_share_a_base(make_sft, lora, demonstrations, make_experiences):
    agent = make_sft()
    other = DPO(actor_network=agent.base.model, lora_config=lora, batch_size=2, lr=1e-2)
    before = weights(agent)
    other.learn(make_experiences([(3, 4, 2), (2, 3, 5)]))
    assert torch.equal(weights(agent), before)
    moved = weights(other)
    agent.learn(demonstrations(LENGTHS))
    assert torch.equal(weights(other), moved)
    assert other.base is agent.base


def test_hyperparameters_evolve(make_sft):
    config = HyperparameterConfig(lr=RLParameter(min=1e-6, max=1e-2), batch_size=RLParameter(min=1, max=16))
    agent = make_sft(hp_config=config)
    assert agent.hyperparameters == {
        "batch_size": 6,
        "lr": 1e-3,
        "weight_decay": 0.0,
        "max_grad_norm": 0.1,
        "update_epochs": 1,
    }
    agents = SFT.population(2, actor_network=agent.base.model, lora_config=agent.lora_config, hp_config=config)
    assert [one.index for one in agents] == [0, 1]


def test_agilerls_defaults(make_sft):
    defaults = {name: p.default for name, p in inspect.signature(SFT).parameters.items()}
    expected = {
        "batch_size": 16, "lr": 5e-5, "max_grad_norm": 0.1, "update_epochs": 1, "calc_position_embeddings": True,
        "micro_batch_size_per_gpu": None, "seed": 42, "gradient_checkpointing": True, "use_liger_loss": False,
        "use_separate_reference_adapter": False, "activation_offload": False, "wrap": True, "clone": False,
    }  # fmt: skip
    assert {name: defaults[name] for name in expected} == expected
    with pytest.warns(UserWarning, match="use_liger_loss=True has no effect on SFT"):
        agent = make_sft(use_liger_loss=True)
    assert agent.describe_objective() == "the negative log-likelihood per completion token"
    with pytest.raises(RuntimeError, match="takes no actions"):
        agent.get_action(None)


def test_nan_is_named_and_changes_nothing(make_sft, demonstrations):
    agent, experiences = make_sft(micro_batch_size_per_gpu=1), demonstrations(LENGTHS)
    experiences |= {"row": torch.arange(6) + 10, "split": "train"}
    agent.adapters.parameters("actor")[0].data[0, 0] = math.nan
    before = weights(agent)
    with pytest.raises(NonFiniteLossError, match=r"not finite on train row 10; the step was not made"):
        agent.learn(experiences)
    with pytest.raises(NonFiniteLossError, match="train row 10"):
        agent.learn(experiences, training=False)
    torch.testing.assert_close(weights(agent), before, equal_nan=True, rtol=0, atol=0)
    assert agent.optimizer_steps == 0
    assert all(p.grad is None for p in agent.adapters.parameters("actor"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"update_epochs": 1.5}, "update_epochs"),
        ({"micro_batch_size_per_gpu": 0}, "micro_batch_size_per_gpu"),
        ({"lr": 0.0}, "lr"),
    ],
)
def test_bad_settings(make_sft, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_sft(**arguments)


def test_environments_are_checked(make_sft, make_env, make_pairs, tiny_tokenizer, tiny_model):
    agent = make_sft()
    agent.check_environment(make_env())
    pairs: Dataset = make_pairs(3)
    with pytest.raises(
        ValueError,
        match=r"SFT learns from prompts with one completion, .*'chosen'.*the batches of PreferenceGym lack input_ids",
    ):
        agent.check_environment(PreferenceGym(pairs, pairs, tiny_tokenizer))
    tiny_tokenizer.add_tokens(["w97"])
    with pytest.raises(ValueError, match="98 tokens"):
        agent.check_environment(make_env())
    with pytest.raises(ValueError, match="fitness='margin'; use one of loss, accuracy"):
        agent.test(make_env(), fitness="margin")
    with pytest.raises(ValueError, match="loop=0"):
        agent.test(make_env(), loop=0)
