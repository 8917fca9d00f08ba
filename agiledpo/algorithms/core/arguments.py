"""An agent's constructor arguments as plain data, and back."""

import inspect
import warnings
from collections.abc import Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np

from agiledpo.algorithms.core.domains import Choice, Domain, LogUniform, RLParameter
from agiledpo.algorithms.core.registry import HyperparameterConfig

if TYPE_CHECKING:
    from agiledpo.algorithms.core.evolvable import EvolvableAlgorithm

# What belongs to the machine or the program, is written elsewhere (the LoRA configuration), or is given anew.
_NOT_CARRIED = frozenset(
    {
        "accelerator",
        "action_space",
        "actor_network",
        "clone",
        "device",
        "lora_config",
        "model_config",
        "model_name",
        "observation_space",
        "reference_cache",
        "wrap",
    }
)


def plain_arguments(agent: "EvolvableAlgorithm") -> dict[str, Any]:
    """The constructor's arguments that make an agent like this one, as numbers, text, None and containers of them.

    Args:
        agent: The agent; its hyperparameters are the live ones.
    """
    arguments = agent.inspect_attributes(agent, input_args_only=True)
    return {
        name: _plain_ranges(value) if isinstance(value, HyperparameterConfig) else plain(value)
        for name, value in arguments.items()
        if name not in _NOT_CARRIED
    }


def constructor_arguments(algorithm: "type[EvolvableAlgorithm]", saved: object) -> dict[str, Any]:
    """What :func:`plain_arguments` gave, to be handed to the constructor.

    Args:
        algorithm: The class to be made.
        saved: Plain data, from a file that may be anybody's.

    Raises:
        ValueError: It is not what this version's constructor takes.
    """
    known = inspect.signature(algorithm).parameters.keys() - _NOT_CARRIED
    unknown = sorted(map(str, saved.keys() - known)) if isinstance(saved, dict) else [type(saved).__name__]
    if not isinstance(saved, dict) or unknown:
        raise ValueError(f"this version of {algorithm.__name__} has no arguments {', '.join(unknown)}")
    if saved.get("hp_config") is None:
        return dict(saved)
    return {**saved, "hp_config": _ranges(saved["hp_config"])}


def plain(value: Any) -> Any:
    """A value as ``torch.load(weights_only=True)`` reads it: NumPy's numbers as Python's, paths as text.

    Args:
        value: A number, text, None, path, or a list, tuple or dictionary of them.

    Raises:
        TypeError: It is something else.
    """
    match value:
        case None | bool() | int() | float() | str():
            # Subclasses such as NumPy's float64 would be pickled as what they are.
            return value.item() if isinstance(value, np.generic) else value
        case np.generic():
            return value.item()
        case PathLike():
            return str(value)
        case Mapping():
            return {str(name): plain(entry) for name, entry in value.items()}
        case list() | tuple():
            return type(value)(plain(entry) for entry in value) if type(value) in (list, tuple) else list(value)
    raise TypeError(f"A {type(value).__name__} cannot be saved as plain data: {value!r}.")


def _plain_ranges(config: HyperparameterConfig) -> dict[str, dict[str, Any]]:
    return {name: _plain_domain(domain) for name, domain in config.items()}


def _plain_domain(domain: Domain) -> dict[str, Any]:
    # Only our own classes: a subclass may mean something that its fields do not say.
    if type(domain) is RLParameter:
        return {
            "kind": "RLParameter",
            "min": plain(domain.min),
            "max": plain(domain.max),
            "shrink_factor": plain(domain.shrink_factor),
            "grow_factor": plain(domain.grow_factor),
            "dtype": domain.dtype.__name__,
        }
    if type(domain) is LogUniform:
        return {"kind": "LogUniform", "min": plain(domain.min), "max": plain(domain.max)}
    if type(domain) is Choice:
        return {"kind": "Choice", "options": plain(domain.options)}
    return {"kind": type(domain).__name__}


def _ranges(saved: object) -> HyperparameterConfig | None:
    try:
        domains = {name: _domain(dict(data)) for name, data in dict(saved).items()}  # type: ignore[call-overload]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"hp_config cannot be read ({type(error).__name__}: {error})") from error
    foreign = [name for name, domain in domains.items() if domain is None]
    if foreign:
        warnings.warn(
            f"The saved hp_config gives {', '.join(foreign)} a class of your own, which a checkpoint cannot hold; the "
            "agent has no hp_config. Set agent.hp_config.",
            stacklevel=2,
        )
        return None
    return HyperparameterConfig(**{name: domain for name, domain in domains.items() if domain is not None})


def _domain(data: dict[str, Any]) -> Domain | None:
    kind = data.pop("kind")
    if kind == "RLParameter":
        return RLParameter(**{**data, "dtype": {"float": float, "int": int}[data["dtype"]]})
    if kind == "LogUniform":
        return LogUniform(**data)
    if kind == "Choice":
        return Choice(*data["options"])
    return None
