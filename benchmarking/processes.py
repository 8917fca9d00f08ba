"""Run one measurement in a fresh process, possibly of another Python environment."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarking.machine import REPOSITORY

MARK = "RESULT "


class WorkerError(RuntimeError):
    """A worker failed; the message ends with what it printed last."""


def run_worker(
    module: str,
    task: Mapping[str, Any],
    *,
    threads: int,
    python: str | Path = sys.executable,
    timeout: float | None = None,
) -> dict[str, Any]:
    """Run ``python -m module`` with a task and return the result that it reports with :func:`report`.

    Args:
        module: The worker, such as ``benchmarking.peers.trl_worker``; it reads the task with :func:`read_task`.
        task: What JSON can hold.
        threads: Threads for torch's and the BLAS libraries' pools.
        python: The interpreter of the environment to run in.
        timeout: Seconds until the worker is stopped; None for no limit.

    Raises:
        WorkerError: The worker failed, took too long or reported nothing.
    """
    command = [str(python), "-m", module, json.dumps(task)]
    try:
        done = subprocess.run(
            command,
            cwd=REPOSITORY,
            env=worker_environment(threads),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise WorkerError(f"{module} took more than {timeout:.0f} s with the task {dict(task)}.") from error
    results = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if done.returncode != 0 or not results:
        last = "\n".join((done.stdout + done.stderr).splitlines()[-30:])
        raise WorkerError(
            f"{module} ended with code {done.returncode} on the task {dict(task)}. Its last lines:\n{last}"
        )
    result: dict[str, Any] = json.loads(results[-1].removeprefix(MARK))
    return result


def worker_environment(threads: int) -> dict[str, str]:
    """The environment variables that all workers get alike."""
    return {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        # Threads that wait without spinning: several times faster where other processes use the machine too.
        "OMP_WAIT_POLICY": "passive",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TQDM_DISABLE": "1",
        "WANDB_MODE": "disabled",
        "CI": "1",  # keeps TRL from sending telemetry
        "PYTHONUNBUFFERED": "1",
    }


def read_task() -> dict[str, Any]:
    """The task that :func:`run_worker` handed to this process."""
    task: dict[str, Any] = json.loads(sys.argv[1])
    return task


def report(result: Mapping[str, Any]) -> None:
    """Hand a result back to :func:`run_worker`; libraries may print what they like around it."""
    print(f"\n{MARK}{json.dumps(result)}", flush=True)
