"""Sections of a configuration as what they configure wants them."""

import os
from pathlib import Path
from typing import Any

from peft import LoraConfig

from agiledpo.config import Config
from agiledpo.generation.vllm import VLLMGenerator
from agiledpo.launch.functions import load_function, load_rewards
from agiledpo.training.retention import Retention
from agiledpo.training.trackers import Trackers


def lora_of(config: Config) -> LoraConfig:
    """The adapters."""
    return LoraConfig(task_type="CAUSAL_LM", **config.section("lora"))


def retention_of(config: Config) -> Retention | None:
    """Which checkpoints are kept."""
    given = config.values["train"]["retention"]
    return None if given is None else Retention(**given)


def fitness_of(config: Config) -> Any:
    """How agents are compared: a name, or a function that ``train.fitness`` names."""
    given = config.values["train"]["fitness"]
    return load_function(given, "train.fitness") if given is not None and ":" in given else given


def rewards_of(config: Config) -> Any:
    """What answers are worth.

    Raises:
        ValueError: Nothing says it.
    """
    given = config.values["reward"]
    if not given:
        shown = "null" if given is None else repr(given)
        raise ValueError(
            f"reward={shown}: nothing says what an answer is worth. Set reward=module:function or "
            "reward=file.py:function, a function of completion, answer and question that returns a number."
        )
    return load_rewards(given)


def generator_of(config: Config) -> VLLMGenerator | None:
    """The server that samples completions; its key is what the environment variable ``VLLM_API_KEY`` holds."""
    given = config.values["generator"]
    return None if given is None else VLLMGenerator(**given, api_key=os.environ.get("VLLM_API_KEY"))


def rows_of(config: Config) -> dict[str, Any]:
    """How data are opened."""
    settings: dict[str, Any] = config.seeded("data")
    env = config.values["env"]
    if "response_column" in env:
        settings["response_column"] = env["response_column"]
    if "conversation_template" in env:
        settings["conversation_template"] = env["conversation_template"]
        settings["answer_column"] = env["answer_column"] or "answer"
    return settings


def trackers_of(config: Config, directory: Path) -> Trackers:
    """Where figures go beside the log.

    Args:
        config: The configuration.
        directory: The run's.

    Raises:
        ModuleNotFoundError: What one needs is not installed.
    """
    given = config.section("trackers")
    place, name = given.pop("directory") or directory / "trackers", given.pop("run_name") or directory.name
    return Trackers(**given, directory=place, run_name=name, config=config.values)
