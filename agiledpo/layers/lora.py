"""A linear layer with a LoRA adapter as one differentiable function.

PEFT computes ``W x`` and ``B A x`` apart, in the adapter's precision, and keeps the input twice where the two differ.
Here the input is kept once, the products run in the base weight's precision, and the adapter's share and the base's
are summed before they are rounded, so that a small adapter is not lost in the rounding of a large output. The adapter
stays PEFT's, with its float32 master weights.
"""

from typing import Any, cast

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn
from torch.nn import functional as F

from agiledpo.layers.products import has_onednn, linear


def lora_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, lora_a: Tensor, lora_b: Tensor, scaling: float
) -> Tensor:
    """``W x + bias + scaling * B A x`` (Hu et al. 2021, https://arxiv.org/abs/2106.09685, eq. 3).

    Differentiable by ``x``, ``lora_a`` and ``lora_b``; the base layer is frozen.

    Args:
        x: (..., K); the products run in the dtype of ``weight``.
        weight: (N, K).
        bias: (N,) or None.
        lora_a: (r, K), in any dtype, which its derivative has as well.
        lora_b: (N, r), likewise.
        scaling: LoRA's alpha / r.

    Returns:
        (..., N) in the dtype of ``weight``.
    """
    rows = x.reshape(-1, x.shape[-1]).to(weight.dtype)
    return _LoraLinear.apply(rows, weight, bias, lora_a, lora_b, scaling).view(*x.shape[:-1], -1)


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, lora_a: Tensor, lora_b: Tensor, scaling: float
    ) -> Tensor:
        down, up = lora_a.to(x.dtype), (lora_b * scaling).to(x.dtype)
        inner = x @ down.t()
        ctx.save_for_backward(x, weight, inner, down, up)
        ctx.scaling, ctx.dtypes = scaling, (lora_a.dtype, lora_b.dtype)
        if has_onednn(x):
            return linear(x, weight, bias).addmm_(inner, up.t())
        adapted = inner @ up.t() if bias is None else torch.addmm(bias, inner, up.t())
        return adapted.addmm_(x, weight.t())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, Tensor | None, Tensor | None, None]:
        x, weight, inner, down, up = ctx.saved_tensors
        needs_x, _, _, needs_a, needs_b, _ = ctx.needs_input_grad
        grad_inner = grad @ up
        dtype_a, dtype_b = ctx.dtypes
        grad_a = (grad_inner.t() @ x).to(dtype_a) if needs_a else None
        grad_b = (grad.t() @ inner).to(dtype_b).mul_(ctx.scaling) if needs_b else None
        grad_x = None
        if needs_x and has_onednn(grad):
            grad_x = linear(grad, weight.t()).addmm_(grad_inner, down)
        elif needs_x:
            grad_x = (grad_inner @ down).addmm_(grad, weight)
        return grad_x, None, None, grad_a, grad_b, None


def forward(layer: LoraLinear, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Forward pass of a PEFT LoRA layer with whatever adapter is active on it.

    What :func:`fits` accepts runs as one function; anything else in PEFT's own way.
    """
    base = cast(nn.Linear, layer.base_layer)
    if layer.disable_adapters and not layer.merged:
        x = x.to(base.weight.dtype)
        if x.requires_grad:
            return F.linear(x, base.weight, base.bias)
        return linear(x.reshape(-1, x.shape[-1]), base.weight, base.bias).view(*x.shape[:-1], -1)
    if args or kwargs or not _is_plain(layer):
        return type(layer).forward(layer, x.to(base.weight.dtype), *args, **kwargs)
    (name,) = layer.active_adapters
    lora_a, lora_b = (cast(nn.Linear, factor[name]).weight for factor in (layer.lora_A, layer.lora_B))
    return lora_linear(x, base.weight, base.bias, lora_a, lora_b, layer.scaling[name])


def fits(module: nn.Module) -> bool:
    """Whether a module is a LoRA layer over a frozen ``torch.nn.Linear``, as opposed to a quantised or tied one."""
    return (
        type(module) is LoraLinear
        and type(module.base_layer) is nn.Linear
        and not any(parameter.requires_grad for parameter in module.base_layer.parameters())
    )


def _is_plain(layer: LoraLinear) -> bool:
    """Whether one adapter is active, and it is LoRA without variant, bias or dropout."""
    if layer.merged or len(layer.active_adapters) != 1:
        return False
    name = layer.active_adapters[0]
    if name not in layer.lora_A or name in layer.lora_variant or layer.lora_bias[name]:
        return False
    dropout = layer.lora_dropout[name]
    return isinstance(dropout, nn.Identity) or not dropout.training
