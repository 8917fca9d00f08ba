"""The model card beside an adapter: what it is, what it was trained with, what it reached, how to load it."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agiledpo.checkpoint.identity import BaseModelIdentity

CARD = "README.md"

_TAGS = ("agiledpo", "lora", "preference-optimization")


def write_card(
    directory: Path,
    *,
    base: BaseModelIdentity,
    algorithm: str,
    hyperparameters: Mapping[str, Any],
    metrics: Mapping[str, float],
    optimizer_steps: int,
    rows: int,
    versions: Mapping[str, str],
) -> None:
    """Write ``README.md`` into the directory of an adapter.

    Args:
        directory: The PEFT directory.
        base: The base model that the adapter belongs to.
        algorithm: Class that trained it.
        hyperparameters: Their live values by name.
        metrics: Figures by name; those that are not finite are left out.
        optimizer_steps: Steps made.
        rows: Rows of training data learned from.
        versions: Versions of libraries by name.
    """
    text = "\n".join(
        [
            *_header(base, algorithm),
            "",
            f"# LoRA adapter trained with {algorithm}",
            "",
            f"An adapter for `{base.name or base.model_class}` ({base.model_class}, {base.dtype}), trained with "
            f"agiledpo's {algorithm} in {optimizer_steps} optimizer steps on {rows} rows.",
            "",
            *_figures(metrics),
            "## How to load it",
            "",
            "```python",
            "from peft import PeftModel",
            "from transformers import AutoModelForCausalLM",
            "",
            f"base = AutoModelForCausalLM.from_pretrained({json.dumps(base.name or 'path/to/the/base/model')})",
            'model = PeftModel.from_pretrained(base, "path/to/this/directory")',
            "```",
            "",
            "## Hyperparameters",
            "",
            *_table(("hyperparameter", "value"), {name: f"`{value!r}`" for name, value in hyperparameters.items()}),
            "## Versions",
            "",
            *_table(("library", "version"), versions),
        ]
    )
    (directory / CARD).write_text(text.rstrip("\n") + "\n", encoding="utf-8")


def _header(base: BaseModelIdentity, algorithm: str) -> list[str]:
    # A string in JSON is one in YAML. A directory on this machine means nothing to others, and hubs refuse it.
    named = base.name and not Path(base.name).is_absolute() and not base.name.startswith((".", "~"))
    return [
        "---",
        *([f"base_model: {json.dumps(base.name)}"] if named else []),
        "library_name: peft",
        "pipeline_tag: text-generation",
        "tags:",
        *(f"- {tag}" for tag in (*_TAGS, algorithm.lower())),
        "---",
    ]


def _figures(metrics: Mapping[str, float]) -> list[str]:
    finite = {name: f"{value:.6g}" for name, value in metrics.items() if math.isfinite(value)}
    return ["## Figures", "", *_table(("metric", "value"), finite)] if finite else []


def _table(titles: tuple[str, str], rows: Mapping[str, str]) -> list[str]:
    lines = [f"| {titles[0]} | {titles[1]} |", "|---|---|"]
    cells = [(_cell(name), _cell(value)) for name, value in rows.items()]
    return [*lines, *(f"| {name} | {value} |" for name, value in cells), ""]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
