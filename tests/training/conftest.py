"""An agent that tells what it learned from."""

import pytest

from agiledpo.algorithms import DPO


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
