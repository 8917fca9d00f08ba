"""A disk that fills up at any file is an OSError, and leaves what was there."""

import resource
import signal

import pytest
import torch

from agiledpo.algorithms import DPO
from agiledpo.disk import disk_errors


@pytest.fixture
def size_limit():
    """Let every file that grows beyond a size fail as on a full disk."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def limit(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_wherever_it_is_full_the_old_checkpoint_is_intact(tiny_model, tiny_tokenizer, lora, tmp_path, size_limit):
    agent = DPO(actor_network=tiny_model(), lora_config=lora)
    agent.save_checkpoint(tmp_path / "saved", tokenizer=tiny_tokenizer)
    files = {file: file.read_bytes() for file in (tmp_path / "saved").rglob("*") if file.is_file()}
    sizes = sorted(map(len, files.values()))
    agent.lr = 3e-4
    for size in (0, sizes[0] // 2, *(size - 1 for size in sizes)):
        size_limit(size)
        with pytest.raises(OSError):  # noqa: PT011 (whose message is the system's or a library's)
            agent.save_checkpoint(tmp_path / "saved", tokenizer=tiny_tokenizer)
        size_limit(resource.RLIM_INFINITY)
        assert [path.name for path in tmp_path.iterdir()] == ["saved"]
        assert {file: file.read_bytes() for file in (tmp_path / "saved").rglob("*") if file.is_file()} == files
    agent.save_checkpoint(tmp_path / "saved")
    assert torch.load(tmp_path / "saved" / "attributes.pt", weights_only=True)["hyperparameters"]["lr"] == 3e-4


def test_other_errors_are_left_alone(tmp_path):
    with pytest.raises(RuntimeError, match="out of memory") as caught, disk_errors(tmp_path):
        raise RuntimeError("CUDA out of memory")
    assert type(caught.value) is RuntimeError
