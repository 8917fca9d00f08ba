"""What a server finds in ``actor/``: the conditions under which vLLM loads a LoRA adapter."""

import json
from pathlib import Path

import pytest
from peft import LoraConfig
from safetensors import safe_open

from agiledpo.algorithms import DPO

# As vLLM reads adapters (vllm/lora/peft_helper.py and lora_model.py, 2026): settings that it refuses, and settings that
# older versions read over, so that an adapter would be served with the wrong scale.
REFUSED = ("modules_to_save", "use_dora", "lora_bias", "alora_invocation_tokens", "layer_replication", "use_bdlora")
READ_OVER = ("rank_pattern", "alpha_pattern", "trainable_token_indices")
INITS = (True, False, "gaussian", "orthogonal")


def obstacles(directory: Path) -> set[str]:
    """Settings and tensors of an adapter's directory that vLLM does not serve as they are meant."""
    config = json.loads((directory / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert isinstance(config["r"], int)
    assert config["r"] > 0
    assert config["lora_alpha"] > 0
    found = {name for name in (*REFUSED, *READ_OVER, "use_qalora") if config.get(name)}
    if config.get("bias", "none") != "none":
        found.add("bias")
    if config.get("init_lora_weights", True) not in INITS:
        found.add("init_lora_weights")
    targets = config["target_modules"]
    if not isinstance(targets, list):
        found.add("target_modules")
    with safe_open(directory / "adapter_model.safetensors", "pt") as tensors:
        for key in tensors.keys():  # noqa: SIM118
            module, _, factor = key.removesuffix(".weight").rpartition(".")
            if not (key.startswith("base_model.model.") and factor in ("lora_A", "lora_B")):
                found.add(key)
            elif not any(f".{module}".endswith(f".{target}") for target in targets):
                found.add(module)
    return found


@pytest.fixture
def served(tiny_model, randomise, tmp_path):
    def save(**settings: object) -> Path:
        config = LoraConfig(**{"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **settings})
        agent = DPO(actor_network=tiny_model(), lora_config=config)
        randomise(agent)
        agent.save_checkpoint(tmp_path / "agent")
        return tmp_path / "agent" / "actor"

    return save


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True, "lora_alpha": 16, "lora_dropout": 0.1},
        {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1]},
        {"init_lora_weights": "gaussian"},
    ],
    ids=str,
)
def test_the_actor_is_what_vllm_expects(served, settings):
    directory = served(**settings)
    assert obstacles(directory) == set()
    config = json.loads((directory / "adapter_config.json").read_text())
    projections = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert {target.rpartition(".")[2] for target in config["target_modules"]} <= projections


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"alpha_pattern": {"q_proj": 32}}, "alpha_pattern"),
    ],
    ids=str,
)
def test_what_must_be_merged_first_is_told_from_it(served, settings, named):
    assert named in obstacles(served(**settings))
