"""Train as a configuration says, and write the run's directory."""

import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from accelerate import Accelerator
from peft import LoraConfig

from agiledpo.algorithms.core.errors import NoModelError
from agiledpo.algorithms.core.llm import LLMAlgorithm
from agiledpo.config import Config
from agiledpo.config.algorithms import ALGORITHMS
from agiledpo.distributed.team import Team
from agiledpo.generation.vllm import VLLMGenerator
from agiledpo.launch.data import EMBEDDED, Rows, open_data
from agiledpo.launch.directory import RunDirectory
from agiledpo.launch.evolving import founders, hyperparameter_config, make_evolution
from agiledpo.launch.functions import load_function, load_rewards
from agiledpo.launch.model import choose_device, launched_accelerator, model_label, open_model
from agiledpo.training.observer import Observer
from agiledpo.training.population import Population
from agiledpo.training.retention import Retention

# What agents are made with beside the sections, and what is no argument of theirs.
_NOT_THE_AGENTS = ("threads", "trackers", "reward")


def check(config: Config) -> None:
    """Find out what a configuration asks for that cannot be, as far as that takes no model and no data.

    Args:
        config: The configuration.

    Raises:
        ValueError: Something is out of range, or does not go together.
    """
    parts = ALGORITHMS[config.algorithm]
    size = config.values["population"]["size"]
    if size < 1:
        raise ValueError(f"population.size={size}; a population has at least one agent.")
    if config.values["threads"] is not None and config.values["threads"] < 1:
        raise ValueError(f"threads={config.values['threads']} must be at least 1, or null.")
    evolution = make_evolution(_seeded(config, "evolution"), size)
    if evolution is not None and size == 1:
        raise ValueError("evolution with population.size=1 has nothing to select from. Set population.size=4, say.")
    _retention(config)
    _lora_config(config)
    if parts.judges:
        _rewards(config)
    arguments = _agent_arguments(config)
    for differing in founders(config.values["population"]["founders"], size, parts.agent):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # said when the agent is made
                parts.agent(
                    **{**arguments, **differing, "hp_config": hyperparameter_config(config.values["evolution"])}
                )
        except NoModelError:
            continue


def train(
    config: Config, directory: RunDirectory, *, resume: bool = False, observers: Sequence[Observer] = ()
) -> Population[Any]:
    """Train as a configuration says.

    Args:
        config: The configuration.
        directory: Where everything is written.
        resume: Go on from the newest checkpoint in the directory, at the beginning if there is none.
        observers: Who else follows the run.

    Returns:
        The agents.

    Raises:
        DatasetError: The data cannot be used.
        FileExistsError: Another run is in the directory.
        ValueError: Something in the configuration is out of range, or does not go together.
    """
    parts = ALGORITHMS[config.algorithm]
    check(config)
    if config.values["threads"] is not None:
        torch.set_num_threads(config.values["threads"])
    accelerator = launched_accelerator()
    team = Team.of(accelerator)

    def claim() -> None:
        if not resume:
            directory.check_free()
        directory.write_config(config.to_yaml())

    team.leader_does(claim)
    with ExitStack() as stack:
        about: dict[str, Any] = {}
        if team.leads:
            about = stack.enter_context(directory.recorded(config.algorithm, processes=team.size))
        population = _train(config, directory, parts, accelerator, about, stack, resume=resume, observers=observers)
    return population


def _train(
    config: Config,
    directory: RunDirectory,
    parts: Any,
    accelerator: Accelerator | None,
    about: dict[str, Any],
    stack: ExitStack,
    *,
    resume: bool,
    observers: Sequence[Observer],
) -> Population[Any]:
    rows = _open_rows(config, parts)
    settings = config.section("model")
    adapter = settings.pop("adapter")
    device = choose_device(settings.pop("device"), accelerator)
    model, tokenizer = open_model(**settings)
    env = parts.gym(
        rows.train,
        rows.test,
        tokenizer,
        final_dataset=rows.final,
        validation_datasets=rows.validation or None,
        accelerator=accelerator,
        **_seeded(config, "env"),
        **({"reward_fn": _rewards(config)} if parts.judges else {}),
    )
    about["model"] = {"name": model_label(settings["name"]), "parameters": model.num_parameters()}
    about["data"] = {split: {"rows": len(env.lengths(split))} for split in env.splits}
    if about and "status" in about:
        directory.write_about(about)
    arguments = _agent_arguments(config)
    size = config.values["population"]["size"]
    shared = {
        "actor_network": model,
        "accelerator": accelerator,
        "device": device,
        "lora_config": _lora_config(config),
        "hp_config": hyperparameter_config(config.values["evolution"]),
    }
    if parts.judges and config.values["generator"] is not None:
        shared["generator"] = stack.enter_context(VLLMGenerator(**config.section("generator")))
    agents: list[LLMAlgorithm] = [
        parts.agent(env.observation_space, env.action_space, index=index, **shared, **{**arguments, **differing})
        for index, differing in enumerate(founders(config.values["population"]["founders"], size, parts.agent))
    ]
    if adapter is not None:
        for agent in agents:
            agent.load_checkpoint(adapter, merge_lora_configs=True)
    evolution = make_evolution(_seeded(config, "evolution"), size)
    schedule = config.section("train")
    save_elite, fitness = schedule.pop("save_elite"), schedule.pop("fitness")
    schedule.pop("retention")
    population, _ = parts.finetune(
        agents,
        env,
        tournament=None if evolution is None else evolution.selection,
        mutation=None if evolution is None else evolution.mutation,
        evo_steps=None if evolution is None else evolution.evo_steps,
        fitness=load_function(fitness, "train.fitness") if fitness is not None and ":" in fitness else fitness,
        retention=_retention(config),
        save_elite=save_elite,
        elite_path=directory.elite,
        checkpoint_path=directory.checkpoints,
        lineage_path=directory.lineage,
        log_path=directory.metrics,
        resume_from="latest" if resume else None,
        accelerator=accelerator,
        observers=[*observers, *_samples(config, directory, env)],
        **({"rollouts_path": directory.rollouts} if parts.judges else {}),
        **schedule,
    )
    found: Population[Any] = population
    return found


# Sections ---------------------------------------------------------------------------------------------------------


def _agent_arguments(config: Config) -> dict[str, Any]:
    """The algorithm's own parameters."""
    return {
        name: value
        for name, value in config.values.items()
        if name not in _NOT_THE_AGENTS and name not in _section_names(config)
    }


def _section_names(config: Config) -> set[str]:
    from agiledpo.config.schema import Section

    return {name for name, entry in config.schema.entries.items() if isinstance(entry, Section)}


def _seeded(config: Config, name: str) -> Any:
    """A section in which null seeds are the run's."""

    def fill(values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {
            key: config.values["seed"] if key in ("seed", "rand_seed") and value is None else fill(value)
            for key, value in values.items()
        }

    return None if config.values[name] is None else fill(config.section(name))


def _open_rows(config: Config, parts: Any) -> Rows:
    settings = _seeded(config, "data")
    env = config.values["env"]
    if config.algorithm == "sft":
        settings["response_column"] = env["response_column"]
    elif parts.judges:
        settings["conversation_template"] = env["conversation_template"]
        settings["answer_column"] = env["answer_column"] or "answer"
    return open_data(parts.load, **settings)


def _lora_config(config: Config) -> LoraConfig:
    return LoraConfig(task_type="CAUSAL_LM", **config.section("lora"))


def _retention(config: Config) -> Retention | None:
    given = config.values["train"]["retention"]
    return None if given is None else Retention(**given)


def _rewards(config: Config) -> Any:
    if config.values["reward"] is None:
        raise ValueError(
            "reward=null: nothing says what an answer is worth. Set reward=module:function or reward=file.py:function, "
            "a function of completion, answer and question that returns a number."
        )
    return load_rewards(config.values["reward"])


def _samples(config: Config, directory: RunDirectory, env: Any) -> list[Observer]:
    """Who writes answers to look at."""
    del config, directory, env
    return []


__all__ = ["EMBEDDED", "check", "train"]
