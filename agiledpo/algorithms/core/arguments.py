"""An agent's constructor arguments as plain data, and back."""

import inspect
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from agiledpo.algorithms.core.domains import Choice, Domain, LogUniform, RLParameter
from agiledpo.algorithms.core.plain import plain
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
        "generator",
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
        name: plain_ranges(value) if isinstance(value, HyperparameterConfig) else plain(value, name)
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
    return {**saved, "hp_config": read_ranges(saved.get("hp_config"), None)} if "hp_config" in saved else dict(saved)


def plain_ranges(config: HyperparameterConfig | None) -> dict[str, dict[str, Any]] | None:
    """A configuration as plain data; of a domain that is none of ours only the name of its class.

    Args:
        config: The configuration.
    """
    return None if config is None else {name: _plain_domain(domain) for name, domain in config.items()}


def read_ranges(saved: object, live: HyperparameterConfig | None) -> HyperparameterConfig | None:
    """The configuration that :func:`plain_ranges` was given, or the one that is there if it holds what data cannot.

    Args:
        saved: The data, from a file that may be anybody's.
        live: The configuration that is there.

    Raises:
        ValueError: It is no configuration.

    Warns:
        UserWarning: It cannot be had back, and the one that is there is none that would look like it.
    """
    if saved == plain_ranges(live):
        return live
    domains = _domains(saved)
    foreign = [name for name, domain in domains.items() if domain is None]
    if foreign:
        kept = "the agent has no hp_config" if live is None else f"the agent keeps {live}"
        warnings.warn(
            f"The saved hp_config gives {', '.join(foreign)} a class of your own, which a checkpoint cannot hold; "
            f"{kept}. Set agent.hp_config.",
            stacklevel=2,
        )
        return live
    if saved is None:
        return None
    return HyperparameterConfig(**{name: domain for name, domain in domains.items() if domain is not None})


def check_ranges(saved: object, kinds: Mapping[str, type]) -> None:
    """Check that :func:`read_ranges` would read something that suits an agent's hyperparameters.

    Args:
        saved: The data.
        kinds: Types of the hyperparameters by name.

    Raises:
        ValueError: It would not.
    """
    for name, domain in _domains(saved).items():
        if name not in kinds:
            raise ValueError(f"hp_config names {name!r}, which is no hyperparameter")
        if domain is not None:
            # Whether the live value is inside is another question: it may have been set by hand.
            domain.check(name, domain.ends(kinds[name])[-1], kinds[name])


def _plain_domain(domain: Domain) -> dict[str, Any]:
    try:
        return _plain_fields(domain)
    except TypeError:  # a number or an option that is no plain value
        return {"kind": f"{type(domain).__name__} of {type(domain).__module__}"}


def _plain_fields(domain: Domain) -> dict[str, Any]:
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


def _domains(saved: object) -> dict[str, Domain | None]:
    """Domains by name; None for one that the data does not hold."""
    if saved is None:
        return {}
    try:
        return {str(name): _domain(dict(data)) for name, data in dict(saved).items()}  # type: ignore[call-overload]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"hp_config cannot be read ({type(error).__name__}: {error})") from error


def _domain(data: dict[str, Any]) -> Domain | None:
    kind = data.pop("kind")
    if kind == "RLParameter":
        return RLParameter(**{**data, "dtype": {"float": float, "int": int}[data["dtype"]]})
    if kind == "LogUniform":
        return LogUniform(**data)
    if kind == "Choice":
        return Choice(*data["options"])
    return None
