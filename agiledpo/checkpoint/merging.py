"""Getting out: a trained adapter and its base model become one ordinary model, without PEFT and agiledpo."""

import os
import warnings
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from agiledpo.adapters.folding import bare_twin, fold
from agiledpo.adapters.shared_base import SharedBaseModel
from agiledpo.checkpoint.directory import MANIFEST, written_atomically
from agiledpo.checkpoint.identity import check_base, identity_of
from agiledpo.checkpoint.manifest import library_versions
from agiledpo.checkpoint.merged_card import write_merged_card
from agiledpo.checkpoint.saved_policy import SavedPolicy, load_tokenizer


def merge(
    path: str | Path,
    out: str | Path,
    *,
    base_model: str | Path | PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | str | Path | None = None,
    dtype: torch.dtype | None = None,
    max_shard_size: int | str = "5GB",
) -> Path:
    """Merge a trained adapter into its base model and write the result.

    ``AutoModelForCausalLM.from_pretrained(out)`` and ``AutoTokenizer.from_pretrained(out)`` load what is written:
    safetensors, configuration, generation configuration, tokenizer and a model card. The directory is complete or
    absent.

    The sum of a weight and its change is taken in float32 and rounded once, to ``dtype``. A bfloat16 number has eight
    significant bits, so what an adapter changes by less than 1/512 of a weight is lost in any case, but rounding the
    change first and the sum again would lose twice. So merged bfloat16 logits differ from the adapter's by rounding;
    ``dtype=torch.float32`` keeps everything. LoRA, rsLoRA, DoRA, adapters on embeddings and ``modules_to_save`` can be
    merged. If the adapter changes one of two tied weights (embedding and head) both are written, and
    ``tie_word_embeddings`` is False in the configuration.

    Memory: a base model that is given is shared, and only the weights that the adapter changes are new. One that is
    loaded here is read from mapped files, beside which the changed weights stand.

    Args:
        path: An agent's checkpoint, or a directory that PEFT, TRL or AgileRL wrote an adapter to.
        out: Directory to write; it must be absent or empty.
        base_model: The base model: its name or path, or the model itself, which may carry agents' adapters and does not
            change. None takes the weights in a checkpoint that was saved with ``lora_only=False``, or else the name
            that the checkpoint gives.
        tokenizer: The tokenizer, its name or its path. None takes the one in the checkpoint, or else the base model's.
        dtype: Of the weights that are written; None keeps each one's own, as the base model has it (in its files, if it
            is loaded here).
        max_shard_size: Largest size of a file of weights, in bytes or as text such as ``"5GB"``.

    Returns:
        ``out``.

    Raises:
        FileExistsError: ``out`` is there and not an empty directory.
        CheckpointError: The checkpoint is damaged, or the base model is another one than it was trained on.
        AdapterFileError: The adapter is damaged, does not fit the base model or cannot be merged (aLoRA, BD-LoRA, and
            others that weights of the base's shape cannot express).
        ValueError: No base model or no tokenizer is known, or the base model is quantized.
    """
    path, out = Path(path), Path(out)
    _check_out(out)
    source = SavedPolicy.read(path)
    stored = source.stored_base() if base_model is None else None
    name = _base_name(source, base_model, stored is not None)
    chosen = _tokenizer(source, tokenizer, name)
    base = SharedBaseModel.of(
        bare_twin(base_model) if isinstance(base_model, PreTrainedModel) else source.load_base(stored, name)
    )
    _check_base(source, base)
    model = fold(base, source.adapter, dtype)
    with written_atomically(out) as draft:
        model.save_pretrained(draft, max_shard_size=max_shard_size)
        chosen.save_pretrained(draft)
        write_merged_card(
            draft,
            base_name=name,
            model_class=type(model).__name__,
            dtype=str(model.dtype).removeprefix("torch."),
            algorithm=source.manifest.algorithm if source.manifest else None,
            config=source.adapter.config,
            metrics=source.manifest.metrics if source.manifest else {},
            versions=library_versions(),
        )
    return out


def _check_out(out: Path) -> None:
    if out.is_symlink() or (out.exists() and not (out.is_dir() and not any(out.iterdir()))):
        raise FileExistsError(f"{out} is there and is not an empty directory; choose another out or remove it.")


def _base_name(source: SavedPolicy, base_model: str | Path | PreTrainedModel | None, is_stored: bool) -> str:
    """Name or path of the base model; empty if there is a model that has none."""
    if isinstance(base_model, PreTrainedModel):
        return base_model.name_or_path or ""
    if base_model is not None:
        return os.fspath(base_model)
    if not source.base_name and not is_stored:
        raise ValueError(f"{source.path} does not say which base model it belongs to; pass base_model.")
    return source.base_name


def _check_base(source: SavedPolicy, base: SharedBaseModel) -> None:
    live = identity_of(base)
    if source.manifest is not None and source.manifest.base_model is not None:
        check_base(source.manifest.base_model, live, str(source.path / MANIFEST))
        return
    claimed = source.adapter.config.base_model_name_or_path
    if claimed and live.name and claimed != live.name:
        warnings.warn(
            f"{source.adapter.config_file} names the base model {claimed}, and the adapter is merged into {live.name}; "
            "their shapes fit, and nothing else is known.",
            stacklevel=3,
        )


def _tokenizer(
    source: SavedPolicy, tokenizer: PreTrainedTokenizerBase | str | Path | None, base_name: str
) -> PreTrainedTokenizerBase:
    if isinstance(tokenizer, PreTrainedTokenizerBase):
        return tokenizer
    if tokenizer is not None:
        return load_tokenizer(os.fspath(tokenizer), "tokenizer")
    return source.load_tokenizer(base_name)
