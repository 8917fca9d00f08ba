"""One rank of a step whose traffic and memory are counted: the worker of `benchmarking.scaling_plan`."""

import gc
import os
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin, InitProcessGroupKwargs
from peft import LoraConfig
from transformers import AutoConfig, AutoModelForCausalLM

from agiledpo.algorithms import DPO
from agiledpo.scoring import PreferenceBatch
from benchmarking.live_tensors import PeakOfTensors
from benchmarking.processes import read_task, report
from benchmarking.traffic import Traffic, bytes_on_the_wire


def step(task: Mapping[str, Any]) -> dict[str, Any]:
    """Make a population and count what a step of one agent sends and holds.

    Args:
        task: ``config`` of a Llama, ``lora_rank``, ``agents``, ``pairs``, ``micro_batch_size``, ``max_length`` of a
            prompt with a completion, ``prompt_length``, ``checkpointing``, ``stage`` (None without
            DeepSpeed) and ``zero`` settings.

    Returns:
        ``sent`` and ``payload`` bytes of a step on known pairs, ``first`` bytes sent by a step on new ones (which are
        scored under the reference too), ``calls``, ``wire`` bytes between all ranks, ``held`` bytes of tensors by
        part, and ``peak`` of a step beyond them.
    """
    torch.set_num_threads(1)
    handle = _accelerator(task["stage"], task["zero"])
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **task["config"]))
    lora = LoraConfig(r=task["lora_rank"], target_modules="all-linear", task_type="CAUSAL_LM")
    agents = DPO.population(
        task["agents"],
        actor_network=model,
        lora_config=lora,
        accelerator=handle,
        batch_size=task["pairs"],
        micro_batch_size_per_gpu=task["micro_batch_size"],
        gradient_checkpointing=task["checkpointing"],
        prefix_sharing="auto",
    )
    batch, new = (_pairs(task, seed) for seed in (0, 1))
    for agent in agents:
        agent.learn(batch)  # twice, so that DeepSpeed knows the order of layers
        agent.learn(batch)
    agent = agents[0]
    if agent.team.size != int(os.environ.get("WORLD_SIZE", "1")):
        raise RuntimeError(f"Accelerate finds {agent.team.size} processes.")
    with Traffic() as first:
        agent.learn(new)
    _meet()
    before = bytes_on_the_wire()
    _meet()
    with Traffic() as known:
        agent.learn(batch)
    _meet()
    wire = bytes_on_the_wire() - before
    gc.collect()
    with PeakOfTensors() as peak:
        agent.learn(batch)
    return {
        "sent": known.sent,
        "payload": dict(known.payload),
        "calls": dict(known.calls),
        "first": first.sent,
        "wire": wire,
        "held": _held(agents),
        "peak": peak.peak,
    }


def _accelerator(stage: int | None, zero: Mapping[str, Any]) -> Accelerator:
    if stage is None:
        return Accelerator(cpu=True)
    import deepspeed.ops

    # Collectives in shared memory are torch's no longer, and could not be counted.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    dist.init_process_group("gloo")
    # Told nothing, Accelerate finds no backend on a CPU and takes each process for the only one.
    backend = InitProcessGroupKwargs(backend="gloo")
    plugin = DeepSpeedPlugin(zero_stage=stage)
    plugin.deepspeed_config["zero_optimization"].update(zero)
    return Accelerator(deepspeed_plugin=plugin, kwargs_handlers=[backend])


def _meet() -> None:
    if dist.is_initialized():
        dist.barrier()


def _pairs(task: Mapping[str, Any], seed: int) -> PreferenceBatch:
    generator = torch.Generator().manual_seed(seed)

    def draw(length: int) -> list[torch.Tensor]:
        return [torch.randint(3, task["config"]["vocab_size"], (length,), generator=generator) for _ in labels]

    labels = [f"pair {row}" for row in range(task["pairs"])]
    completion = task["max_length"] - task["prompt_length"]
    return PreferenceBatch(draw(task["prompt_length"]), draw(completion), draw(completion), labels)


def _held(agents: list[DPO]) -> dict[str, int]:
    """Bytes of storages that stay between steps, each once, by what they are."""
    base = agents[0].base
    adapters = {id(p) for name in base.adapter_names for p in base.parameters(name).values()}
    model = [p for p in base.model.parameters() if id(p) not in adapters]
    parts = [vars(p).get("ds_tensor", p) for p in model]
    roles = {role: {name for agent in agents if (name := agent.adapters.name(role))} for role in ("actor", "reference")}
    actors, references = (
        [p for name in sorted(roles[role]) for p in base.parameters(name).values()] for role in ("actor", "reference")
    )
    moments = [
        tensor
        for agent in agents
        for state in agent.optimizer.state.values()
        for tensor in state.values()
        if isinstance(tensor, torch.Tensor) and tensor.dim() > 0
    ]
    return {
        "base": _bytes([*parts, *base.model.buffers()]),
        "adapters": _bytes(actors),
        "references": _bytes(references),
        "moments": _bytes(moments),
    }


def _bytes(tensors: list[torch.Tensor]) -> int:
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


if __name__ == "__main__":
    result = step(read_task())
    everybody = [result]
    if dist.is_initialized():
        everybody = [result] * dist.get_world_size()
        dist.all_gather_object(everybody, result)
    if os.environ.get("RANK", "0") == "0":
        report({"ranks": everybody})
    if dist.is_initialized():
        dist.destroy_process_group()
