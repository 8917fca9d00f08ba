"""What a model and a LoRA adapter on it hold, counted on the real architecture without making a single weight.

The model is built from its configuration on torch's meta device, where tensors have shapes but no memory, and PEFT puts
its layers into it there. So nothing is counted by hand, and any architecture that Transformers builds can be counted.
"""

import warnings
from dataclasses import dataclass

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from agiledpo.layers import gating
from agiledpo.layers.replace import can_stream_float32


@dataclass(frozen=True)
class AdaptedLayer:
    """One linear layer with LoRA factors.

    Attributes:
        inputs: Channels that it reads.
        rank: LoRA's rank.
        shares_input: Whether another adapted layer before it reads the same tensor, as keys and values do with queries.
    """

    inputs: int
    rank: int
    shares_input: bool


@dataclass(frozen=True)
class ModelSizes:
    """A model and one LoRA adapter in numbers.

    Attributes:
        name: The model's class.
        dtype: Of the base weights.
        parameters: Elements of each base parameter; a tied one counts once.
        buffer_bytes: Of the base's buffers.
        adapter: Elements of each parameter of one adapter.
        adapter_bytes: Of one adapter.
        largest_layer: Elements of the largest decoder layer.
        head: Elements of the language-model head, which may be the input embedding's.
        layers: Number of decoder layers.
        hidden: Width of the residual stream.
        vocabulary: Tokens that the head scores.
        query: Width of all query heads together.
        key: Width of all key heads together, and of all value heads.
        heads: Query heads.
        intermediate: Width of the feed-forward layer, for all experts that a token visits.
        gated: Whether the feed-forward layer multiplies by a gate.
        stream: Bytes of an element of the residual stream.
        dropout: LoRA's dropout.
        adapted: The layers with LoRA factors, of all decoder layers.
    """

    name: str
    dtype: torch.dtype
    parameters: tuple[int, ...]
    buffer_bytes: int
    adapter: tuple[int, ...]
    adapter_bytes: int
    largest_layer: int
    head: int
    layers: int
    hidden: int
    vocabulary: int
    query: int
    key: int
    heads: int
    intermediate: int
    gated: bool
    stream: int
    dropout: float
    adapted: tuple[AdaptedLayer, ...]

    @property
    def base_elements(self) -> int:
        """Elements of all base weights."""
        return sum(self.parameters)

    @property
    def adapter_elements(self) -> int:
        """Elements of one adapter."""
        return sum(self.adapter)

    @property
    def base_bytes(self) -> int:
        """Bytes of the whole base: weights and buffers."""
        return self.base_elements * self.dtype.itemsize + self.buffer_bytes


def count(config: PretrainedConfig, lora_config: LoraConfig, dtype: torch.dtype) -> ModelSizes:
    """Count a model and one adapter on it.

    Args:
        config: The model's configuration.
        lora_config: The adapter's.
        dtype: That the base weights will have; adapters are float32, as PEFT makes them on any base.

    Raises:
        ValueError: The configuration is of no decoder-only language model, the weights are quantised, or LoRA's targets
            are not in the model.
    """
    if "quantization_config" in config.to_dict():
        raise ValueError(
            f"The configuration's weights are quantised ({type(config).__name__}.quantization_config), and only "
            "unquantised ones can be counted. Give the model that it was quantised from."
        )
    with torch.device("meta"), warnings.catch_warnings():
        # PEFT 0.21 asks Transformers 5.23 for a property by its old name.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
        # Before PEFT wraps the layers that the names belong to.
        parameters = tuple(parameter.numel() for parameter in model.parameters())
        buffers = sum(buffer.numel() * buffer.itemsize for buffer in model.buffers())
        decoder = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
        largest = max((sum(p.numel() for p in layer.parameters()) for layer in decoder), default=max(parameters))
        head = model.get_output_embeddings()
        head_weight = tuple(head.weight.shape)
        model.requires_grad_(False)
        stream = torch.float32 if can_stream_float32(model) else dtype
        gated = any(gating.fits(module) for module in model.modules()) or _names_a_gate(model)
        PeftModel(model, lora_config, adapter_name="counted")
        factors = [parameter for parameter in model.parameters() if parameter.requires_grad]
        adapted = _adapted(model, "counted")
    text = config.get_text_config()
    settings = text.to_dict()
    heads = int(text.num_attention_heads)
    width = settings.get("head_dim") or text.hidden_size // heads
    key_heads = settings.get("num_key_value_heads") or heads
    return ModelSizes(
        name=type(model).__name__,
        dtype=dtype,
        parameters=parameters,
        buffer_bytes=buffers,
        adapter=tuple(factor.numel() for factor in factors),
        adapter_bytes=sum(factor.numel() * factor.itemsize for factor in factors),
        largest_layer=largest,
        head=head_weight[0] * head_weight[1],
        layers=int(text.num_hidden_layers),
        hidden=int(text.hidden_size),
        vocabulary=head_weight[0],
        query=heads * width,
        key=key_heads * width,
        heads=heads,
        intermediate=_intermediate(text),
        gated=gated,
        stream=stream.itemsize,
        dropout=float(lora_config.lora_dropout),
        adapted=adapted,
    )


def read_config(model: str) -> PretrainedConfig:
    """Read a model's configuration, and nothing else of it.

    Args:
        model: A directory, or a name on the Hub, which is looked for in the cache if the Hub is off.

    Raises:
        OSError: There is none.
    """
    return AutoConfig.from_pretrained(model)


def _intermediate(text: PretrainedConfig) -> int:
    settings = text.to_dict()
    experts = settings.get("num_experts_per_tok")
    if experts:
        return int(experts) * int(settings.get("moe_intermediate_size") or settings["intermediate_size"])
    # GPT-2's n_inner may be None, which its model reads as four times the width, and so do we where nothing is said.
    return int(settings.get("intermediate_size") or settings.get("n_inner") or 4 * text.hidden_size)


def _names_a_gate(model: nn.Module) -> bool:
    """Whether a feed-forward layer multiplies by a gate; of experts it is a parameter that says so."""
    return any({"gate_proj", "gate_up_proj"} & set(name.split(".")) for name, _ in model.named_parameters())


def _adapted(model: PreTrainedModel, adapter: str) -> tuple[AdaptedLayer, ...]:
    """The layers with LoRA factors, in the order in which they run; which read the same tensor is seen by running."""
    layers = [m for m in model.modules() if isinstance(m, LoraLayer) and adapter in m.r]
    seen: list[tuple[LoraLayer, Tensor]] = []

    def describe(layer: LoraLayer, *, shares_input: bool) -> AdaptedLayer:
        return AdaptedLayer(int(layer.in_features or 0), layer.r[adapter], shares_input)

    def note(layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, LoraLayer)
        seen.append((layer, arguments[0]))

    hooks = [layer.register_forward_pre_hook(note) for layer in layers if isinstance(layer, nn.Module)]
    try:
        # A mask of our own: Transformers would look into the positions to find out whether it needs one.
        mask = torch.zeros(1, 1, 2, 2, dtype=torch.bool)
        positions = torch.arange(2)[None]
        ids = torch.zeros(1, 2, dtype=torch.long)
        with torch.no_grad():
            model.base_model(input_ids=ids, position_ids=positions, attention_mask=mask, use_cache=False)
    except (RuntimeError, NotImplementedError, TypeError):
        # What depends on values, as routing to experts does, cannot run without any. Then no input counts as shared.
        return tuple(describe(layer, shares_input=False) for layer in layers)
    finally:
        for hook in hooks:
            hook.remove()
    inputs: set[int] = set()
    found = []
    for layer, tensor in seen:  # which holds the tensors, so that no two have one identity
        found.append(describe(layer, shares_input=id(tensor) in inputs))
        inputs.add(id(tensor))
    return tuple(found)
