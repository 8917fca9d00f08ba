"""Getting out: a trained adapter and its base model become one ordinary model, without PEFT and agiledpo."""

import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from agiledpo.adapters.files import SavedAdapter, find_actor, read_adapter
from agiledpo.adapters.folding import bare_twin, fold
from agiledpo.adapters.shared_base import SharedBaseModel
from agiledpo.checkpoint.attributes import read_attributes
from agiledpo.checkpoint.directory import ATTRIBUTES, MANIFEST, TOKENIZER, written_atomically
from agiledpo.checkpoint.errors import CheckpointError
from agiledpo.checkpoint.identity import check_base, identity_of
from agiledpo.checkpoint.manifest import Manifest, library_versions
from agiledpo.checkpoint.merged_card import write_merged_card
from agiledpo.checkpoint.stored_base import holds_base, loadable, make_base


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
    source = _read(path)
    stored = _stored(source) if base_model is None else None
    name = _base_name(source, base_model, stored is not None)
    chosen = _tokenizer(source, tokenizer, name)
    base = SharedBaseModel.of(_base(source, base_model, stored, name))
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


@dataclass(frozen=True)
class _Source:
    """What there is to merge."""

    path: Path
    adapter: SavedAdapter
    manifest: Manifest | None


def _check_out(out: Path) -> None:
    if out.is_symlink() or (out.exists() and not (out.is_dir() and not any(out.iterdir()))):
        raise FileExistsError(f"{out} is there and is not an empty directory; choose another out or remove it.")


def _read(path: Path) -> _Source:
    if not (path / MANIFEST).exists():
        return _Source(path, read_adapter(find_actor(path)), None)
    manifest = Manifest.verify(path)
    if manifest.kind == "run":
        agents = ", ".join(str(path / nested) for nested in manifest.nested)
        raise CheckpointError(f"{path} is the checkpoint of a whole run; merge one of its agents: {agents}.")
    return _Source(path, read_adapter(path / "actor"), manifest)


def _stored(source: _Source) -> dict[str, Any] | None:
    """Attributes that hold the base model; None if the checkpoint has adapters only."""
    if source.manifest is None or source.manifest.base_model is None:
        return None
    attributes = read_attributes(source.path)
    return attributes if holds_base(attributes) else None


def _base_name(source: _Source, base_model: str | Path | PreTrainedModel | None, is_stored: bool) -> str:
    """Name or path of the base model; empty if there is a model that has none."""
    if isinstance(base_model, PreTrainedModel):
        return base_model.name_or_path or ""
    if base_model is not None:
        return os.fspath(base_model)
    recorded = source.manifest.base_model.name if source.manifest and source.manifest.base_model else ""
    name = recorded or source.adapter.config.base_model_name_or_path
    if not name and not is_stored:
        raise ValueError(f"{source.path} does not say which base model it belongs to; pass base_model.")
    return str(name or "")


def _base(
    source: _Source, base_model: str | Path | PreTrainedModel | None, stored: dict[str, Any] | None, name: str
) -> PreTrainedModel:
    if isinstance(base_model, PreTrainedModel):
        return bare_twin(base_model)
    if stored is not None and source.manifest is not None and source.manifest.base_model is not None:
        return make_base(stored, source.path / ATTRIBUTES, loadable(source.manifest.base_model.dtype))
    loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(name, dtype="auto")
    return loaded


def _check_base(source: _Source, base: SharedBaseModel) -> None:
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
    source: _Source, tokenizer: PreTrainedTokenizerBase | str | Path | None, base_name: str
) -> PreTrainedTokenizerBase:
    if isinstance(tokenizer, PreTrainedTokenizerBase):
        return tokenizer
    if tokenizer is not None:
        return _load_tokenizer(os.fspath(tokenizer), "tokenizer")
    own = (source.path / TOKENIZER, source.path, source.adapter.source)
    for directory in chain(own, _of_the_run(source)):
        if (directory / "tokenizer_config.json").is_file():
            return _load_tokenizer(os.fspath(directory), "path")
    if not base_name:
        raise ValueError(f"There is no tokenizer in {source.path} and the base model has no name; pass tokenizer.")
    return _load_tokenizer(base_name, "base_model")


def _of_the_run(source: _Source) -> Iterator[Path]:
    """The tokenizer that all agents of a run have, if this is one of them.

    An agent's manifest does not list it, so it is checked against the run's.
    """
    agents = source.path.resolve().parent
    directory = agents.parent / TOKENIZER
    if source.manifest is None or agents.name != "agents":
        return
    if directory.exists() or (agents.parent / MANIFEST).exists():
        Manifest.verify_part(agents.parent, directory.name)
        yield directory


def _load_tokenizer(name: str, parameter: str) -> PreTrainedTokenizerBase:
    try:
        loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(f"No tokenizer could be loaded from {parameter}={name!r}; pass tokenizer. {error}") from error
    return loaded
