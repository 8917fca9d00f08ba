"""Whether a saved adapter's tensors are those that its configuration and the base model call for."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from agiledpo.adapters.files import AdapterFileError, SavedAdapter

_PREFIX = "base_model.model."


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
        name = key.removeprefix(_PREFIX).replace(".base_layer.", ".").replace(".original_module.", ".")
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
