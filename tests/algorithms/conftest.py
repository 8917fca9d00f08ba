"""Agents and experiences for the algorithm tests."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from agiledpo.algorithms import DPO, GRPO
from agiledpo.generation import Completions
from agiledpo.scoring import RolloutBatch

LENGTHS = [(7, 5, 9), (1, 1, 1), (3, 8, 1), (12, 1, 6), (4, 4, 4), (2, 9, 3)]


@pytest.fixture
def experiences(make_experiences) -> dict[str, Any]:
    """Six pairs of different lengths, one-token prompts and completions among them."""
    return make_experiences(LENGTHS)


@pytest.fixture
def make_agent(tiny_model, lora, randomise) -> Callable[..., DPO]:
    """Make an agent on a tiny model: ``make_agent(moved=True, architecture="llama", **arguments)``.

    ``moved`` gives the actor weights of its own, so that it differs from the reference.
    """

    def make(*, moved: bool = False, architecture: str = "llama", **arguments: Any) -> DPO:
        if "actor_network" not in arguments and "model_name" not in arguments:
            arguments["actor_network"] = tiny_model(architecture)
        agent = DPO(**{"lora_config": lora, "batch_size": 6, "lr": 1e-3, "nll_alpha": 0.0, **arguments})
        if moved:
            randomise(agent)
        return agent

    return make


class TokenSampler:
    """A generator that samples token by token with one full forward pass each; another engine than Transformers'."""

    def generate(self, agent, prompts, *, group_size, settings, tokenizer=None):
        agent.set_training_mode(False)
        with torch.no_grad(), agent.select_adapter("actor") as model, agent.sampling_stream.active():
            groups = [self._sample(model, prompt.expand(group_size, -1), settings) for prompt in prompts]
        return Completions(*([[row[column] for row in group] for group in groups] for column in range(3)))

    def _sample(self, model, prompts, settings):
        ids, taken, end = prompts, [], model.config.eos_token_id
        for _ in range(settings.max_new_tokens):
            scores = (model(input_ids=ids).logits[:, -1] / (settings.temperature or 1.0)).log_softmax(-1)
            tokens = scores.argmax(-1) if settings.temperature == 0 else torch.multinomial(scores.exp(), 1)[:, 0]
            taken.append(scores.gather(1, tokens[:, None])[:, 0])
            ids = torch.cat([ids, tokens[:, None]], dim=1)
        rows = []
        for tokens, logps in zip(ids[:, prompts.shape[1] :], torch.stack(taken, dim=1), strict=True):
            ends = (tokens == end).nonzero().flatten().tolist()
            length = ends[0] + 1 if ends else len(tokens)
            rows.append((tokens[:length], logps[:length], bool(ends)))
        return rows


class TokenJudge:
    """An environment of prompts that judges a completion by a function of its row number and tokens."""

    tokenizer = None
    success_reward = 1.0

    def __init__(self, prompts: Sequence[Tensor], reward: Callable[[int, Tensor], float], *, batch: int = 2) -> None:
        self.prompts, self.reward, self.batch = prompts, reward, batch

    def experiences(self, rows: Sequence[int], split: str = "train") -> dict[str, Any]:
        """What ``ReasoningGym`` would yield for some rows."""
        prompts = [self.prompts[row] for row in rows]
        pad = torch.nn.utils.rnn.pad_sequence
        return {
            "prompt_input_ids": pad(prompts, batch_first=True),
            "prompt_attention_mask": pad([torch.ones_like(prompt) for prompt in prompts], batch_first=True),
            "row": torch.tensor(rows),
            "split": split,
        }

    def test_batches(self, split: str = "test"):
        rows = list(range(len(self.prompts)))
        return [self.experiences(rows[i : i + self.batch], split) for i in range(0, len(rows), self.batch)]

    def judge(self, questions, completions):
        return [
            [self.reward(row, tokens) for tokens in group]
            for row, group in zip(questions.rows, completions.tokens, strict=True)
        ]


@pytest.fixture
def sampler() -> TokenSampler:
    """A real generator that needs nothing but the model."""
    return TokenSampler()


@pytest.fixture
def make_judge() -> Callable[..., TokenJudge]:
    """Make an environment: ``make_judge(prompts, reward, batch=2)``."""
    return TokenJudge


@pytest.fixture
def make_grpo(tiny_model, lora, randomise, sampler) -> Callable[..., GRPO]:
    """Make an agent on a tiny model: ``make_grpo(moved=True, architecture="llama", **arguments)``.

    ``moved`` gives the actor weights of its own, so that it differs from the reference.
    """

    def make(*, moved: bool = True, architecture: str = "llama", **arguments: Any) -> GRPO:
        if "actor_network" not in arguments and "model_name" not in arguments:
            arguments["actor_network"] = tiny_model(architecture)
        defaults = {"lora_config": lora, "lr": 1e-3, "beta": 0.2, "max_completion_length": 12, "generator": sampler}
        agent = GRPO(**defaults | {"vllm_importance_sampling_correction": False} | arguments)
        if moved:
            randomise(agent)
        return agent

    return make


ROLLOUT_LENGTHS = [(4, [3, 1, 5, 2]), (1, [4, 4, 2]), (7, [1, 6]), (3, [2, 3, 1, 1, 5])]


@pytest.fixture
def make_rollouts() -> Callable[..., RolloutBatch]:
    """Make judged completions of random tokens: ``make_rollouts([(prompt, [completion, ...]), ...], seed=0)``."""

    def make(lengths: Sequence[tuple[int, Sequence[int]]] = ROLLOUT_LENGTHS, *, seed: int = 0) -> RolloutBatch:
        generator = torch.Generator().manual_seed(seed)

        def draw(n: int) -> Tensor:
            return torch.randint(3, 97, (n,), generator=generator)

        return RolloutBatch(
            prompts=[draw(prompt) for prompt, _ in lengths],
            completions=[[draw(n) for n in group] for _, group in lengths],
            rewards=[torch.rand(len(group), generator=generator).tolist() for _, group in lengths],
            advantages=[None] * len(lengths),
            sampling_logps=[None] * len(lengths),
            finished=[[True] * len(group) for _, group in lengths],
            labels=[f"train row {10 + row}" for row in range(len(lengths))],
        )

    return make
