"""The f-divergence transforms against closed forms, finite differences and their limits."""

import functools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agiledpo.losses import (
    F_DIVERGENCE_TYPES,
    PREFERENCE_LOSSES,
    LossSettings,
    alpha_divergence,
    forward_kl,
    js_divergence,
    make_divergence,
    reverse_kl,
)

MARGIN_LOSSES = sorted(
    name for name, loss in PREFERENCE_LOSSES.items() if loss.accepts_f_divergence and loss.uses_reference
)


def test_hand_calculation():
    """At t = pi / pi_ref = 4, so log t = ln 4.

    reverse_kl ln 4; forward_kl 1 - 1/4; js_divergence ln(2 * 4 / 5) = ln 1.6;
    alpha_divergence(0.5) (4^-0.5 - 1) / -0.5 = 1; alpha_divergence(2) (4 - 1) / 1 = 3.
    """
    x = torch.tensor(math.log(4), dtype=torch.float64)
    assert reverse_kl(x).item() == pytest.approx(1.3862943611198906, rel=1e-14)
    assert forward_kl(x).item() == pytest.approx(0.75, rel=1e-14)
    assert js_divergence(x).item() == pytest.approx(0.47000362924573563, rel=1e-14)
    assert alpha_divergence(x, coef=0.5).item() == pytest.approx(1.0, rel=1e-14)
    assert alpha_divergence(x, coef=2.0).item() == pytest.approx(3.0, rel=1e-14)


@given(logratio=st.floats(-60, 60), coef=st.floats(-1, 3).filter(lambda a: abs(a - 1) > 0.01))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_closed_form_on_generated_values(logratio, coef):
    """In terms of t itself, as the paper writes f'."""
    t = math.exp(logratio)
    x = torch.tensor([logratio], dtype=torch.float64)
    expected = {
        "reverse_kl": math.log(t),
        "forward_kl": 1 - 1 / t,
        "js_divergence": math.log(2) + logratio - np.logaddexp(0, logratio),
        "alpha_divergence": (t ** (coef - 1) - 1) / (coef - 1),
    }
    for name in F_DIVERGENCE_TYPES:
        actual = make_divergence(name, alpha_coef=coef)(x).item()
        assert actual == pytest.approx(expected[name], rel=1e-9, abs=1e-9), name


@pytest.mark.parametrize("name", F_DIVERGENCE_TYPES)
def test_gradient_equals_finite_differences(name):
    x = torch.tensor([-3.0, -0.4, 0.0, 0.7, 5.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(make_divergence(name, alpha_coef=0.3), (x,))


@pytest.mark.parametrize("name", F_DIVERGENCE_TYPES)
def test_zero_log_ratio_gives_zero(name):
    x = torch.zeros(1, dtype=torch.float64)
    torch.testing.assert_close(make_divergence(name, alpha_coef=0.3)(x), x, atol=1e-15, rtol=0)


def test_alpha_divergence_between_forward_and_reverse_kl():
    """Order 0 is the forward KL, order 1 the reverse KL, and orders near 1 approach it: x + (order - 1) x^2 / 2."""
    x = torch.linspace(-5, 5, 11, dtype=torch.float64)
    torch.testing.assert_close(alpha_divergence(x, coef=0.0), forward_kl(x))
    torch.testing.assert_close(alpha_divergence(x, coef=1.0), x)
    torch.testing.assert_close(alpha_divergence(x, coef=1 + 1e-4), x + 1e-4 * x**2 / 2, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", F_DIVERGENCE_TYPES)
@pytest.mark.parametrize("coef", [0.0, 0.5, 2.0])
def test_extreme_log_ratios_stay_finite(name, coef, dtype):
    x = torch.tensor([-1e4, -300.0, 300.0, 1e4], dtype=dtype, requires_grad=True)
    y = make_divergence(name, alpha_coef=coef)(x)
    y.sum().backward()
    assert y.dtype == dtype
    assert torch.isfinite(y).all()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("divergence", F_DIVERGENCE_TYPES)
@pytest.mark.parametrize("name", MARGIN_LOSSES)
def test_losses_of_extreme_log_ratios(name, divergence, dtype, make_pairs):
    """Finite losses and gradients, but for IPO, whose square of an exponential may overflow to infinity (not NaN)."""
    extremes = ([1e4, 1e4, -1e4, -1e4], [1e4, -1e4, 1e4, -1e4])
    pairs = make_pairs(*extremes, [0.0] * 4, [0.0] * 4, [3, 1, 2, 7], [1, 4, 2, 3], dtype=dtype, requires_grad=True)
    transform = make_divergence(divergence, alpha_coef=0.5)
    loss = PREFERENCE_LOSSES[name](pairs, LossSettings(beta=0.1, label_smoothing=0.1, divergence=transform))
    loss.sum().backward()
    assert not torch.isnan(loss).any()
    assert name == "ipo" or torch.isfinite(loss).all()
    assert torch.isfinite(pairs.policy_chosen.grad).all()
    assert torch.isfinite(pairs.policy_rejected.grad).all()


@pytest.mark.parametrize("divergence", F_DIVERGENCE_TYPES)
@pytest.mark.parametrize("name", MARGIN_LOSSES)
def test_losses_see_the_transformed_log_ratios(name, divergence, make_pairs):
    """A loss with divergence h equals the loss without one on a policy whose log-ratios are h(c) and h(r)."""
    transform = make_divergence(divergence, alpha_coef=0.5)
    pairs = make_pairs([-3.0, -6.0], [-8.0, -5.5], [-4.0, -4.5], [-7.0, -6.0], [2, 3], [4, 1])
    zeros = [0.0, 0.0]
    moved = make_pairs(
        transform(pairs.chosen_logratios).tolist(),
        transform(pairs.rejected_logratios).tolist(),
        zeros,
        zeros,
        [2, 3],
        [4, 1],
    )
    loss = functools.partial(LossSettings, beta=0.7, label_smoothing=0.1)
    torch.testing.assert_close(
        PREFERENCE_LOSSES[name](pairs, loss(divergence=transform)), PREFERENCE_LOSSES[name](moved, loss())
    )


def test_unknown_name():
    with pytest.raises(ValueError, match=r"f_divergence_type='kl' is unknown.*reverse_kl"):
        make_divergence("kl", alpha_coef=0.5)
