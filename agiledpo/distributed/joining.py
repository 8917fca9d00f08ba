"""Whether all processes that a launcher announced are there, and who is missing, before anything waits for them."""

import os
import socket
import time
from datetime import timedelta

from torch.distributed import PrefixStore, Store, TCPStore

_PAUSE = 0.1


class NotAllHereError(RuntimeError):
    """Not all processes joined in time.

    Args:
        message: Who is missing, and what to look at.
        speaks: Whether this process is the one to say so.
    """

    def __init__(self, message: str, *, speaks: bool) -> None:
        super().__init__(message)
        self.speaks = speaks


def check_launcher() -> None:
    """Check that tasks which Slurm started know of each other.

    Raises:
        NotAllHereError: There are several, and each would take itself for the only process.
    """
    tasks, rank = int(os.environ.get("SLURM_NTASKS", "1")), int(os.environ.get("SLURM_PROCID", "0"))
    alone = "RANK" not in os.environ and "LOCAL_RANK" not in os.environ
    # Inside `salloc` or a batch script, too, SLURM_NTASKS is set; srun's tasks alone have a step.
    if alone and tasks > 1 and "SLURM_STEP_ID" in os.environ and os.environ.get("SLURM_LOCALID") is not None:
        raise NotAllHereError(
            f"srun started {tasks} tasks, but RANK and WORLD_SIZE are not set, so each would run alone. Start one task "
            "for each node, which runs `accelerate launch` or `torchrun`, or set RANK=$SLURM_PROCID "
            "LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS MASTER_ADDR and MASTER_PORT in each task.",
            speaks=rank == 0,
        )


def check_together(processes: int) -> None:
    """Check that Accelerate has found the processes that the launcher announced.

    Args:
        processes: As many as Accelerate has found.

    Raises:
        NotAllHereError: It takes each for the only one, as it does on machines without a GPU unless told otherwise.
    """
    announced = int(os.environ.get("WORLD_SIZE", "1"))
    if processes != announced:
        raise NotAllHereError(
            f"The launcher started {announced} processes, but Accelerate finds {processes}: without a GPU each would "
            "train alone. For processes on CPUs set ACCELERATE_USE_CPU=true, "
            "or make Accelerator(cpu=True).",
            speaks=os.environ.get("RANK", "0") == "0",
        )


def wait_for_all(timeout: float) -> Store | None:
    """Wait until every process is there that the launcher announced through ``RANK`` and ``WORLD_SIZE``.

    Args:
        timeout: Seconds to wait.

    Returns:
        Where they met, to be kept until the process group is made; None for a process that was started alone.

    Raises:
        NotAllHereError: Some did not come; they are named.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or "RANK" not in os.environ:
        return None
    rank = int(os.environ["RANK"])
    address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if address is None or port is None:
        raise NotAllHereError(
            f"RANK={rank} and WORLD_SIZE={size} are set, but not MASTER_ADDR and MASTER_PORT, where processes meet. "
            "Set them to rank 0's host and a free port there, or start through `accelerate launch` or `torchrun`.",
            speaks=rank == 0,
        )
    host = socket.gethostname()
    here = f"rank {rank} on {host}"
    deadline = time.monotonic() + timeout
    # torchrun and accelerate keep the store themselves; otherwise rank 0 does, here and later in the process group.
    keeps = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    try:
        meeting = TCPStore(
            address,
            int(port),
            is_master=keeps,
            timeout=timedelta(seconds=timeout),
            wait_for_workers=False,
            multi_tenant=True,
        )
    except RuntimeError as error:
        problem = "could not open" if keeps else "found nobody at"
        raise NotAllHereError(
            f"{here} {problem} {address}:{port} within {timeout:g} s: {str(error).splitlines()[0]} Check that rank 0 "
            "runs, that its address can be reached from here, and that the port is free.",
            speaks=True,
        ) from error
    store = PrefixStore(f"agiledpo/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", meeting)
    store.set(str(rank), host)
    missing = list(range(size))
    while missing:
        missing = [other for other in missing if not store.check([str(other)])]
        if not missing or time.monotonic() > deadline:
            break
        time.sleep(_PAUSE)
    if missing:
        present = [other for other in range(size) if other not in missing]
        hosts = ", ".join(f"{other} on {store.get(str(other)).decode()}" for other in present)
        named = f"rank{'s' * (len(missing) > 1)} {', '.join(map(str, missing))}"
        raise NotAllHereError(
            f"{len(missing)} of {size} processes did not join within {timeout:g} s: {named}. Here are: {hosts}. Look "
            f"at what those processes printed, and whether their nodes reach {address}:{port}.",
            speaks=rank == present[0],
        )
    return store
