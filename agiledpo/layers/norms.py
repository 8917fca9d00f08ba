"""Root-mean-square norms as one differentiable function with a frozen gain."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from agiledpo.layers.elementwise import Elementwise, wide

# Transformers' classes by name, and what they call the number that is added to the mean square. Those of the first
# table multiply by the weight, those of the second by 1 + weight.
_PLAIN = dict.fromkeys(
    (
        "GraniteRMSNorm",
        "LlamaRMSNorm",
        "MistralRMSNorm",
        "MixtralRMSNorm",
        "Olmo2RMSNorm",
        "Olmo3RMSNorm",
        "Phi3RMSNorm",
        "Qwen2RMSNorm",
        "Qwen3RMSNorm",
        "SmolLM3RMSNorm",
    ),
    "variance_epsilon",
)
_OFFSET = dict.fromkeys(("GemmaRMSNorm", "Gemma2RMSNorm", "Gemma3RMSNorm"), "eps")


def fits(module: nn.Module) -> bool:
    """Whether a module is one of the norms whose formula is known here, with a frozen weight."""
    name = type(module).__name__
    return (name in _PLAIN or name in _OFFSET) and not cast(Tensor, module.weight).requires_grad


def forward(norm: nn.Module, x: Tensor, *, elementwise: Elementwise, dtype: torch.dtype | None = None) -> Tensor:
    """Forward pass of such a norm.

    Args:
        norm: The module.
        x: (..., H); it may be more precise than the weight.
        elementwise: How to run the formulas.
        dtype: Of the result; None for that of the weight.
    """
    name = type(norm).__name__
    weight = wide(cast(Tensor, norm.weight))
    if name in _OFFSET:
        weight = 1 + weight
    eps = vars(norm)[_PLAIN.get(name) or _OFFSET[name]]
    rows = x.reshape(-1, x.shape[-1])
    return _RMSNorm.apply(rows, weight, eps, dtype or cast(Tensor, norm.weight).dtype, elementwise).view(x.shape)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype, elementwise: Elementwise
    ) -> Tensor:
        result, inverse = elementwise.rms_norm(x.detach(), weight, eps, dtype)
        ctx.save_for_backward(x, weight, inverse)
        ctx.elementwise = elementwise
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        x, weight, inverse = ctx.saved_tensors
        return ctx.elementwise.rms_norm_grad(grad, x.detach(), weight, inverse), None, None, None, None
