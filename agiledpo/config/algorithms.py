"""What can be configured for each algorithm, section by section."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from peft import LoraConfig

from agiledpo.algorithms import DPO, GRPO, SFT
from agiledpo.algorithms.core.llm import LLMAlgorithm
from agiledpo.algorithms.core.setup import DEFAULT_LORA
from agiledpo.config.docstrings import parameter_help
from agiledpo.config.schema import Entry, Parameter, Section, parameters_of, section
from agiledpo.data import load_demonstrations, load_preferences, load_questions
from agiledpo.generation.vllm import VLLMGenerator
from agiledpo.hpo import Mutations
from agiledpo.launch.data import open_data
from agiledpo.launch.evolving import SELECTIONS
from agiledpo.launch.model import open_model
from agiledpo.llm_envs import PreferenceGym, ReasoningGym, SFTGym
from agiledpo.training.retention import Retention
from agiledpo.training.samples import Samples
from agiledpo.training.trackers import Trackers
from agiledpo.training.train_llm import finetune_llm_preference, finetune_llm_reasoning, finetune_llm_sft


@dataclass(frozen=True)
class Algorithm:
    """What a configuration of one algorithm is made of.

    Attributes:
        agent: The class of its agents.
        gym: The class of its environment.
        load: Opens its data.
        finetune: Trains its agents.
        judges: Whether it learns from a reward.
    """

    agent: type[LLMAlgorithm]
    gym: Callable[..., Any]
    load: Callable[..., Any]
    finetune: Callable[..., Any]
    judges: bool = False


ALGORITHMS: Mapping[str, Algorithm] = {
    "dpo": Algorithm(DPO, PreferenceGym, load_preferences, finetune_llm_preference),
    "sft": Algorithm(SFT, SFTGym, load_demonstrations, finetune_llm_sft),
    "grpo": Algorithm(GRPO, ReasoningGym, load_questions, finetune_llm_reasoning, judges=True),
}

# What other sections give, or what belongs to a program and not to a configuration.
_AGENT = (
    "observation_space",
    "action_space",
    "model_name",
    "actor_network",
    "model_config",
    "hp_config",
    "index",
    "device",
    "lora_config",
    "accelerator",
    "wrap",
    "clone",
    "generator",
)
_ROWS = ("train_dataset", "test_dataset", "final_dataset", "validation_datasets")
_GYM = (*_ROWS, "tokenizer", "accelerator", "reward_fn", "return_raw_completions")
# Of a loader: what is given for each source, what `open_data` has, and what the environment says.
_LOADER = (
    "source",
    "layout",
    "dataset_name",
    "split",
    "max_rows",
    "response_column",
    "conversation_template",
    "answer_column",
)
_FINETUNE = (
    "pop",
    "env",
    "env_fn",
    "rollout",
    "tournament",
    "mutation",
    "evo_steps",
    "checkpoint_path",
    "resume_from",
    "retention",
    "elite_path",
    "lineage_path",
    "log_path",
    "rollouts_path",
    "observers",
    "trackers",
    "accelerator",
)
# What PEFT fills in itself, or what only holds while a model is in memory.
_LORA = (
    "task_type",
    "peft_type",
    "auto_mapping",
    "peft_version",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "runtime_config",
)
# What language models do not have, and AgileRL's signature does.
_MUTATION = (
    "architecture",
    "new_layer_prob",
    "parameters",
    "activation",
    "mutation_sd",
    "activation_selection",
    "device",
    "accelerator",
)
# What constructors demand and a configuration need not say.
_CHOSEN = {"tournament_size": 2, "elitism": True, "no_mutation": 0.2}

# Parameters that are seeds; null takes the run's.
SEEDS = ("seed", "rand_seed")
_FOLLOWS = "; null takes the run's `seed`."


@cache
def schema_of(algorithm: str) -> Section:
    """Everything that can be configured for an algorithm.

    Args:
        algorithm: A key of `ALGORITHMS`.
    """
    parts = ALGORITHMS[algorithm]
    sections = [
        _model(),
        _data(parts),
        _env(parts),
        _lora(),
        _population(),
        _evolution(),
        _train(parts),
        _samples(),
        _trackers(),
        *([_generator()] if parts.judges else []),
    ]
    entries: dict[str, Entry] = {
        **parameters_of(parts.agent, leave_out=_AGENT),
        **_program(parts),
        **{part.name: part for part in sections},
    }
    return Section("", f"agiledpo train {algorithm}", entries)


@cache
def parameters_of_agent(algorithm: str) -> tuple[str, ...]:
    """Names of an algorithm's own parameters, which are at the top of a configuration.

    Args:
        algorithm: A key of `ALGORITHMS`.
    """
    return tuple(parameters_of(ALGORITHMS[algorithm].agent, leave_out=_AGENT))


def _program(parts: Algorithm) -> dict[str, Entry]:
    own: dict[str, Entry] = {
        "threads": Parameter("threads", int | None, None, "Threads to compute with on a CPU; null for all cores."),
    }
    if parts.judges:
        own["reward"] = Parameter(
            "reward",
            str | list[str] | dict[str, str] | None,
            None,
            "What answers are worth: module:function or file.py:function, of completion, answer and question. Several "
            "of them, in a list or by name, are added up with env.reward_weights.",
        )
    return own


def _model() -> Section:
    entries = parameters_of(open_model)
    entries["device"] = Parameter(
        "device",
        str | None,
        None,
        'Where to compute, such as "cuda:1" or "cpu"; null takes a GPU if there is one. Several processes have one '
        "each.",
    )
    entries["adapter"] = Parameter(
        "adapter",
        str | None,
        None,
        "Checkpoint whose adapter training starts from, such as the elite of an SFT run. It becomes the reference too, "
        "unless it is of the same algorithm.",
    )
    return Section("model", "The base model, which all agents share and nothing changes", entries)


def _data(parts: Algorithm) -> Section:
    seed = {"seed": "Of what is held out" + _FOLLOWS}
    entries = parameters_of(
        open_data, leave_out=("load", "how"), hints={"seed": int | None}, defaults={"seed": None}, helps=seed
    )
    entries |= parameters_of(parts.load, leave_out=_LOADER)
    return Section("data", "What to learn from, and what to hold out", entries)


def _env(parts: Algorithm) -> Section:
    return section(
        "env",
        "How rows are tokenised and handed out",
        parts.gym,
        leave_out=_GYM,
        hints={"seed": int | None},
        defaults={"seed": None},
        helps={"seed": "Of the training order" + _FOLLOWS},
    )


def _lora() -> Section:
    return section("lora", "The adapters, as PEFT's LoraConfig", LoraConfig, leave_out=_LORA, defaults=DEFAULT_LORA)


def _population() -> Section:
    size = Parameter("size", int, 1, "Agents, all on the one base model.")
    founders = Parameter(
        "founders",
        dict[str, Any] | None,
        None,
        "Hyperparameters in which agents differ at the start: a value for each agent, lr: [1e-5, 1e-4], or a range "
        "that they are spread over, lr: {min: 1e-5, max: 1e-4}.",
    )
    return Section("population", "Several agents at once", {"size": size, "founders": founders})


def _evolution() -> Section:
    leave_out = ("population_size",)
    follow: dict[str, Any] = {
        "hints": {"rand_seed": int | None},
        "defaults": {"rand_seed": None, **_CHOSEN},
        "helps": {"rand_seed": "Seed of the draws" + _FOLLOWS},
    }
    strategy = Parameter(
        "strategy",
        Literal["tournament", "truncation", "multi_frequency"],
        "tournament",
        "Who survives: tournament, truncation (population-based training) or multi_frequency.",
    )
    variants = {name: parameters_of(made, leave_out=leave_out, **follow) for name, made in SELECTIONS.items()}
    selection = Section(
        "selection", "Which agents go on", {"strategy": strategy}, variant="strategy", variants=variants
    )
    mutation = section("mutation", "How hyperparameters change", Mutations, leave_out=_MUTATION, **follow)
    entries: dict[str, Entry] = {
        "evo_steps": Parameter("evo_steps", int, 10, parameter_help(finetune_llm_preference)["evo_steps"]),
        "hyperparameters": Parameter(
            "hyperparameters",
            dict[str, Any],
            {},
            "What may mutate and where to, by name: lr: {min: 1e-6, max: 1e-3}, beta: {log_uniform: [0.01, 1.0]}, "
            "loss_type: {choice: [sigmoid, ipo]}.",
        ),
        "selection": selection,
        "mutation": mutation,
    }
    return Section("evolution", "Selection and mutation while the run goes on; null for none", entries, True)


def _train(parts: Algorithm) -> Section:
    # A run directory has an elite.
    entries = parameters_of(
        parts.finetune, leave_out=_FINETUNE, hints={"fitness": str | None}, defaults={"save_elite": True}
    )
    text = "Which checkpoints are kept; null for the last two"
    entries["retention"] = section("retention", text, Retention, is_optional=True)
    text = "How long to train, and when to evaluate and save; num_epochs and max_steps exclude each other"
    return Section("train", text, entries, alternatives=(("num_epochs", "max_steps"),))


def _samples() -> Section:
    return section(
        "samples",
        "Held-out prompts that the elite answers before training and at each evaluation; count: 0 for none",
        Samples,
        leave_out=("path", "env"),
        hints={"seed": int | None},
        defaults={"seed": None},
        helps={"seed": "Of the choice of prompts and of sampling" + _FOLLOWS},
    )


def _trackers() -> Section:
    entries = parameters_of(
        Trackers,
        leave_out=("config",),
        hints={"names": list[str]},
        defaults={"names": []},
        helps={
            "names": "Any of tensorboard, wandb, mlflow and trackio.",
            "run_name": "The run's name there; null for that of its directory.",
            "directory": "Where TensorBoard's and W&B's files go; null for a place in the run's directory.",
        },
    )
    return Section("trackers", "Where figures go beside the log; a list stands for names", entries, shorthand="names")


def _generator() -> Section:
    text = (
        "The vLLM server that samples completions; null for the model itself. Its key, if it has one, is in the "
        "environment variable VLLM_API_KEY"
    )
    # A configuration is written to the run's directory and to trackers.
    return section("generator", text, VLLMGenerator, is_optional=True, leave_out=("api_key",))
