"""Everything that a run is made of, ready to begin."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator

from agiledpo.algorithms.core.llm import LLMAlgorithm
from agiledpo.config import Config
from agiledpo.data import DatasetError
from agiledpo.launch.data import Rows, open_data
from agiledpo.launch.evolving import Evolution, founders, hyperparameter_config, make_evolution
from agiledpo.launch.model import choose_device, model_label, open_model
from agiledpo.launch.settings import fitness_of, generator_of, lora_of, rewards_of, rows_of

# Parameters that say which column is which.
_COLUMNS = {"data": ("prompt_key", "chosen_key", "rejected_key"), "env": ("response_column", "answer_column")}


@dataclass(frozen=True)
class Prepared:
    """What a run is made of.

    Attributes:
        agents: The founders.
        env: Where rows come from.
        evolution: How the population evolves; None if it does not.
        fitness: How agents are compared: a name or a function; None for the default.
        model: The model's name and number of parameters.
        data: For each split the number of rows.
    """

    agents: Sequence[LLMAlgorithm]
    env: Any
    evolution: Evolution | None
    fitness: Any
    model: Mapping[str, Any]
    data: Mapping[str, Mapping[str, int]]


def prepare(config: Config, accelerator: Accelerator | None, stack: ExitStack) -> Prepared:
    """Open data and model, and make environment and agents.

    Args:
        config: The configuration.
        accelerator: Accelerate's handle; None for one process.
        stack: Closes what has to be closed.

    Raises:
        DatasetError: The data cannot be used.
        OSError: There is no such model or file.
        ValueError: Something does not go together.
    """
    parts = config.parts
    rows = _rows(config)
    settings = config.section("model")
    adapter, device = settings.pop("adapter"), choose_device(settings.pop("device"), accelerator)
    model, tokenizer = open_model(**settings)
    env = parts.gym(
        rows.train,
        rows.test,
        tokenizer,
        final_dataset=rows.final,
        validation_datasets=rows.validation or None,
        accelerator=accelerator,
        **config.seeded("env"),
        **({"reward_fn": rewards_of(config)} if parts.judges else {}),
    )
    size = config.values["population"]["size"]
    arguments = {
        **config.parameters,
        "actor_network": model,
        "accelerator": accelerator,
        "device": device,
        "lora_config": lora_of(config),
        "hp_config": hyperparameter_config(config.values["evolution"]),
    }
    if parts.judges and (generator := generator_of(config)) is not None:
        arguments["generator"] = stack.enter_context(generator)
    agents = [
        parts.agent(env.observation_space, env.action_space, index=index, **{**arguments, **differing})
        for index, differing in enumerate(founders(config.values["population"]["founders"], size, parts.agent))
    ]
    for agent in agents if adapter is not None else []:
        agent.load_checkpoint(adapter, merge_lora_configs=True)
    return Prepared(
        agents,
        env,
        make_evolution(config.seeded("evolution"), size),
        fitness_of(config),
        {"name": model_label(settings["name"]), "parameters": model.num_parameters()},
        {split: {"rows": len(env.lengths(split))} for split in env.splits},
    )


def _rows(config: Config) -> Rows:
    """The data, or what is wrong with them and which parameter names a column."""
    try:
        return open_data(config.parts.load, **rows_of(config))
    except DatasetError as error:
        if "rename" not in str(error).lower():
            raise
        named = [
            f"{section}.{name}=COLUMN"
            for section, names in _COLUMNS.items()
            for name in names
            if name in config.values[section]
        ]
        raise ValueError(f"{error} Or name it in the configuration: {', '.join(named)}.") from error
