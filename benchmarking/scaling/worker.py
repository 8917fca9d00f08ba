"""Measure one point in a process of its own: train a population on the batches of a file of token ids."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from agiledpo.algorithms import DPO
from agiledpo.scoring import PreferenceBatch, PrefixSharing
from benchmarking.memory import forget_peak, peak_resident_mb
from benchmarking.processes import read_task, report

TokenPair = tuple[list[int], list[int], list[int]]


@dataclass(frozen=True)
class Task:
    """What is measured.

    Attributes:
        pairs: File of `write_token_pairs`.
        warm_up: How many of its pairs, the first ones, make a step that does not count.
        model: Directory of the model, or None for a small Llama of random weights.
        vocabulary: Of that Llama.
        dtype: Of the base weights.
        batch_size: Pairs per step.
        agents: Size of the population; every agent learns from every batch before the next one comes.
        prefix_sharing: As for `DPO`.
        threads: Of torch.
    """

    pairs: str
    warm_up: int
    model: str | None
    vocabulary: int | None
    dtype: str
    batch_size: int
    agents: int
    prefix_sharing: PrefixSharing
    threads: int

    def as_json(self) -> dict[str, Any]:
        """For `benchmarking.processes.run_worker`."""
        return asdict(self)


def write_token_pairs(pairs: Sequence[TokenPair], path: Path) -> None:
    """Write prompt, chosen and rejected ids, one pair a line."""
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))


def read_token_pairs(path: Path) -> PreferenceBatch:
    """Read what `write_token_pairs` wrote."""
    rows = [[torch.tensor(ids) for ids in json.loads(line)] for line in path.read_text().splitlines()]
    prompts, chosen, rejected = zip(*rows, strict=True)
    return PreferenceBatch(prompts, chosen, rejected, [f"pair {i}" for i in range(len(rows))])


def run(task: Task) -> dict[str, float]:
    """Train and measure.

    Returns:
        ``seconds`` of all steps after the warm-up, ``pairs`` that each agent learned from, ``tokens`` of them (prompt
        once), ``weights_mb`` of the base model, ``resident_mb`` before the first step, ``step_peak_mb`` from there on
        and ``peak_mb`` of the whole process.
    """
    torch.set_num_threads(task.threads)
    model = _model(task)
    agents = _population(model, task)
    everything = read_token_pairs(Path(task.pairs))
    counted = everything.slice(task.warm_up, len(everything))
    before = peak_resident_mb()
    forget_peak()
    resident = peak_resident_mb()
    for agent in agents:
        agent.learn(everything.slice(0, task.warm_up))
    started = time.perf_counter()
    for start, stop in counted.spans(task.batch_size):
        for agent in agents:
            agent.learn(counted.slice(start, stop))
    seconds = time.perf_counter() - started
    # Not below where it began: the kernel sums what its processors counted lazily, and may say a page too few.
    step_peak = max(resident, peak_resident_mb())
    return {
        "seconds": seconds,
        "pairs": len(counted),
        "tokens": counted.tokens,
        "weights_mb": sum(p.numel() * p.element_size() for p in _base_parameters(model)) / 1e6,
        "resident_mb": resident,
        "step_peak_mb": step_peak,
        "peak_mb": max(before, step_peak),
    }


def _model(task: Task) -> PreTrainedModel:
    dtype = getattr(torch, task.dtype)
    if task.model is not None:
        loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(task.model, dtype=dtype, local_files_only=True)
        return loaded
    if task.vocabulary is None:
        raise ValueError("The task names neither a model nor a vocabulary.")
    config = LlamaConfig(
        vocab_size=task.vocabulary,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        tie_word_embeddings=True,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return made.eval()


def _population(model: PreTrainedModel, task: Task) -> list[DPO]:
    """Agents set up like the one of ``compare_peers``; each differs in its initialisation."""
    return [
        DPO(
            actor_network=model,
            index=index,
            seed=index,
            lora_config=LoraConfig(
                r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
            ),
            batch_size=task.batch_size,
            lr=1e-4,
            nll_alpha=0.0,
            gradient_checkpointing=False,
            use_separate_reference_adapter=False,
            prefix_sharing=task.prefix_sharing,
        )
        for index in range(task.agents)
    ]


def _base_parameters(model: PreTrainedModel) -> list[torch.nn.Parameter]:
    return [parameter for name, parameter in model.named_parameters() if ".lora_" not in name]


def main() -> None:
    report(run(Task(**read_task())))


if __name__ == "__main__":
    main()
