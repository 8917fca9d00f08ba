"""What can be found wrong with a configuration before a model or data are loaded."""

import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from agiledpo.algorithms.core.errors import NoModelError
from agiledpo.config import Config
from agiledpo.data.limits import LengthLimits
from agiledpo.launch.data import EMBEDDED
from agiledpo.launch.evolving import founders, hyperparameter_config, make_evolution
from agiledpo.launch.settings import fitness_of, generator_of, lora_of, retention_of, rewards_of, trackers_of

# Of numbers that nothing else looks at before a run has begun, the least.
_LEAST = {
    **dict.fromkeys(("population.size", "threads", "evolution.evo_steps", "env.data_batch_size_per_gpu", "lora.r"), 1),
    **{f"train.{name}": 1 for name in ("num_epochs", "max_steps", "evaluation_interval", "checkpoint_steps")},
    **dict.fromkeys(("data.max_rows", "data.max_test_rows", "env.num_proc", "samples.max_new_tokens"), 1),
    **dict.fromkeys(("samples.count", "samples.temperature", "seed", "data.seed", "env.seed", "samples.seed"), 0),
    **{f"evolution.{name}.rand_seed": 0 for name in ("selection", "mutation")},
}


def check(config: Config) -> None:
    """Find out what a configuration asks for that cannot be, as far as that takes no model and no data.

    Args:
        config: The configuration.

    Raises:
        ModuleNotFoundError: Something that it asks for is not installed.
        ValueError: Something is out of range, or does not go together.
    """
    for path, least in _LEAST.items():
        _check_least(config, path, least)
    _check_share(config, "data.test_fraction", zero=False)
    _check_share(config, "lora.lora_dropout", zero=True)
    _check_model(config.values["model"])
    env = config.values["env"]
    if config.values["data"]["train"] == EMBEDDED:
        _check_columns(config)
    LengthLimits(env["max_context_length"], env.get("min_completion_length"), env["truncation"])
    size = config.values["population"]["size"]
    if make_evolution(config.seeded("evolution"), size) is not None and size == 1:
        raise ValueError("evolution with population.size=1 has nothing to select from. Set population.size=4, say.")
    fitness = fitness_of(config)
    agent = config.parts.agent
    if isinstance(fitness, str) and fitness not in agent.FITNESS:
        raise ValueError(f"train.fitness={fitness!r} must be one of {', '.join(agent.FITNESS)}, or file.py:function.")
    _check_retention(config)
    trackers_of(config, Path())
    lora_of(config)
    if config.parts.judges:
        rewards_of(config)
        if (generator := generator_of(config)) is not None:
            generator.close()
    evolving = hyperparameter_config(config.values["evolution"])
    for differing in founders(config.values["population"]["founders"], size, agent):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # which is said when the agent is made
            with suppress(NoModelError):
                agent(**{**config.parameters, **differing})
        for name, domain in (evolving or {}).items():
            if name not in agent.HYPERPARAMETERS:
                known = ", ".join(agent.HYPERPARAMETERS)
                raise ValueError(f"evolution.hyperparameters.{name}: {name} can not evolve; these can: {known}.")
            kind, value = agent.HYPERPARAMETERS[name], {**config.parameters, **differing}[name]
            try:
                domain.check(name, _as(value, kind), kind)
            except ValueError as error:
                raise ValueError(f"evolution.hyperparameters.{name}: {error}") from None


def _check_least(config: Config, path: str, least: int) -> None:
    value: Any = config.values
    for name in path.split("."):
        value = None if value is None else value.get(name)
    if isinstance(value, int | float) and not value >= least:
        raise ValueError(f"{path}={value} must be at least {least}.")


def _check_share(config: Config, path: str, *, zero: bool) -> None:
    section, name = path.split(".")
    value = config.values[section][name]
    if not (0 < value < 1 or (zero and value == 0)):
        raise ValueError(f"{path}={value} must be {'at least' if zero else 'above'} 0 and below 1.")


def _check_model(settings: Mapping[str, Any]) -> None:
    template, device = settings["chat_template"], settings["device"]
    if template is not None and not Path(template).is_file():
        raise ValueError(f"model.chat_template={template!r}: there is no such file. Give one with a Jinja template.")
    own = sorted(set(settings["from_pretrained"] or {}) & settings.keys())
    if own:
        raise ValueError(f"model.from_pretrained.{own[0]} is a parameter of its own here: set model.{own[0]}.")
    if device is None:
        return
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):  # as PyTorch answers names and numbers of devices that are not there
        raise ValueError(
            f"model.device={device!r}: there is no such device here. Set cpu, cuda or cuda:NUMBER, or null for a GPU "
            "if there is one."
        ) from None


def _check_columns(config: Config) -> None:
    """Find out whether the embedded rows, which are preferences, can be what the algorithm learns from."""
    env = config.values["env"]
    for name, column in (("response_column", "chosen"), ("answer_column", "topic")):
        if name in env and env[name] in (None, "answer"):
            raise ValueError(
                f"data.train={EMBEDDED} holds preferences, and env.{name}={env[name] or 'null'}. Set "
                f"data.train=FILE to learn from your own rows, or env.{name}={column} for the embedded ones."
            )


def _check_retention(config: Config) -> None:
    retention = retention_of(config)
    if retention is None or retention.keep_best > 0:
        return
    for name, default in (("metric_name", "fitness"), ("higher_is_better", True)):
        value = getattr(retention, name)
        if value != default:
            raise ValueError(
                f"train.retention.{name}={value} says what the best checkpoints are, and keep_best=0 keeps none of "
                "them. Set train.retention.keep_best=1, say."
            )


def _as(value: Any, kind: type) -> Any:
    """A value as an agent holds it: of several losses a tuple, also where there is one."""
    if kind is not tuple or value is None:
        return value
    return (value,) if isinstance(value, str) else tuple(value)
