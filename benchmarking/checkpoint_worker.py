"""A population that is saved and loaded again and again: the worker of `benchmarking.checkpoint_cost`."""

import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from agiledpo.algorithms import DPO
from agiledpo.checkpoint.run import read_run, restore_agents, save_run
from agiledpo.embedded.preferences import load_embedded_preferences
from agiledpo.llm_envs import PreferenceGym
from benchmarking.machine import LIBRARIES, package_versions
from benchmarking.memory import forget_peak, peak_resident_mb, resident_mb, settle
from benchmarking.processes import read_task, report


def cost(task: Mapping[str, Any]) -> dict[str, Any]:
    """Save and load a population.

    Args:
        task: ``model``, ``dtype``, ``agents``, ``rank``, ``repeats``, ``directory`` and ``threads``.

    Returns:
        ``phases``: for each of `benchmarking.checkpoint_cost.PHASES` ``seconds`` of each repeat and ``extra_mb``, the
        peak of the resident memory beyond what there was before. ``disk``: for ``agent`` and ``run`` the ``bytes`` and
        ``files``. ``plain_seconds``: of writing as many bytes as the run has into one file and flushing it.
        ``base_mb``: the base model's weights.
    """
    torch.set_num_threads(task["threads"])
    population, tokenizer = _population(task)
    weights = {weight.data_ptr(): weight for weight in population[0].base.base_state().values()}  # tied ones once
    base_mb = sum(weight.numel() * weight.element_size() for weight in weights.values()) / 1e6
    phases: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(dir=task["directory"], prefix="agiledpo-checkpoints-") as temporary:
        one, run = Path(temporary) / "agent", Path(temporary) / "run"

        def load_run() -> None:
            state = read_run(run)
            restore_agents(run, state["agents"], population)

        actions: dict[str, Callable[[], None]] = {
            "agent saved": lambda: population[0].save_checkpoint(one),
            "agent loaded": lambda: population[0].load_checkpoint(one, load_optimizer=True),
            "run saved": lambda: save_run(run, {}, population, metrics={}, tokenizer=tokenizer),
            "run loaded": load_run,
        }
        for name, action in actions.items():
            phases[name] = timed(action, task["repeats"])
        _check_loading(population, load_run)
        disk = {"agent": disk_use(one), "run": disk_use(run)}
        plain = timed(lambda: _write(Path(temporary) / "plain", disk["run"]["bytes"]), task["repeats"])
    return {
        "phases": phases,
        "disk": disk,
        "plain_seconds": plain["seconds"],
        "base_mb": base_mb,
        "versions": package_versions((*LIBRARIES, "agiledpo")),
    }


def timed(action: Callable[[], None], repeats: int) -> dict[str, Any]:
    """Seconds of each repeat of an action, and the largest memory that one of them took beyond what there was, MB.

    The first time is not counted: what is made once and kept (the fingerprint of the base model, for one) is made then.
    """
    action()
    seconds, extra = [], []
    for _ in range(repeats):
        settle()
        forget_peak()
        before = resident_mb()["resident"]
        start = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - start)
        extra.append(peak_resident_mb() - before)
    return {"seconds": seconds, "extra_mb": max(extra)}


def disk_use(directory: Path) -> dict[str, int]:
    """Bytes and number of the files in a directory; a file with several names counts once."""
    files = {}
    for path in directory.rglob("*"):
        status = path.lstat()
        if not path.is_dir():
            files[status.st_dev, status.st_ino] = status.st_size
    return {"bytes": sum(files.values()), "files": len(files)}


def _population(task: Mapping[str, Any]) -> tuple[list[DPO], PreTrainedTokenizerBase]:
    model = AutoModelForCausalLM.from_pretrained(
        task["model"], dtype=getattr(torch, task["dtype"]), local_files_only=True
    )
    tokenizer = AutoTokenizer.from_pretrained(task["model"], local_files_only=True)
    train, test = load_embedded_preferences()
    env = PreferenceGym(train.select(range(8)), test.select(range(2)), tokenizer, data_batch_size_per_gpu=2)
    population: list[DPO] = DPO.population(
        task["agents"],
        actor_network=model,
        pad_token_id=tokenizer.pad_token_id,
        lora_config=LoraConfig(
            r=task["rank"], lora_alpha=2 * task["rank"], target_modules="all-linear", task_type="CAUSAL_LM"
        ),
        batch_size=2,
        gradient_checkpointing=False,
    )
    batch = env.reset()
    for agent in population:
        agent.learn(batch)
    return population, tokenizer


def _check_loading(population: Sequence[DPO], load: Callable[[], None]) -> None:
    """Raise if what is loaded is not what the agents are now."""
    before = [[tensor.clone() for tensor in _learned(agent)] for agent in population]
    for agent in population:
        for tensor in _learned(agent):
            tensor.zero_()
    load()
    for agent, group in zip(population, before, strict=True):
        if not all(torch.equal(one, other) for one, other in zip(_learned(agent), group, strict=True)):
            raise AssertionError(f"Agent {agent.index} was not loaded as it was saved.")


def _learned(agent: DPO) -> list[torch.Tensor]:
    """What an agent has learned: weights, and their second moments."""
    weights = [parameter.detach() for parameter in agent.adapters.parameters("actor")]
    return [*weights, *(state["exp_avg_sq"] for state in agent.optimizer.state.values())]


def _write(file: Path, size: int) -> None:
    block = os.urandom(2**20)
    with file.open("wb") as handle:
        for _ in range(size // len(block)):
            handle.write(block)
        handle.write(block[: size % len(block)])
        handle.flush()
        os.fsync(handle.fileno())


if __name__ == "__main__":
    report(cost(read_task()))
