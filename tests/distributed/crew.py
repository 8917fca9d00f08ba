"""Makes processes that keep a vigil and die in given ways: reads crews from stdin and writes how each ended.

It forks them, so that torch is imported once for all crews.
"""

import ctypes
import datetime
import json
import os
import signal
import sys
import time
from pathlib import Path

import torch

from agiledpo.distributed.vigil import Vigil


def raises() -> None:
    raise ValueError("no such pair: 17\nand more of it")


def leaves_a_child_behind() -> None:
    if os.fork() == 0:
        time.sleep(20)
        os._exit(0)
    time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGKILL)


def breaks_off() -> None:
    raise RuntimeError("[third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:1")


def interrupted() -> None:
    raise KeyboardInterrupt


DEEDS = {
    "stays": lambda: time.sleep(60),
    "leaves": lambda: None,
    "leaves late": lambda: time.sleep(1.5),
    "is killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "exits": lambda: os._exit(3),
    "raises": raises,
    "is cut off": breaks_off,
    "is interrupted": interrupted,
    "is stopped": lambda: sys.exit(143),
    "is stopped late": lambda: (time.sleep(1), sys.exit(143)),
    "leaves a child behind": leaves_a_child_behind,
    # PyDLL keeps the interpreter's lock, so that no thread of the process runs meanwhile.
    "stands still": lambda: ctypes.PyDLL(None).sleep(3),
    "waits for all": lambda: torch.distributed.all_reduce(torch.ones(3)),
    "never comes": lambda: None,
}


def member(rank: int, crew: dict) -> None:
    directory = Path(crew["directory"])
    os.dup2(os.open(directory / f"stderr_{rank}", os.O_WRONLY | os.O_CREAT), 2)
    deed = crew["deeds"][rank]
    if "waits for all" in crew["deeds"]:
        torch.distributed.init_process_group(
            "gloo", f"file://{directory}/group", datetime.timedelta(seconds=60), len(crew["deeds"]), rank
        )
    vigils = 0

    def same(value: object) -> object:
        nonlocal vigils
        vigils += 1
        file = directory / f"same_{vigils}"
        if rank == 0:
            file.with_suffix(".part").write_text(json.dumps(value))
            file.with_suffix(".part").rename(file)
        while not file.exists():
            time.sleep(0.01)
        if deed == "never comes":
            os.kill(os.getpid(), signal.SIGKILL)
        return json.loads(file.read_text())

    def vigil() -> Vigil:
        return Vigil(
            rank,
            len(crew["deeds"]),
            same=same,
            last_checkpoint=lambda: crew["checkpoint"],
            patience=crew["patience"],
        )

    for _ in range(crew["repeated"]):
        with vigil():
            pass
    with vigil():
        (directory / f"here_{rank}").touch()
        while len(list(directory.glob("here_*"))) < sum(deed != "never comes" for deed in crew["deeds"]):
            time.sleep(0.01)
        DEEDS[deed]()
    print("has gone on", file=sys.stderr)


def run(crew: dict) -> list[int]:
    children = {}
    for rank in range(len(crew["deeds"])):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                member(rank, crew)
                code = 0
            except SystemExit as error:
                code = error.code
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                os._exit(code)
        children[child] = rank
    codes = {}
    while children:
        child, status = os.wait()
        codes[children.pop(child)] = os.waitstatus_to_exitcode(status)
    return [codes[rank] for rank in sorted(codes)]


for line in sys.stdin:
    began = time.monotonic()
    ended = run(json.loads(line))
    print(json.dumps({"codes": ended, "seconds": time.monotonic() - began}), flush=True)
