"""An agent that tells what it learned from."""

import pytest

from agiledpo.algorithms import DPO
from agiledpo.llm_envs import PreferenceGym


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
