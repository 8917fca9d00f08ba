"""docs/coming-from-trl.md against the installed TRL and our own signatures."""

import inspect
import re
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
import trl
from trl import DPOConfig
from trl.trainer.base_config import _BaseConfig
from trl.trainer.utils import disable_dropout_in_model

from agiledpo.algorithms import DPO
from agiledpo.llm_envs import PreferenceGym
from agiledpo.training.train_llm import finetune_llm_preference

PAGE = (Path(__file__).parents[2] / "docs/coming-from-trl.md").read_text()
OURS = {call.__name__: inspect.signature(call).parameters for call in (DPO, PreferenceGym, finetune_llm_preference)}
ROWS = re.findall(r"^\| `(\w+)` \| `(.+?)` \| (?:`(\w+)\((\w+)=\)`|—) \| (?:`(.+?)`|—) \| (.*)\|$", PAGE, re.MULTILINE)


def test_the_page_is_of_the_installed_version() -> None:
    if not trl.__version__.startswith("1.16."):
        pytest.skip(f"the page is about TRL 1.16, installed is {trl.__version__}")
    theirs = {field.name: field for field in fields(DPOConfig)}
    for name, written, *_ in ROWS:
        field = theirs[name]
        default = field.default if field.default_factory is MISSING else field.default_factory()
        plain = getattr(default, "value", default)  # of an enumeration
        assert written == repr(plain), name


def test_every_argument_of_dpo_config_is_on_the_page() -> None:
    own = {field.name for field in fields(DPOConfig)} - {field.name for field in fields(_BaseConfig)}
    assert own | {"learning_rate"} <= {name for name, *_ in ROWS}
    assert len(ROWS) > 40


def test_what_the_page_says_of_our_arguments_is_so() -> None:
    for name, _, call, parameter, default, remark in ROWS:
        if not call:
            assert len(remark.strip()) > 5 or name == "pad_to_multiple_of", name
            continue
        assert parameter in OURS[call], f"{name}: {call} has no {parameter}"
        assert default == repr(OURS[call][parameter].default), f"{name}: {call}({parameter}=)"


def test_trl_switches_loras_dropout_off_and_we_do_not(tiny_model, lora) -> None:
    """Why the page says to set lora_dropout=0 for the same steps."""
    lora.lora_dropout = 0.5
    agent = DPO(actor_network=tiny_model(), lora_config=lora)
    agent.set_training_mode(True)
    dropouts = [module for name, module in agent.get_policy().named_modules() if "lora_dropout.agent" in name]
    rates = [module.p for module in agent.get_policy().modules() if type(module).__name__ == "Dropout"]
    assert dropouts or rates
    assert 0.5 in rates
    disable_dropout_in_model(agent.get_policy())
    assert {module.p for module in agent.get_policy().modules() if type(module).__name__ == "Dropout"} == {0}
