"""The model card of a merged model: what it is, what it was made of, what the run reached, how to load it."""

from collections.abc import Mapping
from pathlib import Path

from peft import LoraConfig

from agiledpo.checkpoint.card import CARD, card_header, card_table, figures


def write_merged_card(
    directory: Path,
    *,
    base_name: str,
    model_class: str,
    dtype: str,
    algorithm: str | None,
    config: LoraConfig,
    metrics: Mapping[str, float],
    versions: Mapping[str, str],
) -> None:
    """Write ``README.md`` into the directory of a merged model.

    Args:
        directory: Where the model is.
        base_name: Name or path of the base model; empty if it had none.
        model_class: Its class.
        dtype: Of the merged weights.
        algorithm: Class that trained the adapter; None if that is not known.
        config: Of the adapter.
        metrics: Figures by name; those that are not finite are left out.
        versions: Versions of libraries by name.
    """
    trained = f"trained with agiledpo's {algorithm}, " if algorithm else ""
    targets = config.target_modules
    adapter = {
        "rank": str(config.r),
        "alpha": str(config.lora_alpha),
        "rsLoRA": str(config.use_rslora),
        "DoRA": str(config.use_dora),
        "targets": ", ".join(sorted(targets)) if isinstance(targets, (set, list)) else str(targets),
    }
    text = "\n".join(
        [
            *card_header(base_name, "transformers", ("agiledpo", *([algorithm.lower()] if algorithm else []))),
            "",
            f"# {Path(base_name).name or model_class}" + (f", tuned with {algorithm}" if algorithm else ", tuned"),
            "",
            f"`{base_name or model_class}` ({model_class}) with a LoRA adapter, {trained}merged into its weights "
            f"({dtype}).",
            "",
            *card_table("Figures", ("metric", "value"), figures(metrics)),
            "## How to load it",
            "",
            "```python",
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            'model = AutoModelForCausalLM.from_pretrained("path/to/this/directory")',
            'tokenizer = AutoTokenizer.from_pretrained("path/to/this/directory")',
            "```",
            "",
            *card_table("Adapter", ("setting", "value"), adapter),
            *card_table("Versions", ("library", "version"), versions),
        ]
    )
    (directory / CARD).write_text(text.rstrip("\n") + "\n", encoding="utf-8")
