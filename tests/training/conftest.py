"""An agent that tells what it learned from, and environments of tiny rows."""

import pytest
import torch
from datasets import Dataset

from agiledpo.algorithms import DPO
from agiledpo.llm_envs import PreferenceGym, ReasoningGym


class Recorder(DPO):
    """A DPO agent that also notes the rows it learns from, step by step; the notes stay where the agent's place is."""

    def __init__(self, *args, **kwargs):
        self.rows = []
        super().__init__(*args, **kwargs)

    def learn(self, experiences, training=True):
        if training:
            self.rows.append(list(experiences.labels))
        return super().learn(experiences, training)


@pytest.fixture
def recorder() -> type[Recorder]:
    return Recorder


@pytest.fixture
def make_env(make_pairs, tiny_tokenizer):
    def make(train=24, test=7, batch=4, **arguments):
        return PreferenceGym(
            make_pairs(train), make_pairs(test, seed=1), tiny_tokenizer, data_batch_size_per_gpu=batch, **arguments
        )

    return make


def share_of_low_words(completion: str, answer: str, question: str) -> float:
    """Reward: which part of the completion is words below ``w50``; 0 where it is empty."""
    words = [word for word in completion.split() if word.startswith("w")]
    return sum(int(word[1:]) < 50 for word in words) / len(words) if words else 0.0


@pytest.fixture
def low_words():
    """The reward of :func:`make_reasoning_env`, a function of completion, answer and question."""
    return share_of_low_words


@pytest.fixture
def make_questions():
    """Make prompts in the tiny tokenizer's words, with an answer that no reward here reads."""

    def make(rows, *, seed=0):
        generator = torch.Generator().manual_seed(seed)

        def words():
            length = int(torch.randint(1, 5, (), generator=generator))
            return " ".join(f"w{i}" for i in torch.randint(4, 97, (length,), generator=generator).tolist())

        return Dataset.from_list([{"prompt": words(), "answer": "w4"} for _ in range(rows)])

    return make


@pytest.fixture
def make_reasoning_env(make_questions, tiny_tokenizer):
    def make(train=12, test=6, batch=4, reward=share_of_low_words, **arguments):
        return ReasoningGym(
            make_questions(train),
            make_questions(test, seed=1),
            tiny_tokenizer,
            reward,
            data_batch_size_per_gpu=batch,
            **arguments,
        )

    return make
