"""Which base model an adapter belongs to, told in a few numbers that are cheap for a large model too."""

import base64
import binascii
import hashlib
import json
import warnings
import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor

from agiledpo.adapters import SharedBaseModel
from agiledpo.checkpoint.errors import CheckpointError

# Elements of each tensor that make the fingerprint.
_SAMPLES = 64

# Elements that are kept as they are: of each tensor, and of all together, which makes 22 kB of text.
_KEPT_OF_TENSOR = 16
_KEPT = 4096

# How far roundings of one number lie apart at most: twice bfloat16's step, or a step of float16's smallest numbers.
_RELATIVE, _ABSOLUTE = 2.0**-7, 2.0**-24
_LARGEST_HALF = 65504.0

# What a configuration says that has no influence on what the network computes from given tokens.
_LABELS = frozenset(
    {
        "_attn_implementation",
        "_attn_implementation_internal",
        "_name_or_path",
        "architectures",
        "attn_implementation",
        "bos_token_id",
        "dtype",
        "eos_token_id",
        "id2label",
        "label2id",
        "output_attentions",
        "output_hidden_states",
        "pad_token_id",
        "quantization_config",
        "return_dict",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)


# Rounded to bfloat16, one model is the same numbers in all of these.
_ROUND_ALIKE = frozenset({"float64", "float32", "bfloat16"})


@dataclass(frozen=True)
class BaseModelIdentity:
    """What tells base models apart.

    Args:
        name: Name or path that the model was loaded from; empty if it was made in place. It is for people.
        model_class: Class of the model.
        dtype: Of most of its weights.
        transformers: Version of Transformers that wrote the configuration.
        config_sha256: Over the configuration, but for what does not change the function.
        layout_sha256: Over the names and shapes of the weights.
        weights_sha256: Over names, shapes and up to 64 evenly spaced elements of each weight, rounded to bfloat16: the
            same for one model in float32 and in bfloat16.
        samples: Some of these elements, at most 4096 in all, little-endian float32 in base64: what roundings that give
            other fingerprints are compared by. Empty if the checkpoint was written without.
    """

    name: str
    model_class: str
    dtype: str
    transformers: str
    config_sha256: str
    layout_sha256: str
    weights_sha256: str
    samples: str = field(default="", repr=False)

    def __str__(self) -> str:
        name = self.name or "made without a name"
        return f"{self.model_class} ({name}, {self.dtype}, weights {self.weights_sha256[:12]})"


_known: "weakref.WeakKeyDictionary[SharedBaseModel, tuple[int, BaseModelIdentity]]" = weakref.WeakKeyDictionary()


def identity_of(base: SharedBaseModel) -> BaseModelIdentity:
    """The identity of a base model; it is computed again only when its weights have changed.

    Args:
        base: The base model.
    """
    revision = base.weights_revision
    known = _known.get(base)
    if known is None or known[0] != revision:
        known = _known[base] = (revision, _identity(base))
    return known[1]


def check_base(saved: BaseModelIdentity, live: BaseModelIdentity, source: str) -> None:
    """Check that an adapter is loaded onto the base model that it was trained on.

    The same model in float64, float32, bfloat16 and float16 is one model. Where one of the two is quantized the weights
    cannot be compared, and a warning says so.

    Args:
        saved: The base model of the checkpoint.
        live: The base model that is there.
        source: The file that ``saved`` was read from, for the message.

    Raises:
        CheckpointError: They are different models.
    """
    differing = []
    if saved.model_class != live.model_class:
        differing.append("class")
    floats = _is_float(saved.dtype) and _is_float(live.dtype)
    same = _same_weights(saved, live, source)
    comparable = same is not None
    if floats and saved.layout_sha256 != live.layout_sha256:
        differing.append("names or shapes of the weights")
    elif same is False:
        differing.append("weights")
    if saved.config_sha256 != live.config_sha256:
        if differing or not comparable or saved.transformers == live.transformers:
            differing.append("configuration")
        else:
            # Releases of Transformers rename settings; the weights say that it is the same model.
            warnings.warn(
                f"{source}: the base model was described by Transformers {saved.transformers} in other words than by "
                f"{live.transformers}; its class and weights are the same.",
                stacklevel=2,
            )
    if differing:
        raise CheckpointError(
            f"{source}: the checkpoint belongs to the base model {saved}, and the agent is on {live}; they differ in "
            f"{' and '.join(differing)}. Make the agent on the model that the adapter was trained on."
        )
    if not comparable:
        warnings.warn(
            f"{source}: the base model was {saved.dtype} and is {live.dtype}, which rounds differently, so its weights "
            "could not be compared; class and configuration are the same.",
            stacklevel=2,
        )


@torch.no_grad()
def _identity(base: SharedBaseModel) -> BaseModelIdentity:
    shapes = dict(sorted(base.base_shapes.items()))
    layout = json.dumps([[name, list(shape)] for name, shape in shapes.items()])
    weights = hashlib.sha256(layout.encode())
    spread, each = _kept_of(list(shapes))
    kept: list[Tensor] = []
    sizes = Counter[str]()
    for name, tensor in base.base_weights():
        sizes[str(tensor.dtype).removeprefix("torch.")] += tensor.numel()
        if not _is_there(tensor):
            continue
        weights.update(_bits(_spread(tensor, _SAMPLES)).cpu().numpy().tobytes())
        if name in spread:
            kept.append(_real(_spread(tensor, each)).float().cpu())
    return BaseModelIdentity(
        name=base.model.name_or_path or "",
        model_class=type(base.model).__name__,
        dtype=sizes.most_common(1)[0][0],
        transformers=transformers.__version__,
        config_sha256=_sha256(json.dumps(_function(base.model.config.to_dict()), sort_keys=True, default=str)),
        layout_sha256=_sha256(layout),
        weights_sha256=weights.hexdigest(),
        samples=_packed(kept),
    )


def _kept_of(names: Sequence[str]) -> tuple[set[str], int]:
    """The tensors of which a few elements are kept, evenly spaced where there are very many, and how many of each."""
    chosen = names[:: -(-len(names) // _KEPT) or 1]
    return set(chosen), min(_KEPT_OF_TENSOR, _KEPT // max(1, len(chosen)))


def _packed(samples: Sequence[Tensor]) -> str:
    joined = torch.cat(list(samples)) if samples else torch.zeros(0)
    return base64.b64encode(joined.numpy().astype("<f4").tobytes()).decode("ascii")


def _same_weights(saved: BaseModelIdentity, live: BaseModelIdentity, source: str) -> bool | None:
    """Whether two models have the same weights but for rounding; None if nothing tells."""
    if saved.dtype == live.dtype or {saved.dtype, live.dtype} <= _ROUND_ALIKE:
        return saved.weights_sha256 == live.weights_sha256
    if not (_is_float(saved.dtype) and _is_float(live.dtype) and saved.samples and live.samples):
        return None
    theirs, mine = (_values(identity.samples, source) for identity in (saved, live))
    if theirs.shape != mine.shape:
        return None  # the layouts differ, or weights were not in memory
    # What is too large for float16 is infinite there.
    theirs, mine = (np.clip(values, -_LARGEST_HALF, _LARGEST_HALF) for values in (theirs, mine))
    return bool(np.allclose(theirs, mine, rtol=_RELATIVE, atol=_ABSOLUTE, equal_nan=True))


def _values(samples: str, source: str) -> NDArray[np.float32]:
    try:
        return np.frombuffer(base64.b64decode(samples, validate=True), dtype="<f4")
    except (TypeError, ValueError, binascii.Error) as error:
        raise CheckpointError(
            f"{source}: the base model's samples are not as agiledpo writes them: {error}. Take another checkpoint."
        ) from error


def _is_there(tensor: Tensor) -> bool:
    return tensor.numel() > 0 and not tensor.is_meta


def _spread(tensor: Tensor, most: int) -> Tensor:
    flat = tensor.detach().reshape(-1)
    count = min(most, flat.numel())
    places = torch.arange(count, device=flat.device) * flat.numel() // count
    return flat[places]


def _real(values: Tensor) -> Tensor:
    return torch.view_as_real(values).reshape(-1) if values.is_complex() else values


def _bits(values: Tensor) -> Tensor:
    values = _real(values)
    if values.is_floating_point():
        return values.float().bfloat16().view(torch.int16)
    return values.long()


def _function(settings: Any) -> Any:
    """A configuration, and those nested in it, without labels."""
    if isinstance(settings, Mapping):
        return {str(name): _function(value) for name, value in settings.items() if name not in _LABELS}
    if isinstance(settings, (list, tuple)):
        return [_function(value) for value in settings]
    return settings


def _is_float(dtype: str) -> bool:
    return dtype in ("float64", "float32", "bfloat16", "float16")


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
