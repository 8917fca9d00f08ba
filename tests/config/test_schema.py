"""Every parameter of a signature is a parameter of the configuration, once."""

import inspect
from collections import Counter
from collections.abc import Callable
from typing import Any

import peft
import pytest
import yaml

from agiledpo.algorithms import DPO, GRPO, SFT
from agiledpo.config import load_config
from agiledpo.config.algorithms import ALGORITHMS, schema_of
from agiledpo.config.schema import Parameter, Section
from agiledpo.hpo import Mutations, TournamentSelection
from agiledpo.llm_envs import PreferenceGym, ReasoningGym, SFTGym
from agiledpo.training.retention import Retention
from agiledpo.training.train_llm import finetune_llm_preference

_MODEL = {"actor_network", "model_name", "model_config", "lora_config", "hp_config", "device", "accelerator"}
_PROGRAM = {"observation_space", "action_space", "index", "wrap", "clone", "generator"}
_EVOLVING = ["population.size=4", "evolution.evo_steps=2", "evolution.hyperparameters.lr={min: 1e-6, max: 1e-3}"]


def _names(configured: Callable[..., Any]) -> set[str]:
    return set(inspect.signature(configured).parameters) - {"args", "kwargs"}


def _keys(text: str) -> Counter[str]:
    """How often each path of keys is in a file; the loader of YAML keeps the last of equal ones only."""
    found: Counter[str] = Counter()

    def visit(node: yaml.Node, prefix: str) -> None:
        for key, value in node.value if isinstance(node, yaml.MappingNode) else []:
            found[f"{prefix}{key.value}"] += 1
            visit(value, f"{prefix}{key.value}.")

    visit(yaml.compose(text, Loader=yaml.SafeLoader), "")
    return found


@pytest.mark.parametrize(
    ("name", "agent", "gym"), [("dpo", DPO, PreferenceGym), ("sft", SFT, SFTGym), ("grpo", GRPO, ReasoningGym)]
)
def test_each_parameter_is_printed_once(name: str, agent: Any, gym: Any) -> None:
    keys = _keys(load_config(name, [], [*_EVOLVING, "train.retention.keep_best=1"]).to_yaml())
    assert set(keys.values()) == {1}
    expected = {
        "": _names(agent) - _MODEL - _PROGRAM,
        "env.": _names(gym)
        - {"train_dataset", "test_dataset", "final_dataset", "validation_datasets", "tokenizer", "accelerator"}
        - {"reward_fn", "return_raw_completions"},
        "lora.": {"r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "use_dora", "rank_pattern"},
        "evolution.selection.": _names(TournamentSelection) - {"population_size"},
        "evolution.mutation.": {"no_mutation", "rl_hp", "mutate_elite", "rand_seed"},
        "train.": {"num_epochs", "max_steps", "evaluation_interval", "checkpoint_steps", "fitness", "parallel"},
        "train.retention.": _names(Retention),
    }
    for prefix, names in expected.items():
        missing = {f"{prefix}{parameter}" for parameter in names} - keys.keys()
        assert not missing


def test_defaults_are_those_of_the_signatures() -> None:
    # Neither model nor data of the example, so that nothing comes over the defaults.
    values = load_config("dpo", [], ["model.name=x"]).values
    signature = inspect.signature(DPO).parameters
    for name in ("lr", "beta", "nll_alpha", "batch_size", "loss_type", "reference_cache_bytes", "seed"):
        assert values[name] == signature[name].default
    assert values["train"]["evaluation_interval"] == (
        inspect.signature(finetune_llm_preference).parameters["evaluation_interval"].default
    )
    assert values["lora"]["init_lora_weights"] is peft.LoraConfig().init_lora_weights
    # What an agent takes that is made without a LoRA configuration.
    lora = {name: values["lora"][name] for name in ("r", "lora_alpha", "lora_dropout", "target_modules")}
    assert lora == {"r": 16, "lora_alpha": 32, "lora_dropout": 0.05, "target_modules": "all-linear"}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_everything_is_explained(algorithm: str) -> None:
    for path, entry in schema_of(algorithm).walk():
        text = entry.line if isinstance(entry, Parameter) else entry.help
        assert len(text) > 5, path
        assert "None" not in text, path


def test_mutations_of_networks_are_not_offered() -> None:
    evolution = schema_of("dpo").entries["evolution"]
    assert isinstance(evolution, Section)
    mutation = evolution.entries["mutation"]
    assert isinstance(mutation, Section)
    assert _names(Mutations) - mutation.entries.keys() == {
        *("architecture", "new_layer_prob", "parameters", "activation"),
        *("mutation_sd", "activation_selection", "device", "accelerator"),
    }
