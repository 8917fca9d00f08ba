"""The formulas between the matrix products: norms, gates and softmax blocks, forward and backward.

They are plain functions of tensors, so that each can run as it stands or through ``torch.compile``, which makes one
pass over memory of what are five to ten here. Inside, everything is float32 (float64 for float64).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """``x`` in float32, or in float64 if it is."""
    return x if x.dtype == torch.float64 else x.float()


def rms_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Root-mean-square norm (Zhang & Sennrich 2019, https://arxiv.org/abs/1910.07467, eq. 4).

    Args:
        x: (N, H).
        weight: Gain per channel, (H,).
        eps: Added to the mean square.
        dtype: Of the result.

    Returns:
        (N, H), and the inverse root mean square (N, 1) for the derivative.
    """
    x = wide(x)
    inverse = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return (x * inverse * weight).to(dtype), inverse


def rms_norm_grad(grad: Tensor, x: Tensor, weight: Tensor, inverse: Tensor) -> Tensor:
    """Derivative of :func:`rms_norm` by ``x``, (N, H) in its dtype."""
    unit = wide(x) * inverse
    scaled = wide(grad) * weight
    return (inverse * (scaled - unit * (scaled * unit).mean(-1, keepdim=True))).to(x.dtype)


def gated_silu(gate: Tensor, up: Tensor) -> Tensor:
    """``silu(gate) * up`` (SwiGLU; Shazeer 2020, https://arxiv.org/abs/2002.05202, eq. 6), (N, F)."""
    return (torch.nn.functional.silu(wide(gate)) * wide(up)).to(up.dtype)


def gated_silu_grad(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Derivatives of :func:`gated_silu` by ``gate`` and by ``up``."""
    grad, x = wide(grad), wide(gate)
    sigmoid = torch.sigmoid(x)
    silu = x * sigmoid
    return (grad * wide(up) * (sigmoid + silu * (1 - sigmoid))).to(gate.dtype), (grad * silu).to(up.dtype)


def shifted_exp(logits: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """``exp(logits - shift)`` (N, V), in place of the logits, and its sums (N, 1)."""
    weights = logits.sub_(shift).exp_()
    return weights, weights.sum(-1, keepdim=True)


@dataclass(frozen=True)
class Elementwise:
    """One way to run the formulas of this module."""

    rms_norm: Callable[[Tensor, Tensor, float, torch.dtype], tuple[Tensor, Tensor]] = rms_norm
    rms_norm_grad: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] = rms_norm_grad
    gated_silu: Callable[[Tensor, Tensor], Tensor] = gated_silu
    gated_silu_grad: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]] = gated_silu_grad
    shifted_exp: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = shifted_exp


PLAIN = Elementwise()


@cache
def compiled(mode: str) -> Elementwise:
    """The formulas through ``torch.compile``, for any number of rows without compiling again.

    Args:
        mode: Mode of ``torch.compile``.
    """
    # CUDA graphs would overwrite results that autograd still holds.
    options = {**torch._inductor.list_mode_options(mode), "triton.cudagraphs": False}
    build = partial(torch.compile, options=options, dynamic=True, fullgraph=True)
    return Elementwise(
        rms_norm=build(rms_norm),
        rms_norm_grad=build(rms_norm_grad),
        gated_silu=build(gated_silu),
        gated_silu_grad=build(gated_silu_grad),
        shifted_exp=build(shifted_exp),
    )
