"""Processes on several hosts, launched on each as users do it."""

import sys
import time
from pathlib import Path

import pytest
import torch

from tests.distributed import work
from tests.distributed.hosts import ROOT, two_hosts, why_no_hosts

SCRIPT = str(Path(__file__).parent / "on_host.py")
PORT = "29533"  # nobody else's: the hosts are new


@pytest.fixture(scope="module")
def hosts():
    if (reason := why_no_hosts()) is not None:
        pytest.skip(reason)
    with two_hosts() as pair:
        yield pair


def test_training_on_two_hosts_is_that_of_one_process(hosts, tmp_path) -> None:
    launched = []
    for rank, host in enumerate(hosts):
        command = [
            sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch",
            "--config_file", str(ROOT / "configs/accelerate/ddp.yaml"),
            "--num_machines", "2", "--num_processes", "2", "--machine_rank", str(rank),
            "--main_process_ip", hosts[0].address, "--main_process_port", PORT,
            SCRIPT, "train", str(tmp_path / "found"),
        ]  # fmt: skip
        output = tmp_path / f"output_{rank}"
        launched.append(host.start(*command, output=output, environment={"ACCELERATE_USE_CPU": "true"}))
    for rank, process in enumerate(launched):
        assert process.wait(90) == 0, (tmp_path / f"output_{rank}").read_text()[-3000:]
    found = torch.load(tmp_path / "found")
    alone = work.curve(6, parallel=False)
    for ours, theirs in zip(found["metrics"], alone["metrics"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-5)
    for name, tensor in alone["weights"].items():
        assert (found["weights"][name] - tensor).abs().max() < 1e-5


def test_a_host_that_goes_off_the_network_is_missed_on_both_sides(hosts, tmp_path) -> None:
    watching, outputs = [], [tmp_path / "output_0", tmp_path / "output_1"]
    for rank, host in enumerate(hosts):
        environment = {
            "RANK": str(rank),
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "1",
            "MASTER_ADDR": hosts[0].address,
            "MASTER_PORT": PORT,
        }
        watching.append(host.start(sys.executable, SCRIPT, "watch", output=outputs[rank], environment=environment))
    until = time.monotonic() + 60
    while not all("here" in output.read_text() for output in outputs):
        assert time.monotonic() < until, [output.read_text()[-2000:] for output in outputs]
        time.sleep(0.1)
    hosts[1].unplug()
    began = time.monotonic()
    assert [process.wait(30) for process in watching] == [1, 1]
    assert 1.0 < time.monotonic() - began < 20  # nobody could be told: it takes the kernels' patience
    for output, missed in zip(outputs, (1, 0), strict=True):
        assert f"rank {missed} (host " in output.read_text()
        assert "has died without a word" in output.read_text()
