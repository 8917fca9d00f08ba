"""How an agent was made, and what making it otherwise would change."""

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agiledpo.algorithms.core.llm import LLMAlgorithm

# Where, how fast and in how much memory the same is computed; what a state brings along; and what nothing reads.
_WITHOUT_EFFECT = frozenset(
    {
        "accelerator",
        "action_space",
        "activation_offload",
        "clone",
        "device",
        "gradient_checkpointing",
        "hp_config",
        "index",
        "observation_space",
        "pad_token",
        "pad_token_id",
        "reference_cache",
        "reference_cache_bytes",
        "seed",
        "wrap",
    }
)

# What computes, or samples, the same in another order.
_ROUNDING = frozenset(
    {
        "calc_position_embeddings",
        "fast_layers",
        "generator",
        "micro_batch_size_per_gpu",
        "prefix_sharing",
        "torch_compiler",
        "use_liger_loss",
    }
)


@dataclass(frozen=True)
class ConstructionDifferences:
    """How an agent was made otherwise than another.

    Attributes:
        objective: What makes it learn something else, each as ``name=its value instead of the other's``.
        rounding: What changes the last bits only.
    """

    objective: tuple[str, ...] = ()
    rounding: tuple[str, ...] = ()


def construction(agent: "LLMAlgorithm") -> dict[str, str]:
    """What an agent was made with that has an effect and no state changes, as text to compare.

    Args:
        agent: The agent.
    """
    arguments = agent.inspect_attributes(agent, input_args_only=True)
    left_out = {*agent.HYPERPARAMETERS, *_WITHOUT_EFFECT, "lora_config"}
    lora = agent.lora_config
    texts = {name: repr(value) for name, value in arguments.items() if name not in left_out}
    if "generator" in arguments:  # its kind, which is what a state cannot bring along
        sampler = arguments["generator"]
        texts["generator"] = "TransformersGenerator" if sampler is None else type(sampler).__name__
    return {
        **texts,
        "lora_config": f"rank {lora.r}, alpha {lora.lora_alpha}",
    }


def compare_constructions(saved: Mapping[str, str], live: Mapping[str, str]) -> ConstructionDifferences:
    """Compare how two agents were made.

    Args:
        saved: What :func:`construction` gave for one of them, in this version or an earlier one.
        live: The same for the other, in this version.
    """
    differing = {
        name: f"{name}={saved.get(name)} instead of {live[name]}" for name in live if live[name] != saved.get(name)
    }
    return ConstructionDifferences(
        objective=tuple(text for name, text in differing.items() if name not in _ROUNDING),
        rounding=tuple(text for name, text in differing.items() if name in _ROUNDING),
    )


def warn_of_rounding(source: str, differences: Iterable[str]) -> None:
    """Say that what is taken up goes on, but not as it would have done to the bit.

    Args:
        source: Where it is taken up from.
        differences: What is different.

    Warns:
        UserWarning: Always.
    """
    warnings.warn(
        f"{source} was taken with {', '.join(dict.fromkeys(differences))}, which rounds otherwise: what follows is not "
        "bit for bit what it would have been.",
        stacklevel=3,
    )
