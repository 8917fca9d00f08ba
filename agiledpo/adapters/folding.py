"""An adapter folded into the weights of its base model, which is an ordinary model without PEFT afterwards.

LoRA computes (W + (alpha / r) B A) x (Hu et al. 2021, https://arxiv.org/abs/2106.09685), and what stands in parentheses
has the shape of the weight W.
"""

import re
from copy import deepcopy

import torch
from peft.tuners.lora.layer import LoraLayer
from torch import nn
from transformers import PreTrainedModel

from agiledpo.adapters.files import AdapterFileError, SavedAdapter, check_finite
from agiledpo.adapters.shared_base import SharedBaseModel

# What a weight of the base cannot express, or what PEFT's merging leaves out.
_CANNOT_BE_FOLDED = (
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "monteclora_config",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
    "velora_config",
)

# What PEFT puts between the name of a module and the names of its own weights.
_WRAPPERS = re.compile(r"(\.(base_layer|original_module|token_adapter))+\.")


def bare_twin(model: PreTrainedModel) -> PreTrainedModel:
    """A second model of the same class over the same weights, without adapters, hooks or replaced methods.

    Weights are shared, not copied; the twin is there to be given other ones. It cannot compute, since what a model
    works out when it is made (rotary frequencies, for example) is left out.

    Args:
        model: A causal language model, which may carry adapters. Nothing of it changes.

    Raises:
        ValueError: Weights of it are quantized or not in memory.
    """
    if "quantization_config" in model.config.to_dict():
        raise ValueError(
            f"The base model {model.name_or_path} is quantized, and quantized weights cannot take an adapter in. "
            "Pass base_model='name of the unquantized model'."
        )
    with torch.device("meta"):
        twin: PreTrainedModel = type(model)(deepcopy(model.config))
    live = {_WRAPPERS.sub(".", key): tensor for key, tensor in model.state_dict().items()}
    wanted = twin.state_dict().keys()
    absent = sorted(key for key in wanted if key not in live or live[key].is_meta)
    if absent:
        raise ValueError(
            f"Weights of the base model are not in memory ({', '.join(absent[:3])}). Pass base_model='name or path', "
            "so that it is loaded again."
        )
    twin.load_state_dict({key: live[key] for key in wanted}, assign=True)
    twin.requires_grad_(False)
    twin.generation_config = deepcopy(model.generation_config)
    return twin.eval()


@torch.no_grad()
def fold(base: SharedBaseModel, saved: SavedAdapter, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """Fold an adapter into a model.

    Every weight is widened to float32, changed, and rounded once. In bfloat16, which has eight bits, a change smaller
    than 1/512 of a weight is lost; rounding the product B A first and the sum again would lose twice.

    A weight that the adapter changes is replaced, not written to, so weights that are shared with another model stay
    what they are there. One layer at a time is in float32.

    Args:
        base: The model; nobody else may use it, and it carries no adapter. It is changed.
        saved: The adapter.
        dtype: Of the weights afterwards; None keeps each one's own.

    Returns:
        ``base.model``, without PEFT's layers. If its embedding and its head were one weight and are not any more, its
        configuration says so.

    Raises:
        AdapterFileError: The adapter does not fit, cannot be expressed in the base's weights, or is not finite.
    """
    _check_can_be_folded(saved)
    model = base.model
    dtypes = {key: dtype or parameter.dtype for key, parameter in model.named_parameters(remove_duplicate=False)}
    name = _attach(base, saved)
    for key, layer in [(key, module) for key, module in model.named_modules() if isinstance(module, LoraLayer)]:
        _fold_layer(layer, name, f"{saved.weights_file}: {key}", dtype)
    base.peft.unload()  # takes the LoRA layers out and puts modules_to_save in
    for key, parameter in model.named_parameters(remove_duplicate=False):
        parameter.data = parameter.data.to(dtypes[key])
        # Of the extremes, because asking every element takes the memory of another copy of the largest weight.
        if parameter.numel() and not torch.stack(parameter.aminmax()).isfinite().all():
            raise AdapterFileError(f"{saved.weights_file} makes {key} infinite in {dtypes[key]}; pass a wider dtype.")
    _settle_ties(model)
    return model


def _check_can_be_folded(saved: SavedAdapter) -> None:
    settings = saved.config.to_dict()
    special = [name for name in _CANNOT_BE_FOLDED if settings.get(name)]
    if special:
        raise AdapterFileError(
            f"{saved.config_file} sets {', '.join(special)}, which the base model's weights cannot express. "
            "Use the adapter with PEFT."
        )
    check_finite(saved)


def _attach(base: SharedBaseModel, saved: SavedAdapter) -> str:
    """Put the adapter on the model in float32; returns its physical name."""
    try:
        base.check_ranks(saved)
        name = base.add("actor", saved.config, trainable=False, seed=0)
        for parameter in base.parameters(name).values():
            parameter.data = parameter.data.float()
        base.load_state(name, saved.tensors)
    except (ValueError, RuntimeError) as error:
        model = base.model.name_or_path or type(base.model).__name__
        raise AdapterFileError(f"{saved.source} does not fit the base model {model}: {error}") from error
    return name


def _fold_layer(layer: LoraLayer, name: str, where: str, dtype: torch.dtype | None) -> None:
    module = layer.get_base_layer()
    own = {key: dtype or parameter.dtype for key, parameter in module.named_parameters(recurse=False)}
    # Parameters of its own, because the old ones may be another module's too (tied embeddings).
    for key, parameter in list(module.named_parameters(recurse=False)):
        wide = parameter.detach().to(torch.promote_types(parameter.dtype, torch.float32))
        setattr(module, key, nn.Parameter(wide, requires_grad=False))
    try:
        layer.merge(safe_merge=True, adapter_names=[name])  # into a copy of the weight
    except (RuntimeError, ValueError) as error:
        raise AdapterFileError(f"{where}: {error}") from error
    for key, parameter in module.named_parameters(recurse=False):
        parameter.data = parameter.data.to(own[key])


def _settle_ties(model: PreTrainedModel) -> None:
    """Share again what is still equal, and write into the configuration what is not."""
    ties = model.get_expanded_tied_weights_keys(all_submodels=True)
    for target, source in ties.items():
        here, there = model.get_parameter(target), model.get_parameter(source)
        if not torch.equal(here, there):
            for config in (model.config, model.config.get_text_config()):
                config.tie_word_embeddings = False
        else:
            here.data = there.data
