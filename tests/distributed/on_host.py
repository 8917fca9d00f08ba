"""What a process on one of two hosts does: ``on_host.py train FILE`` or ``on_host.py watch``."""

import sys
import time

import torch
from accelerate import Accelerator

from agiledpo.distributed.team import Team
from agiledpo.distributed.vigil import Vigil
from tests.distributed import work


def train(file: str) -> None:
    """Learn, and write what rank 0 knows."""
    found = work.curve(6)
    if Accelerator(cpu=True).is_main_process:
        torch.save(found, file)


def watch() -> None:
    """Keep a vigil with nothing else to do."""
    team = Team.of(Accelerator(cpu=True))
    with Vigil(team.rank, team.size, same=team.same, last_checkpoint=lambda: None, patience=3.0):
        team.wait()
        print("here", flush=True)
        time.sleep(60)


if __name__ == "__main__":
    {"train": train, "watch": watch}[sys.argv[1]](*sys.argv[2:])
