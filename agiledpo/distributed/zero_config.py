"""What a DeepSpeed configuration means here: the ZeRO stage, what is refused, and the settings of an adapter's engine.

Batch sizes, gradient accumulation, clipping and learning rate belong to the agents, where evolution changes them, and
adapters and their moments are in float32 whatever the base is in. So an engine is told how to shard and nothing else.
"""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator, DistributedType

# What a configuration may say of ZeRO 1 and 2 that leaves every number as it is.
_KEPT = (
    "allgather_bucket_size",
    "allgather_partitions",
    "contiguous_gradients",
    "offload_optimizer",
    "overlap_comm",
    "reduce_bucket_size",
    "reduce_scatter",
    "use_multi_rank_bucket_allreduce",
)
_BUCKET = 500_000_000  # DeepSpeed's own default, in elements
_REPORTS = ("comms_logger", "memory_breakdown", "wall_clock_breakdown")
_AGENTS = "An agent makes its optimizer and schedule itself, from lr and weight_decay, which evolution changes"


def deepspeed_config(accelerator: Accelerator | None) -> Mapping[str, Any] | None:
    """The configuration that an accelerator runs DeepSpeed with; None if it does not.

    Args:
        accelerator: Accelerate's handle.
    """
    if accelerator is None or accelerator.distributed_type is not DistributedType.DEEPSPEED:
        return None
    found: Mapping[str, Any] = accelerator.state.deepspeed_plugin.deepspeed_config
    return found


def zero_stage(config: Mapping[str, Any] | None) -> int:
    """The ZeRO stage of a configuration; 0, which shards nothing, where there is none.

    Args:
        config: What :func:`deepspeed_config` gave.
    """
    return 0 if config is None else int(_given(config.get("zero_optimization"), "stage", 0))


def check_config(config: Mapping[str, Any]) -> None:
    """Check that agents can train under a configuration.

    Args:
        config: What :func:`deepspeed_config` gave.

    Raises:
        ValueError: It asks for what would have no effect or another one; the key is named, with the way out.
    """
    stage = zero_stage(config)
    zero = config.get("zero_optimization") or {}
    offload = _device(zero, "offload_optimizer")
    refused = {
        "optimizer": (bool(config.get("optimizer")), f"{_AGENTS}; remove it."),
        "scheduler": (bool(config.get("scheduler")), f"{_AGENTS}; remove it."),
        "pipeline": (bool(config.get("pipeline")), "The model is not cut into stages; remove it, or use ZeRO stage 3."),
        "tensor_parallel.autotp_size": (
            _given(config.get("tensor_parallel"), "autotp_size", 0) > 1,
            "Layers are not split among processes; remove it, and use ZeRO stage 3 to shard the base model.",
        ),
        "sequence_parallel_size": (
            _given(config, "sequence_parallel_size", 1) > 1,
            "Sequences are not split among processes; remove it, and lower micro_batch_size_per_gpu.",
        ),
        "expert_parallel": (
            bool(_given(config.get("expert_parallel"), "enabled", False)),
            "Experts are not dealt to processes; remove it, and use ZeRO stage 3 to shard the base model.",
        ),
        "zero_optimization.stage": (stage not in range(4), f"It is {stage}; there are the stages 0 to 3."),
        "zero_optimization.zenflow": (bool(zero.get("zenflow")), "It updates parameters late; remove it."),
        "zero_optimization.offload_optimizer.device": (
            offload not in ("none", "cpu"),
            f"It is {offload!r}; the moments of an adapter are small: say 'cpu' or 'none'.",
        ),
    }
    for key, (present, remedy) in refused.items():
        if present:
            raise ValueError(f"{key} of the DeepSpeed configuration is not for LoRA agents. {remedy}")


def warn_of_precision(config: Mapping[str, Any], dtype: torch.dtype) -> None:
    """Warn if a configuration asks for another precision than the base model has, which decides.

    Args:
        config: What :func:`deepspeed_config` gave.
        dtype: Of the base model's weights.
    """
    for key, asked in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        if _given(config.get(key), "enabled", False) is True and dtype != asked:
            warnings.warn(
                f"The DeepSpeed configuration says {key}.enabled=true, which has no effect: the base model is in "
                f"{str(dtype).removeprefix('torch.')}, and adapters are in float32. Load the model with "
                f"dtype={asked} if this is meant.",
                stacklevel=5,
            )


def engine_config(config: Mapping[str, Any], elements: int) -> dict[str, Any]:
    """The configuration of the engine that shards one adapter's gradients and moments.

    Args:
        config: What :func:`deepspeed_config` gave.
        elements: Number of elements of the adapter's parameters; DeepSpeed allocates a whole bucket, so buckets are no
            larger.

    Raises:
        ValueError: Its ZeRO stage is 0, which needs no engine.
    """
    stage = zero_stage(config)
    if stage == 0:
        raise ValueError("ZeRO stage 0 shards nothing, so there is no engine to configure.")
    given = config.get("zero_optimization") or {}
    zero = {key: given[key] for key in _KEPT if key in given and given[key] is not None and given[key] != "auto"}
    if _device(given, "offload_optimizer") == "none":
        zero.pop("offload_optimizer", None)
    else:
        pinned = _given(given["offload_optimizer"], "pin_memory", False)
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": pinned}
    # Under stage 3 it is the base that is sharded. Adapters stay whole, as DeepSpeed would keep such small parameters,
    # and their gradients are summed once a step; stage 2 would sum them in every micro-batch.
    zero["stage"] = 1 if stage == 3 else stage
    zero["reduce_bucket_size"] = max(1, min(int(zero.get("reduce_bucket_size", _BUCKET)), elements))
    # DeepSpeed wants an even number of elements here.
    zero["allgather_bucket_size"] = 2 * max(1, -(-min(int(zero.get("allgather_bucket_size", _BUCKET)), elements) // 2))
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,
        "steps_per_print": 10**9,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": zero,
        **{key: config[key] for key in _REPORTS if key in config},
    }


def _given(section: Mapping[str, Any] | None, key: str, default: Any) -> Any:
    """A value, or the default where it is missing, null or ``"auto"``."""
    value = default if section is None else section.get(key, default)
    return default if value is None or value == "auto" else value


def _device(zero: Mapping[str, Any], key: str) -> str:
    return str(_given(zero.get(key), "device", "none"))
