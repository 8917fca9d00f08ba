"""The model card beside an adapter."""

import math

import pytest
import yaml
from huggingface_hub import ModelCard
from peft import PeftModel
from transformers import AutoModelForCausalLM

from agiledpo.checkpoint import save_agent
from agiledpo.checkpoint.card import write_card
from agiledpo.checkpoint.identity import BaseModelIdentity

NAMED = BaseModelIdentity("org/a: model", "LlamaForCausalLM", "bfloat16", "5.23.0", "0", "0", "0")


def header(text: str) -> dict:
    return yaml.safe_load(text.split("---\n")[1])


def card(directory, base=NAMED, **changes):
    arguments = {
        "algorithm": "DPO",
        "hyperparameters": {"beta": 0.1, "loss_type": ("sigmoid",), "f_divergence_type": "a|b"},
        "metrics": {"rewards/accuracies": 0.8125, "loss": math.nan},
        "optimizer_steps": 12,
        "rows": 384,
        "versions": {"agiledpo": "1.0"},
    }
    write_card(directory, base=base, **{**arguments, **changes})
    return (directory / "README.md").read_text()


def test_hubs_read_its_header(tmp_path):
    card(tmp_path)
    data = ModelCard.load(tmp_path / "README.md").data
    assert data.base_model == "org/a: model"
    assert data.library_name == "peft"
    assert {"agiledpo", "lora", "dpo"} <= set(data.tags)


def test_it_says_what_was_done_and_reached(tmp_path):
    text = card(tmp_path)
    assert "in 12 optimizer steps on 384 rows" in text
    assert "| rewards/accuracies | 0.8125 |" in text
    assert "| beta | `0.1` |" in text
    assert "| f_divergence_type | `'a\\|b'` |" in text
    assert "nan" not in text
    assert "## Figures" not in card(tmp_path, metrics={})


@pytest.mark.parametrize("name", ["", "/data/models/x", "./x", "~/x"])
def test_a_directory_of_this_machine_is_no_name_for_others(tmp_path, name):
    text = card(tmp_path, BaseModelIdentity(name, "LlamaForCausalLM", "float32", "5", "0", "0", "0"))
    assert "base_model" not in header(text)


def test_its_code_loads_the_adapter(make_trained, tiny_model, tmp_path):
    tiny_model().save_pretrained(tmp_path / "base")
    agent = make_trained(model_name=str(tmp_path / "base"))
    save_agent(agent, tmp_path / "c", metrics={"accuracy": 0.5})
    text = (tmp_path / "c" / "actor" / "README.md").read_text()
    assert "| accuracy | 0.5 |" in text
    code = text.split("```python\n")[1].split("```")[0].replace("path/to/this/directory", str(tmp_path / "c" / "actor"))
    names: dict[str, object] = {}
    exec(code, names)
    assert isinstance(names["model"], PeftModel)
    assert names["AutoModelForCausalLM"] is AutoModelForCausalLM
