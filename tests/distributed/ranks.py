"""Run a function in several real processes, as a launcher would start them, and collect what they return."""

import faulthandler
import io
import multiprocessing
import os
import socket
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

# Imported once, by the process that the ranks are forked from.
_PRELOADED = ["agiledpo.algorithms", "agiledpo.llm_envs", "agiledpo.training.train_llm", "tests.distributed.work"]
_ZERO = {"ACCELERATE_USE_DEEPSPEED": "true", "DS_ACCELERATOR": "cpu"}


class RankFailedError(AssertionError):
    """A rank raised; the message ends with its traceback."""


def run_ranks(
    work: Callable[..., Any],
    *arguments: Any,
    ranks: int = 2,
    environment: Mapping[str, str] | None = None,
    timeout: float = 120.0,
) -> list[Any]:
    """Call a function in several processes and return what it returns in each, by rank.

    Args:
        work: A function of a module that other processes can import.
        *arguments: What it is called with, the same in every process.
        ranks: Number of processes; with 1 the function runs in a process of its own too.
        environment: Variables beside those of a launcher.
        timeout: Seconds after which it is an error that a process has not returned.

    Raises:
        RankFailedError: One raised, died or took too long.
    """
    outcomes = run_ranks_that_may_fail(work, *arguments, ranks=ranks, environment=environment, timeout=timeout)
    failed = [f"rank {rank}: {outcome}" for rank, (well, outcome) in enumerate(outcomes) if not well]
    if failed:
        raise RankFailedError("\n".join(failed))
    return [outcome for _, outcome in outcomes]


def run_ranks_that_may_fail(
    work: Callable[..., Any],
    *arguments: Any,
    ranks: int = 2,
    environment: Mapping[str, str] | None = None,
    timeout: float = 120.0,
) -> list[tuple[bool, Any]]:
    """The same; for each process whether it returned, and what, or the traceback of what it raised."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    port = free_port()
    processes, ends = [], []
    for rank in range(ranks):
        ours, theirs = context.Pipe(duplex=False)
        variables = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(ranks),
            "LOCAL_WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
            **(environment or {}),
        }
        process = context.Process(target=_rank, args=(theirs, variables, work, arguments, timeout), daemon=True)
        process.start()
        theirs.close()
        processes.append(process)
        ends.append(ours)
    try:
        return _collected(ends, timeout)
    finally:
        for process in processes:
            process.kill()
            process.join()


def zero_environment(stage: int, **settings: str) -> dict[str, str]:
    """Environment in which ``Accelerator()`` runs DeepSpeed with a ZeRO stage on the CPU."""
    return {**_ZERO, "ACCELERATE_DEEPSPEED_ZERO_STAGE": str(stage), **settings}


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _collected(ends: Sequence[Connection], timeout: float) -> list[tuple[bool, Any]]:
    outcomes: list[tuple[bool, Any]] = [(False, f"did not return within {timeout} s")] * len(ends)
    waiting, until = dict(zip(ends, range(len(ends)), strict=True)), time.monotonic() + timeout
    while waiting and (left := until - time.monotonic()) > 0:
        for end in wait(list(waiting), left):
            rank = waiting.pop(end)  # type: ignore[call-overload]
            try:
                outcomes[rank] = torch.load(io.BytesIO(end.recv_bytes()), weights_only=False)  # type: ignore[union-attr]
            except EOFError:
                outcomes[rank] = (False, "died")
            if not outcomes[rank][0]:
                until = min(until, time.monotonic() + 20.0)  # the others may say why, or hang
    return outcomes


def _send(end: Connection, outcome: tuple[bool, Any]) -> None:
    # Not Connection.send, with which tensors would lie in memory that goes with the process.
    buffer = io.BytesIO()
    torch.save(outcome, buffer)
    end.send_bytes(buffer.getvalue())


def _rank(
    end: Connection, variables: dict[str, str], work: Callable[..., Any], arguments: Sequence[Any], timeout: float
) -> None:
    os.environ.update(variables)
    faulthandler.dump_traceback_later(0.9 * timeout)  # a process that waits for another says where
    torch.set_num_threads(1)
    try:
        _send(end, (True, work(*arguments)))
    except BaseException:
        _send(end, (False, traceback.format_exc()))
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
