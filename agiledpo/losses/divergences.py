"""f-divergence regularisers: what replaces the log-ratio when DPO is not regularised by the reverse KL.

With regulariser f, the implicit reward of a completion is beta * f'(t) at t = pi(y) / pi_ref(y), up to a term that
depends on the prompt alone. That term cancels in chosen minus rejected, hence the restriction to losses of the margin.
Additive constants of f' cancel the same way; the ones here make every transform 0 at t = 1.

f-DPO: Wang et al. 2023, "Beyond Reverse KL: Generalizing Direct Preference Optimization with Diverse Divergence
Constraints", arXiv:2309.16240.
"""

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Divergence = Callable[[Tensor], Tensor]

F_DIVERGENCE_TYPES = ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")

# Closer to 1 than this, the alpha-divergence is computed as its limit, the reverse KL.
_ALPHA_LIMIT_TOLERANCE = 1e-6

# Below log(finfo.max), with room for the factors that multiply the exponential.
_MAX_EXPONENTS = {torch.float32: 80.0, torch.float64: 700.0}


def bounded_exp(exponents: Tensor) -> Tensor:
    """exp(x) that stays finite: beyond the largest exponent of the dtype it is constant, with gradient 0.

    Args:
        exponents: Any shape, float32 or float64.

    Returns:
        Same shape and dtype.
    """
    return torch.exp(exponents.clamp(max=_MAX_EXPONENTS[exponents.dtype]))


def reverse_kl(logratios: Tensor) -> Tensor:
    """The log-ratio itself, log t: standard DPO (f(t) = t log t).

    Args:
        logratios: log t, any shape.

    Returns:
        Same shape.
    """
    return logratios


def forward_kl(logratios: Tensor) -> Tensor:
    """1 - 1/t (f(t) = -log t): a completion that the policy drops is punished exponentially.

    Args:
        logratios: log t, any shape, float32 or float64.

    Returns:
        Same shape.
    """
    return 1 - bounded_exp(-logratios)


def js_divergence(logratios: Tensor) -> Tensor:
    """log(2t / (1 + t)) (Jensen-Shannon): bounded above by log 2.

    Args:
        logratios: log t, any shape.

    Returns:
        Same shape.
    """
    return math.log(2) + F.logsigmoid(logratios)


def alpha_divergence(logratios: Tensor, *, coef: float) -> Tensor:
    """(t^(coef - 1) - 1) / (coef - 1): between the forward KL at coef = 0 and the reverse KL at coef = 1.

    `coef` is TRL's convention. The paper writes the transform as (1 - t^(-alpha)) / alpha, so its alpha is 1 - coef;
    the two agree at 0.5.

    Args:
        logratios: log t, any shape, float32 or float64.
        coef: Order of the divergence.

    Returns:
        Same shape.
    """
    order = coef - 1.0
    if abs(order) < _ALPHA_LIMIT_TOLERANCE:
        return logratios
    return (bounded_exp(order * logratios) - 1) / order


def make_divergence(name: str, *, alpha_coef: float) -> Divergence:
    """The transform of log-ratios called `name`.

    Args:
        name: One of `F_DIVERGENCE_TYPES`.
        alpha_coef: Order of the alpha-divergence; the others ignore it.

    Returns:
        A function from log-ratios to transformed log-ratios of the same shape.

    Raises:
        ValueError: If there is no divergence of that name.
    """
    divergences: dict[str, Divergence] = {
        "reverse_kl": reverse_kl,
        "forward_kl": forward_kl,
        "js_divergence": js_divergence,
        "alpha_divergence": functools.partial(alpha_divergence, coef=alpha_coef),
    }
    if name not in divergences:
        raise ValueError(f"f_divergence_type={name!r} is unknown; choose one of {list(F_DIVERGENCE_TYPES)}.")
    return divergences[name]
