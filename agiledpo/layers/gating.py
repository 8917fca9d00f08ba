"""The gated feed-forward block, its gate and product as one differentiable function."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.activations import SiLUActivation

from agiledpo.layers.elementwise import Elementwise

# Transformers' classes that compute down_proj(act_fn(gate_proj(x)) * up_proj(x)).
_CLASSES = frozenset(
    {
        "CohereMLP",
        "GraniteMLP",
        "LlamaMLP",
        "MistralMLP",
        "Olmo2MLP",
        "Olmo3MLP",
        "Qwen2MLP",
        "Qwen3MLP",
        "SmolLM3MLP",
    }
)


def fits(module: nn.Module) -> bool:
    """Whether a module is one of the known feed-forward blocks, with a SiLU gate."""
    return type(module).__name__ in _CLASSES and isinstance(module.act_fn, nn.SiLU | SiLUActivation)


def forward(mlp: nn.Module, x: Tensor, *, elementwise: Elementwise) -> Tensor:
    """Forward pass of such a block.

    Args:
        mlp: The module.
        x: (..., H).
        elementwise: How to run the formulas.
    """
    gate, up = (cast(nn.Module, part)(x) for part in (mlp.gate_proj, mlp.up_proj))
    width = gate.shape[-1]
    gated = _GatedSiLU.apply(gate.view(-1, width), up.view(-1, width), elementwise).view(gate.shape)
    return cast(nn.Module, mlp.down_proj)(gated)


class _GatedSiLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, elementwise: Elementwise) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.elementwise = elementwise
        return elementwise.gated_silu(gate.detach(), up.detach())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        gate, up = ctx.saved_tensors
        return *ctx.elementwise.gated_silu_grad(grad, gate.detach(), up.detach()), None
