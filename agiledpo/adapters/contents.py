"""What weights are, told by their content: noticed when it changes, and named by a digest."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor
from transformers import PreTrainedModel

# Content of an adapter that leaves its base as it is.
NOTHING = "nothing"

# Elements of each tensor that are compared to notice a write that torch did not count.
_SAMPLES = 64

# What a model's or an adapter's configuration says that has no influence on its evaluation.
_MODEL_LABELS = {"_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache", "architectures"}
_LORA_LABELS = {
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "init_lora_weights",
    "lora_dropout",
    "peft_version",
    "revision",
    "task_type",
}


class WatchedTensors:
    """Tensors that are written in place now and then.

    A change is noticed by storage address and torch's own count of in-place writes. That count misses fused optimizers
    and writes through ``.data`` (PEFT's merging, for one), so 64 evenly spaced elements of each tensor are compared as
    well. What is left unnoticed is a write through ``.data`` that touches none of them.

    Args:
        read: Returns the tensors by name, as they are now.
        describe: Names their content; it is called only after a change.
    """

    def __init__(
        self, read: Callable[[], Mapping[str, Tensor]], describe: Callable[[Mapping[str, Tensor]], str]
    ) -> None:
        self._read = read
        self._describe = describe
        self._revision = 0
        self._marks: list[tuple[int, int]] = []
        self._samples: list[list[Tensor]] = []
        self._sampled: list[Tensor] = []
        self._described = (0, "")

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The tensors by name, as they are now."""
        return self._read()

    @property
    def revision(self) -> int:
        """A number that has grown since it was last asked for if a tensor has changed."""
        tensors = [tensor.detach() for tensor in self._read().values() if tensor.numel() and not tensor.is_meta]
        marks = [(tensor.data_ptr(), _writes(tensor)) for tensor in tensors]
        if [address for address, _ in marks] != [address for address, _ in self._marks]:
            self._samples = _samples(tensors)
        sampled = [torch.cat(group).cpu() for group in self._samples]
        if marks != self._marks or not _same_bytes(sampled, self._sampled):
            self._revision += 1
            self._marks, self._sampled = marks, sampled
        return self._revision

    @property
    def content(self) -> str:
        """The description of the tensors as they are."""
        revision = self.revision
        if self._described[0] != revision:
            self._described = revision, self._describe(self._read())
        return self._described[1]


def describe_model(model: PreTrainedModel, weights: Iterable[tuple[str, Tensor]]) -> str:
    """Name what a model computes: class, configuration and weights.

    Args:
        model: The model.
        weights: Its own weights with their names, sorted, without any adapter's.
    """
    settings = _without(model.config.to_dict(), _MODEL_LABELS)
    return f"{type(model).__qualname__} {json.dumps(settings, default=_plain)} {_digest(weights)}"


def describe_adapter(config: LoraConfig, weights: Mapping[str, Tensor]) -> str:
    """Name what an adapter adds to its base: ``"nothing"``, or configuration and weights.

    Plain LoRA in which one factor of every product is zero adds nothing, to the bit. A freshly initialised adapter is
    like that, whatever its rank and its seed.

    Args:
        config: The adapter's configuration.
        weights: Its parameters by name.
    """
    if _adds_nothing(config, weights):
        return NOTHING
    return f"{json.dumps(_without(config.to_dict(), _LORA_LABELS), default=_plain)} {content_digest(weights)}"


def content_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the names, dtypes, shapes and bytes of tensors.

    Args:
        tensors: By name; their order does not count.

    Returns:
        64 hexadecimal digits.
    """
    return _digest(sorted(tensors.items()))


def _digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors:
        values = tensor.detach().cpu().contiguous()
        digest.update(json.dumps([name, str(values.dtype), list(values.shape)]).encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _adds_nothing(config: LoraConfig, weights: Mapping[str, Tensor]) -> bool:
    if config.use_dora or config.lora_bias or not all("lora_" in key for key in weights):
        return False
    # PEFT starts an embedding's product with a zero A and all others with a zero B.
    zeros = [tensor for key, tensor in weights.items() if "lora_B" in key or "lora_embedding_A" in key]
    return 2 * len(zeros) == len(weights) and not any(bool(tensor.any()) for tensor in zeros)


def _writes(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _samples(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """Views of a few elements of each tensor, in groups that can be concatenated."""
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in tensors:
        # A view is needed to see later writes; of a tensor with gaps the first row is one.
        flat = tensor.view(-1) if tensor.is_contiguous() else tensor[(0,) * (tensor.dim() - 1)]
        step = max(1, flat.numel() // _SAMPLES)
        groups.setdefault((tensor.device, tensor.dtype), []).append(flat[::step][:_SAMPLES])
    return list(groups.values())


def _same_bytes(one: list[Tensor], other: list[Tensor]) -> bool:
    # As bytes, because NaN differs from itself.
    return len(one) == len(other) and all(
        a.dtype == b.dtype and torch.equal(a.view(torch.uint8), b.view(torch.uint8))
        for a, b in zip(one, other, strict=True)
    )


def _without(settings: Mapping[str, Any], labels: set[str]) -> list[tuple[str, Any]]:
    return sorted((name, value) for name, value in settings.items() if name not in labels)


def _plain(value: Any) -> Any:
    return sorted(map(str, value)) if isinstance(value, (set, frozenset)) else str(value)
