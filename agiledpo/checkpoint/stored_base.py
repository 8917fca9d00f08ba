"""The base model in a checkpoint that was saved with ``lora_only=False``, as data that loads without unpickling."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from agiledpo.adapters import SharedBaseModel
from agiledpo.checkpoint.errors import CheckpointError
from agiledpo.distributed.sharded import in_parts, shape_of, write


def describe_base(base: SharedBaseModel, *, keep: bool = True) -> dict[str, Any]:
    """What :func:`make_base` makes a base model of; tensors are the live ones.

    Args:
        base: The base model. Where it is sharded all processes call this together.
        keep: Whether this process needs the weights.
    """
    generation = base.model.generation_config
    return {
        "base_model": base.base_state(keep=keep),
        "base_config": base.model.config.to_json_string(use_diff=False),
        "generation_config": None if generation is None else generation.to_json_string(use_diff=False),
    }


def holds_base(attributes: Mapping[str, Any]) -> bool:
    """Whether a checkpoint's attributes hold the base model.

    Args:
        attributes: What ``attributes.pt`` holds.
    """
    return "base_model" in attributes


def make_base(
    attributes: Mapping[str, Any], file: Path, dtype: str, model_config: Mapping[str, Any] | None = None
) -> PreTrainedModel:
    """Make the base model that was saved with an agent.

    Args:
        attributes: What ``attributes.pt`` holds, :func:`describe_base` among it. How to generate was left out once.
        file: Where that is from, for the message.
        dtype: Of the weights.
        model_config: Keyword arguments of ``AutoModelForCausalLM.from_config``; a dtype there comes first.

    Raises:
        CheckpointError: No base model can be made of it.
    """
    try:
        config = AutoConfig.for_model(**json.loads(attributes["base_config"]))
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, **{"dtype": dtype, **(model_config or {})})
        _load(model, attributes["base_model"])
        generation = attributes.get("generation_config")
        if generation is not None:
            model.generation_config = GenerationConfig.from_dict(json.loads(generation))
    except (AttributeError, KeyError, RecursionError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{file}: the base model cannot be made from what was saved ({type(error).__name__}: {error}). Pass the "
            "base model."
        ) from error
    return model


def _load(model: PreTrainedModel, weights: Mapping[str, Tensor]) -> None:
    if not in_parts(model):
        model.load_state_dict(weights)
        return
    # Transformers makes a model in parts where Accelerate's zero3_init_flag asks for it.
    live: dict[str, Tensor] = dict(model.state_dict(keep_vars=True))
    differing = sorted(live.keys() ^ weights.keys()) or sorted(
        key for key in live if shape_of(live[key]) != weights[key].shape
    )
    if differing:
        raise ValueError(f"{differing[0]} is missing, unexpected or of another shape")
    for key, tensor in live.items():
        write(tensor, weights[key])


def loadable(dtype: str) -> str:
    """A dtype for ``from_pretrained``; weights that are quantized say themselves what they are."""
    return dtype if dtype in ("float64", "float32", "bfloat16", "float16") else "auto"
