"""What an agent needs to know and to refuse before it is made: accelerator, device, tokens, LoRA configuration."""

import warnings
from collections.abc import Mapping
from typing import Any, cast

import torch
from accelerate import Accelerator, DistributedType
from peft import LoraConfig
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from agiledpo.adapters import SharedBaseModel
from agiledpo.distributed.zero_config import check_config, deepspeed_config, warn_of_precision
from agiledpo.scoring.causal_lm import embedding_rows

# What an agent gets that was made without a LoRA configuration, AgileRL's; everything else is PEFT's default.
DEFAULT_LORA: Mapping[str, Any] = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.05, "target_modules": "all-linear"}

_DISTRIBUTED = (
    DistributedType.NO,
    DistributedType.MULTI_CPU,
    DistributedType.MULTI_GPU,
)


def check_accelerator(accelerator: Accelerator | None) -> None:
    """Check that the agent can train under an accelerator.

    Raises:
        ValueError: It distributes the model in another way than plain data parallelism or ZeRO, or has mixed precision.
    """
    if accelerator is None:
        return
    config = deepspeed_config(accelerator)
    if config is not None:
        check_config(config)
        return
    if accelerator.distributed_type not in _DISTRIBUTED:
        raise ValueError(
            f"The accelerator runs {accelerator.num_processes} process(es) as {accelerator.distributed_type}. Launch "
            "with plain data parallelism (configs/accelerate/ddp.yaml) or DeepSpeed (configs/accelerate/zero2.yaml)."
        )
    if accelerator.mixed_precision != "no":
        raise ValueError(
            f"Accelerator(mixed_precision={accelerator.mixed_precision!r}) has no effect here; load the base model "
            "with dtype=torch.bfloat16 instead (adapters and log-probabilities stay in float32)."
        )


def warn_of_ignored_precision(accelerator: Accelerator | None, dtype: torch.dtype) -> None:
    """Warn if a DeepSpeed configuration asks for another precision than the base model has.

    Args:
        accelerator: Accelerate's handle.
        dtype: Of the base model's weights.
    """
    config = deepspeed_config(accelerator)
    if config is not None and accelerator is not None and accelerator.is_main_process:
        warn_of_precision(config, dtype)


def check_shardable(lora_config: LoraConfig | None, *, activation_offload: bool) -> None:
    """Check what a base model of which each process holds a part (ZeRO stage 3) does not go with.

    Raises:
        ValueError: Something that is asked for reads or copies whole layers.
    """
    for name in ("modules_to_save", "trainable_token_indices", "target_parameters"):
        value = None if lora_config is None else vars(lora_config)[name]
        if value:
            raise ValueError(
                f"lora_config.{name}={value} copies or replaces whole weights of the base model, which ZeRO stage 3 "
                "shards. Leave it out, or use stage 2 (configs/accelerate/zero2.yaml)."
            )
    if activation_offload:
        raise ValueError(
            "activation_offload=True would move gathered weights of a base model that ZeRO stage 3 shards. Set one of "
            "them back; gradient_checkpointing=True needs little memory for activations."
        )


def place(base: SharedBaseModel, device: torch.device) -> None:
    """Put a base model onto a device.

    Raises:
        ValueError: Other agents use it elsewhere.
    """
    here = base.device
    # An accelerator numbers the CPU too, of which there is one.
    if here.type == device.type and (device.type == "cpu" or device.index in (None, here.index)):
        return
    if base.adapter_names:
        raise ValueError(f"The shared base model is on {here} and other agents use it; this agent asks for {device}.")
    cast(nn.Module, base.model).to(device)


def resolve_pad_token_id(model: PreTrainedModel, pad_token_id: int | None) -> int:
    """The token that fills padding: the one that is asked for, or else the model's.

    Raises:
        ValueError: It is outside the model's vocabulary.
    """
    vocabulary = embedding_rows(model)
    if pad_token_id is None:
        return 0 if model.config.get_text_config().pad_token_id is None else model.config.get_text_config().pad_token_id
    if not 0 <= pad_token_id < vocabulary:
        raise ValueError(
            f"pad_token_id={pad_token_id} is outside the model's vocabulary of {vocabulary} tokens. "
            "Use tokenizer.eos_token_id, or resize the model's embeddings."
        )
    return pad_token_id


def can_offload(device: torch.device) -> bool:
    """Whether activations can be moved away from a device; warns where they cannot."""
    if device.type != "cpu":
        return True
    warnings.warn(
        "activation_offload=True has no effect: the model computes on the CPU, where its activations are already.",
        stacklevel=4,
    )
    return False


def can_checkpoint(model: PreTrainedModel) -> bool:
    """Whether a model has layers that can be recomputed."""
    return any(isinstance(module, GradientCheckpointingLayer) for module in model.modules())


def resolve_lora(lora_config: LoraConfig | None, start: LoraConfig | None) -> LoraConfig:
    """The LoRA configuration of an agent.

    Args:
        lora_config: What was asked for; None for nothing.
        start: That of the adapter which the actor starts from; None for none.

    Raises:
        ValueError: The two differ.

    Warns:
        UserWarning: There is neither, so a default is taken.
    """
    if start is not None:
        differences = _lora_differences(lora_config, start)
        if differences:
            raise ValueError(
                "lora_config differs from that of the PeftModel's adapter, which the actor starts from: "
                f"{', '.join(differences)}. Leave lora_config out, or pass the base model."
            )
        return start
    if lora_config is not None:
        return lora_config
    settings = ", ".join(f"{name}={value!r}" for name, value in DEFAULT_LORA.items())
    warnings.warn(f"No lora_config given; using LoraConfig({settings}).", stacklevel=4)
    return LoraConfig(**DEFAULT_LORA, task_type="CAUSAL_LM")


def _lora_differences(given: LoraConfig | None, start: LoraConfig) -> list[str]:
    if given is None:
        return []
    return [
        f"{name}={vars(given)[name]} against {vars(start)[name]}"
        for name in ("r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern")
        if vars(given)[name] != vars(start)[name]
    ]


def has_fused_adamw(device: torch.device) -> bool:
    """Whether torch has a fused AdamW for a device."""
    return device.type in ("cpu", "cuda")
