"""Values and errors arrive at other processes as they were sent."""

import pickle
import threading

import pytest
import torch

from agiledpo.adapters.files import AdapterFileError
from agiledpo.algorithms.core.errors import PopulationDivergedError
from agiledpo.checkpoint import CheckpointError
from agiledpo.data.errors import DatasetError
from agiledpo.data.rollouts.errors import UnusableRolloutError
from agiledpo.distributed.messages import Failure, packed, unpacked
from agiledpo.embedded.model import EmbeddedModelError
from agiledpo.generation.vllm_server import VLLMError
from agiledpo.llm_envs.rewards import RewardError
from agiledpo.losses.errors import NonFiniteLossError
from agiledpo.training.interruption import TrainingInterrupted


@pytest.mark.parametrize(
    "kind",
    [
        AdapterFileError,
        CheckpointError,
        EmbeddedModelError,
        NonFiniteLossError,
        PopulationDivergedError,
        RewardError,
        VLLMError,
        OSError,
        KeyError,
    ],
)
def test_errors_arrive_as_what_they_are(kind):
    error = pickle.loads(pickle.dumps(Failure(kind("what is wrong"), "host, process 7"))).error
    assert type(error) is kind
    assert str(error) == str(kind("what is wrong"))


def test_errors_with_parts_arrive_with_them():
    full = pickle.loads(pickle.dumps(Failure(OSError(28, "No space left on device", "/place"), ""))).error
    assert (full.errno, full.filename, str(full)) == (28, "/place", "[Errno 28] No space left on device: '/place'")
    stop = pickle.loads(pickle.dumps(TrainingInterrupted("stopped", 15)))
    assert (stop.code, str(stop)) == (143, "stopped")
    bad = DatasetError("it is empty", remedy="Fill it.", dataset="train", row=3)
    arrived = pickle.loads(pickle.dumps(Failure(bad, ""))).error
    assert type(arrived) is DatasetError
    assert (str(arrived), arrived.row, arrived.remedy) == (str(bad), 3, "Fill it.")
    line = UnusableRolloutError("a.jsonl", 3, "reward", "it is missing")
    assert str(line) in str(pickle.loads(pickle.dumps(Failure(line, ""))).error)


def test_an_error_that_cannot_travel_is_quoted():
    class HereOnlyError(ValueError):
        pass

    held = ValueError("holds a lock")
    held.lock = threading.Lock()
    for error, quoted in ((HereOnlyError("odd"), "HereOnlyError: odd"), (held, "ValueError: holds a lock")):
        arrived = pickle.loads(pickle.dumps(Failure(error, ""))).error
        assert type(arrived) is RuntimeError
        assert str(arrived) == quoted


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.float8_e4m3fn])
@pytest.mark.parametrize("shape", [(), (0,), (3, 5), (300, 200)])
def test_tensors_arrive_to_the_bit(dtype, shape):
    tensor = torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    message, apart = packed({"one": tensor, "again": [tensor.unsqueeze(0)]})
    arrived, holes = unpacked(message)
    assert len(holes) == len(apart)
    for hole, part in zip(holes, apart, strict=True):
        hole.copy_(part)
    assert arrived["one"].dtype == dtype
    assert arrived["one"].shape == tensor.shape
    assert torch.equal(
        arrived["one"].view(torch.uint8) if shape else arrived["one"].reshape(1).view(torch.uint8),
        tensor.view(torch.uint8) if shape else tensor.reshape(1).view(torch.uint8),
    )
    assert arrived["again"][0].shape == (1, *shape)


def test_a_part_of_a_large_tensor_takes_only_its_own_bytes():
    """As an optimizer's moments are when they have been read from a file."""
    parts = list(torch.arange(1_000_000.0).split(1000))
    message, apart = packed(parts)
    assert len(message) + sum(map(len, apart)) < 1.1 * 4_000_000
    columns = torch.arange(40_000.0).reshape(200, 200).t()
    message, apart = packed(columns)
    arrived, holes = unpacked(message)
    holes[0].copy_(apart[0])
    assert torch.equal(arrived, columns)
