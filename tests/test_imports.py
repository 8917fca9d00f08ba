"""Importing the package stays light, and every module imports."""

import importlib
import pkgutil
import subprocess
import sys

import pytest

import agiledpo

OPTIONAL = (
    "deepspeed",
    "liger_kernel",
    "wandb",
    "tensorboard",
    "mlflow",
    "trackio",
    "plotly",
    "matplotlib",
    "gguf",
    "trl",
)
MODULES = [module.name for module in pkgutil.walk_packages(agiledpo.__path__, "agiledpo.")]


@pytest.mark.parametrize("module", MODULES)
def test_every_module_imports(module):
    importlib.import_module(module)


def test_no_optional_package_is_imported():
    code = f"""
import sys
import agiledpo.algorithms, agiledpo.llm_envs, agiledpo.training.train_llm, agiledpo.utils.utils
print([name for name in {OPTIONAL!r} if name in sys.modules])
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_bare_package_imports_nothing_heavy():
    code = "import sys, agiledpo; print([n for n in ('torch', 'transformers', 'peft', 'datasets') if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_nothing_needs_vllm_deepspeed_or_liger():
    """With the packages made unimportable the whole surface still imports."""
    code = f"""
import sys
for name in {(*OPTIONAL, "vllm")!r}:
    sys.modules[name] = None
from agiledpo.algorithms import DPO
from agiledpo.llm_envs import PreferenceGym
from agiledpo.training.train_llm import finetune_llm_preference
from agiledpo.utils.utils import save_llm_checkpoint
"""
    subprocess.run([sys.executable, "-c", code], check=True)
