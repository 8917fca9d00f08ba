"""What can be found wrong with a configuration before a model or data are loaded."""

import warnings
from contextlib import suppress
from pathlib import Path

from agiledpo.algorithms.core.errors import NoModelError
from agiledpo.config import Config
from agiledpo.data.limits import LengthLimits
from agiledpo.launch.evolving import founders, hyperparameter_config, make_evolution
from agiledpo.launch.settings import fitness_of, generator_of, lora_of, retention_of, rewards_of, trackers_of


def check(config: Config) -> None:
    """Find out what a configuration asks for that cannot be, as far as that takes no model and no data.

    Args:
        config: The configuration.

    Raises:
        ModuleNotFoundError: Something that it asks for is not installed.
        ValueError: Something is out of range, or does not go together.
    """
    for path, least in (("population.size", 1), ("threads", 1), ("evolution.evo_steps", 1), ("samples.count", 0)):
        _check_least(config, path, least)
    for name in ("num_epochs", "max_steps", "evaluation_interval", "checkpoint_steps"):
        _check_least(config, f"train.{name}", 1)
    _check_least(config, "env.data_batch_size_per_gpu", 1)
    env = config.values["env"]
    LengthLimits(env["max_context_length"], env.get("min_completion_length"), env["truncation"])
    size = config.values["population"]["size"]
    if make_evolution(config.seeded("evolution"), size) is not None and size == 1:
        raise ValueError("evolution with population.size=1 has nothing to select from. Set population.size=4, say.")
    fitness = fitness_of(config)
    agent = config.parts.agent
    if isinstance(fitness, str) and fitness not in agent.FITNESS:
        raise ValueError(f"train.fitness={fitness!r} must be one of {', '.join(agent.FITNESS)}, or file.py:function.")
    retention_of(config)
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
            domain.check(name, {**config.parameters, **differing}[name], agent.HYPERPARAMETERS[name])


def _check_least(config: Config, path: str, least: int) -> None:
    value = config.values
    for name in path.split("."):
        value = None if value is None else value[name]  # type: ignore[assignment]
    if isinstance(value, int) and value < least:
        raise ValueError(f"{path}={value} must be at least {least}.")
