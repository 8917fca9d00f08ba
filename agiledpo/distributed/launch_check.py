"""Check a launch before a job waits in a queue for it: the processes, their devices, and whether the run would fit."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from peft import LoraConfig

from agiledpo.distributed.inspection import (
    AllReduce,
    RankFacts,
    available,
    disagreements,
    gather,
    inspect_rank,
    time_all_reduce,
)
from agiledpo.distributed.joining import check_launcher, check_together, wait_for_all
from agiledpo.distributed.memory import MemoryEstimate, Processes, WayOut, Workload, estimate, ways_out
from agiledpo.distributed.model_sizes import ModelSizes, count, read_config


@dataclass(frozen=True)
class PlannedRun:
    """A run to check.

    Attributes:
        model: Directory of the base model, or its name on the Hub; only its configuration is read.
        dtype: Of the base weights.
        lora: The agents' LoRA configuration.
        population: Number of agents.
        references: Reference adapters, see :class:`agiledpo.distributed.memory.Processes`.
        parallel: How agents meet processes, see there.
        batch_size: Rows per optimizer step, of all ranks together.
        micro_batch_size: Rows in one forward pass; None for as many as a rank has.
        max_length: Most tokens of a prompt with a completion.
        prompt_length: Those of them that are the prompt.
        completions: Completions of a row.
        gradient_checkpointing: Whether layers are computed again in backward.
        zero_stage: DeepSpeed's stage; None for what the launch says.
    """

    model: str
    dtype: torch.dtype
    lora: LoraConfig
    population: int
    references: int
    parallel: Literal["data", "population"]
    batch_size: int
    micro_batch_size: int | None
    max_length: int
    prompt_length: int
    completions: int
    gradient_checkpointing: bool
    zero_stage: int | None

    def workload(self, ranks: int, device: str) -> Workload:
        """What a rank computes.

        Args:
            ranks: Processes.
            device: Kind of device.
        """
        together = ranks if self.parallel == "data" else 1
        if self.batch_size < together:
            raise ValueError(
                f"batch_size={self.batch_size} is below the {together} ranks that share it, so some would have "
                "nothing to do. Use a larger batch, fewer ranks, or parallel='population'."
            )
        rows = -(-self.batch_size // together)
        return Workload(
            micro_batch_size=min(rows, self.micro_batch_size or rows),
            max_length=self.max_length,
            prompt_length=self.prompt_length,
            completions=self.completions,
            gradient_checkpointing=self.gradient_checkpointing,
            device="cuda" if device == "cuda" else "cpu",
        )

    def processes(self, ranks: int, zero_stage: int, limits: Mapping[str, int]) -> Processes:
        """How the population is spread.

        Args:
            ranks: Processes.
            zero_stage: DeepSpeed's stage.
            limits: What stage 3 gathers at most, see :class:`agiledpo.distributed.memory.Processes`.
        """
        return Processes(
            ranks=ranks,
            zero_stage=zero_stage,
            parallel=self.parallel,
            agents=self.population,
            references=self.references,
            **limits,
        )


@dataclass(frozen=True)
class LaunchReport:
    """What was found.

    Attributes:
        speaks: Whether this process is the one to say it.
        distributed_type: How Accelerate runs the processes.
        zero_stage: DeepSpeed's stage that the estimate is for; 0 without DeepSpeed.
        backend: What carries messages between processes; None for one process.
        ranks: Every process.
        all_reduce: Sums over all ranks, that were timed.
        sizes: The model and an adapter in numbers; None if the configuration could not be read.
        workload: What a rank computes.
        processes: How the population is spread.
        estimate: The memory that a rank needs.
        available: The memory that the rank with the least has, bytes.
        ways_out: What would make it fit, if it does not.
        problems: What is wrong, in sentences.
    """

    speaks: bool
    distributed_type: str
    zero_stage: int
    backend: str | None
    ranks: Sequence[RankFacts]
    all_reduce: Sequence[AllReduce]
    sizes: ModelSizes | None
    workload: Workload | None
    processes: Processes | None
    estimate: MemoryEstimate | None
    available: int
    ways_out: Sequence[WayOut]
    problems: Sequence[str]

    @property
    def fits(self) -> bool:
        """Whether every rank has the memory that it needs."""
        return self.estimate is not None and self.estimate.total <= self.available

    @property
    def passes(self) -> bool:
        """Whether the run can be launched like this."""
        return self.fits and not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON can hold it; memory in bytes."""
        sizes = self.sizes
        return {
            "world_size": len(self.ranks),
            "distributed_type": self.distributed_type,
            "zero_stage": self.zero_stage,
            "backend": self.backend,
            "ranks": [asdict(rank) for rank in self.ranks],
            "all_reduce": [asdict(timing) for timing in self.all_reduce],
            "base_parameters": None if sizes is None else sizes.base_elements,
            "adapter_parameters": None if sizes is None else sizes.adapter_elements,
            "micro_batch_size": None if self.workload is None else self.workload.micro_batch_size,
            "estimate": None if self.estimate is None else {**self.estimate.parts, "total": self.estimate.total},
            "available": self.available,
            "fits": self.fits,
            "ways_out": [asdict(way) for way in self.ways_out],
            "problems": list(self.problems),
            "passes": self.passes,
        }


def check_launch(run: PlannedRun, *, timeout: float) -> LaunchReport:
    """Check the launch that this process is part of; every process of it calls this.

    Args:
        run: What shall run.
        timeout: Seconds to wait for other processes, when joining and at each message.

    Returns:
        What was found, with the same verdict on every rank.

    Raises:
        NotAllHereError: A process did not join, or Accelerate takes each for the only one.
        RuntimeError: A process stopped answering.
    """
    check_launcher()
    meeting = wait_for_all(timeout)
    accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=timeout))])
    del meeting  # the process group has the store now
    try:
        check_together(accelerator.num_processes)
        return _check(run, accelerator)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _check(run: PlannedRun, accelerator: Accelerator) -> LaunchReport:
    plugin = accelerator.state.deepspeed_plugin
    stage = run.zero_stage if run.zero_stage is not None else 0 if plugin is None else int(plugin.zero_stage)
    sizes, digest, problem = _read_model(run)
    ranks = gather(inspect_rank(accelerator, model=digest, problem=problem))
    timings = time_all_reduce(accelerator.device)
    memory = available(ranks)
    problems = [*_unreadable(ranks), *disagreements(ranks)]
    workload = processes = needed = None
    ways: list[WayOut] = []
    try:
        workload = run.workload(len(ranks), accelerator.device.type)
        limits = _stage_3_limits({} if plugin is None else plugin.deepspeed_config)
        processes = run.processes(len(ranks), stage, limits)
        if sizes is not None:
            needed = estimate(sizes, workload, processes)
            ways = ways_out(sizes, workload, processes, memory) if needed.total > memory else []
    except ValueError as error:
        problems.append(str(error))
    return LaunchReport(
        speaks=accelerator.is_main_process,
        distributed_type=str(accelerator.distributed_type.value),
        zero_stage=stage,
        backend=dist.get_backend() if dist.is_initialized() else None,
        ranks=ranks,
        all_reduce=timings,
        sizes=sizes,
        workload=workload,
        processes=processes,
        estimate=needed,
        available=memory,
        ways_out=ways,
        problems=problems,
    )


def _read_model(run: PlannedRun) -> tuple[ModelSizes | None, str | None, str | None]:
    """The model in numbers and a digest of its configuration, or why there is none here: hosts have their own disks."""
    try:
        config = read_config(run.model)
        sizes = count(config, run.lora, run.dtype)
    except (OSError, ValueError) as error:
        return (
            None,
            None,
            f"--model={run.model!r} is no directory with a model here, nor a name that can be read: {error}",
        )
    text = json.dumps(config.to_diff_dict(), sort_keys=True, default=str)
    return sizes, hashlib.sha256(text.encode()).hexdigest()[:12], None


def _unreadable(ranks: Sequence[RankFacts]) -> list[str]:
    held: dict[str, list[RankFacts]] = {}
    for rank in ranks:
        if rank.problem is not None:
            held.setdefault(rank.problem, []).append(rank)
    everywhere = len(held) == 1 and len(next(iter(held.values()))) == len(ranks)
    return [
        problem if everywhere else f"Rank {', '.join(f'{r.rank} on {r.host}' for r in where)}: {problem}"
        for problem, where in held.items()
    ]


def _stage_3_limits(config: Mapping[str, Any]) -> dict[str, int]:
    """Limits of what stage 3 gathers, where the launch sets them to numbers."""
    names = {
        "max_live_parameters": "stage3_max_live_parameters",
        "persistence_threshold": "stage3_param_persistence_threshold",
    }
    given = config.get("zero_optimization", {})
    found = {ours: given.get(theirs) for ours, theirs in names.items()}
    return {name: int(value) for name, value in found.items() if isinstance(value, int | float)}
