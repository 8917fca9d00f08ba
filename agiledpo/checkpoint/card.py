"""The model card beside an adapter: what it is, what it was trained with, what it reached, how to load it."""

import json
import math
from collections.abc import Mapping, Sequence
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
            *card_header(base.name, "peft", (*_TAGS, algorithm.lower())),
            "",
            f"# LoRA adapter trained with {algorithm}",
            "",
            f"An adapter for `{base.name or base.model_class}` ({base.model_class}, {base.dtype}), trained with "
            f"agiledpo's {algorithm} in {optimizer_steps} optimizer steps on {rows} rows.",
            "",
            *card_table("Figures", ("metric", "value"), figures(metrics)),
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
            *card_table(
                "Hyperparameters",
                ("hyperparameter", "value"),
                {name: f"`{value!r}`" for name, value in hyperparameters.items()},
            ),
            *card_table("Versions", ("library", "version"), versions),
        ]
    )
    (directory / CARD).write_text(text.rstrip("\n") + "\n", encoding="utf-8")


def card_header(base_name: str, library: str, tags: Sequence[str]) -> list[str]:
    """The block of metadata that hubs read.

    Args:
        base_name: Name or path of the base model; empty for none.
        library: What loads the model.
        tags: What it can be found by.
    """
    # A string in JSON is one in YAML. A directory on this machine means nothing to others, and hubs refuse it.
    named = base_name and not Path(base_name).is_absolute() and not base_name.startswith((".", "~"))
    return [
        "---",
        *([f"base_model: {json.dumps(base_name)}"] if named else []),
        f"library_name: {library}",
        "pipeline_tag: text-generation",
        "tags:",
        *(f"- {tag}" for tag in tags),
        "---",
    ]


def card_table(title: str, heads: tuple[str, str], rows: Mapping[str, str]) -> list[str]:
    """A section with a table of two columns; nothing without rows.

    Args:
        title: Of the section.
        heads: Of the columns.
        rows: First and second column.
    """
    if not rows:
        return []
    cells = [tuple(text.replace("|", "\\|").replace("\n", " ") for text in row) for row in rows.items()]
    lines = [f"| {heads[0]} | {heads[1]} |", "|---|---|", *(f"| {name} | {value} |" for name, value in cells)]
    return [f"## {title}", "", *lines, ""]


def figures(metrics: Mapping[str, float]) -> dict[str, str]:
    """Metrics to show: those that are finite."""
    return {name: f"{value:.6g}" for name, value in metrics.items() if math.isfinite(value)}
