"""What every worker is asked to do and what it answers, so that all systems do the same work."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from benchmarking.machine import LIBRARIES, package_versions
from benchmarking.memory import peak_resident_mb
from benchmarking.pairs import Pair, PairStatistics, read_pairs


@dataclass
class Task:
    """One training run: every batch of the file once, in its order.

    The first batch warms up and is not counted.

    Attributes:
        pairs: File of `benchmarking.pairs.write_pairs`.
        model: Directory of the base model.
        dtype: Name of the dtype that the base model is loaded in.
        batch_size: Pairs per optimizer step.
        max_length: Largest number of tokens of a prompt and a completion; no pair of the file is longer.
        threads: Threads of torch.
        lr: Learning rate.
        beta: DPO's beta.
        max_grad_norm: Largest gradient norm.
        options: What makes this configuration of the system different from its others.
    """

    pairs: str
    model: str
    dtype: str
    batch_size: int
    max_length: int
    threads: int
    lr: float = 1e-4
    beta: float = 0.1
    max_grad_norm: float = 0.1
    options: dict[str, Any] = field(default_factory=dict)

    def load_pairs(self) -> list[Pair]:
        """All pairs, those of the warm-up batch first."""
        return read_pairs(self.pairs)

    def load_model(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The base model and its tokenizer."""
        dtype = getattr(torch, self.dtype)
        model = AutoModelForCausalLM.from_pretrained(self.model, dtype=dtype, local_files_only=True)
        return model, AutoTokenizer.from_pretrained(self.model, local_files_only=True)

    def lora_config(self) -> LoraConfig:
        """Rank 16 on all linear layers of the decoder."""
        return LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")


def start_adapter(parameters: Mapping[str, Tensor], adapter: str = "") -> str:
    """Give an adapter the same starting point in every system, so that their losses can be compared step by step.

    Args:
        parameters: Parameters by name.
        adapter: The adapter's name inside the names of its parameters; "" if the names leave it out.

    Returns:
        The dtype of the adapter's weights.

    Raises:
        ValueError: There is no such adapter.
    """
    tail = f".{adapter}.weight" if adapter else ".weight"
    generator = torch.Generator().manual_seed(0)
    down = sorted(name for name in parameters if name.endswith(f".lora_A{tail}"))
    up = [name for name in parameters if name.endswith(f".lora_B{tail}")]
    if not down or len(down) != len(up):
        raise ValueError(f"No LoRA adapter {adapter!r} among {list(parameters)[:4]} ...")
    with torch.no_grad():
        for name in down:
            weight = parameters[name]
            bound = 1 / math.sqrt(weight.shape[1])  # PEFT's own: kaiming_uniform with a = sqrt(5)
            weight.copy_((torch.rand(weight.shape, generator=generator) * 2 - 1) * bound)
        for name in up:
            parameters[name].zero_()
    return str(parameters[down[0]].dtype).removeprefix("torch.")


class Clock:
    """Time from the end of the warm-up step to the end of the last step."""

    def __init__(self) -> None:
        self._ends: list[float] = []

    def step_done(self) -> None:
        """Call after each optimizer step."""
        self._ends.append(time.perf_counter())

    @property
    def seconds(self) -> float:
        """Of all steps but the first."""
        return self._ends[-1] - self._ends[0]

    @property
    def steps(self) -> int:
        """Steps done, the first included."""
        return len(self._ends)


def answer(
    task: Task, clock: Clock, losses: list[float], lora_dtype: str, *, system: str, extra_seconds: float = 0.0
) -> dict[str, Any]:
    """The result of a run, for `benchmarking.processes.report`.

    Args:
        task: The task.
        clock: Ran over its steps.
        losses: Loss of each step, the warm-up step first.
        lora_dtype: Dtype of the adapter's weights.
        system: Name of the system's package.
        extra_seconds: What was spent for the counted pairs outside of the steps.

    Raises:
        ValueError: Not every batch was one step.
    """
    pairs = task.load_pairs()
    batches = math.ceil(len(pairs) / task.batch_size)
    if clock.steps != batches or len(losses) != batches:
        raise ValueError(f"{clock.steps} steps and {len(losses)} losses for {batches} batches of {task.batch_size}.")
    counted = PairStatistics.of(pairs[task.batch_size :])
    return {
        "seconds": clock.seconds + extra_seconds,
        "seconds_outside_steps": extra_seconds,
        "pairs": counted.pairs,
        "tokens": counted.tokens,
        "completion_tokens": counted.completion_tokens,
        "peak_mb": peak_resident_mb(),
        "losses": losses,
        "lora_dtype": lora_dtype,
        "versions": package_versions((*LIBRARIES, system)),
    }
