"""Whether a saved adapter's tensors are those that its configuration and the base model call for."""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from agiledpo.adapters.files import AdapterFileError, SavedAdapter
from agiledpo.adapters.layout import base_key, by_pattern, targets

_PREFIX = "base_model.model."
_FIRST_FACTORS = ("lora_A.weight", "lora_embedding_A")


def check_ranks(saved: SavedAdapter, modules: Iterable[str], base_shapes: Mapping[str, torch.Size]) -> None:
    """Check that a saved adapter's factors have the ranks of its configuration.

    PEFT takes memory for the configuration's ranks before any weight is read, however large they are.

    Args:
        saved: The saved adapter.
        modules: Names of the base model's modules.
        base_shapes: Shapes of the base model's weights by their own names.

    Raises:
        AdapterFileError: A rank is not that of the weights.
    """
    config = saved.config
    shown = max((t.shape[0] for key, t in saved.tensors.items() if key.endswith(_FIRST_FACTORS) and t.dim()), default=0)
    everywhere = config.target_modules in (None, "all-linear")  # PEFT finds out where; no file that it writes says so
    for name in modules:
        weight = base_shapes.get(f"{name}.weight")
        if weight is None if everywhere else not targets(config, name):
            continue
        rank = by_pattern(config.rank_pattern, name, config.r)
        keys = [key for factor in _FIRST_FACTORS if (key := f"{_PREFIX}{name}.{factor}") in saved.tensors]
        shape = saved.tensors[keys[0]].shape if keys else None
        # A first factor has the size of one side of its weight, but for two kinds that cut it into pieces.
        narrow = None if weight is None or config.use_bdlora or config.use_qalora else min(weight, default=0)
        if shape is None and rank > shown:
            raise AdapterFileError(f"{saved.config_file} has rank {rank} for {name}; {_ranks_shown(saved, shown)}")
        if shape is not None and (not shape or shape[0] != rank or shape.numel() < rank * (narrow or 0)):
            raise AdapterFileError(
                f"{saved.weights_file} has {keys[0]} of shape {tuple(shape)}; its configuration and this base model "
                f"call for rank {rank}"
                + ("" if weight is None else f" and a weight of shape {tuple(weight)}")
                + f". The files are not of one adapter, or {_other_model(saved)}"
            )
    if config.target_parameters:
        rank = max(config.r, *config.rank_pattern.values()) if config.rank_pattern else config.r
        if rank > shown:
            raise AdapterFileError(f"{saved.config_file} has rank {rank}; {_ranks_shown(saved, shown)}")


def _ranks_shown(saved: SavedAdapter, shown: int) -> str:
    return f"the largest of a weight in {saved.weights_file} is {shown}. The files are not of one adapter."


def fill(expected: Mapping[str, Tensor], saved: SavedAdapter, base_weights: Callable[[], Mapping[str, Tensor]]) -> None:
    """Copy a saved adapter's tensors onto an adapter that was made by its configuration.

    PEFT may have saved weights of the base model with it, its embeddings for one; they have to be those of this base.

    Args:
        expected: The adapter's own tensors by the keys that PEFT saves them with; they are written to.
        saved: The saved adapter.
        base_weights: Returns the base model's weights by their own names.

    Raises:
        AdapterFileError: Keys are missing or unexpected, or shapes do not fit; nothing has been written then.
    """
    file, tensors = saved.weights_file, saved.tensors
    others = {key: tensor for key, tensor in tensors.items() if key not in expected}
    if others:
        _check_base_weights(saved, others, base_weights())
    for key, tensor in expected.items():
        if key not in tensors:
            raise AdapterFileError(
                f"{file} lacks {key}, one of {len(expected.keys() - tensors.keys())} weights that its configuration "
                f"calls for on this base model. The file is incomplete, or {_other_model(saved)}"
            )
        if tensors[key].shape != tensor.shape:
            raise AdapterFileError(
                f"{file} has {key} of shape {tuple(tensors[key].shape)}; its configuration and this base model call "
                f"for {tuple(tensor.shape)}. The files are not of one adapter, or {_other_model(saved)}"
            )
    with torch.no_grad():
        for key, tensor in expected.items():
            tensor.copy_(tensors[key])


def _check_base_weights(saved: SavedAdapter, tensors: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> None:
    for key, tensor in tensors.items():
        name = base_key(key.removeprefix(_PREFIX))
        if name not in base:
            raise AdapterFileError(
                f"{saved.weights_file} has {key}, which its configuration does not call for on this base model: "
                f"{_other_model(saved)}"
            )
        ours = base[name].cpu()
        # One of the two may have been rounded to the other's dtype.
        same = ours.shape == tensor.shape and (
            torch.equal(ours.to(tensor.dtype), tensor) or torch.equal(ours, tensor.to(ours.dtype))
        )
        if not same:
            raise AdapterFileError(
                f"{saved.weights_file} has {key}, shape {tuple(tensor.shape)}, which is not this base model's {name}, "
                f"shape {tuple(ours.shape)}: the base was resized or trained as well, or {_other_model(saved)} "
                "Load that model as the base."
            )


def _other_model(saved: SavedAdapter) -> str:
    name = saved.config.base_model_name_or_path
    return f"the adapter is of another base model (it names {name!r})." if name else "it is of another base model."
