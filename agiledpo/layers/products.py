"""Matrix products with frozen weights, through the fastest kernels that torch has for them.

In float32 on a CPU ``x @ weight.t()`` goes to MKL, which leaves out half of what some processors can do (AMD's, for
one); oneDNN, which torch uses for bfloat16, does not. torch offers oneDNN's float32 product only as an operator of its
own compiler, so it is tried once and left alone where it is missing or gives something else.
"""

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.t() + bias``, not differentiable.

    Args:
        x: (rows, K).
        weight: (N, K), possibly a transposed view.
        bias: (N,) or None.
    """
    if has_onednn(x):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def has_onednn(x: Tensor) -> bool:
    """Whether products of ``x`` go through oneDNN's float32 operator."""
    return x.dtype == torch.float32 and x.device.type == "cpu" and _onednn_works()


@cache
def _onednn_works() -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(shape, generator=generator) for shape in ((3, 5), (4, 5), (4,)))
    try:
        results = [
            torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], ""),
            torch.ops.mkldnn._linear_pointwise(x, weight.t().contiguous().t(), None, "none", [], ""),
        ]
    except (AttributeError, RuntimeError):
        return False
    expected = [F.linear(x, weight, bias), F.linear(x, weight)]
    return all(torch.allclose(one, other, atol=1e-5) for one, other in zip(results, expected, strict=True))
