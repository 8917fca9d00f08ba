"""Every preference loss against numbers worked out without it: by hand, in numpy, by finite differences."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agiledpo.losses import PREFERENCE_LOSSES, LabelSmoothing, LossSettings, PairLogProbs, robust, sigmoid

LOSS_NAMES = sorted(PREFERENCE_LOSSES)
TAU = 0.05
MEAN_CHOSEN_TOKENS = 2.5


def log_sigmoid(x: np.ndarray) -> np.ndarray:
    return -np.logaddexp(0.0, -x)


def sig(x: np.ndarray) -> np.ndarray:
    return np.exp(log_sigmoid(x))


def closed_form(
    name: str,
    pc: np.ndarray,
    pr: np.ndarray,
    rc: np.ndarray,
    rr: np.ndarray,
    nc: np.ndarray,
    nr: np.ndarray,
    beta: float,
    e: float,
) -> np.ndarray:
    """The formulas of the papers in float64; p and r are policy and reference, n lengths, e the label smoothing."""
    c, r = pc - rc, pr - rr
    m = beta * (c - r)
    per_token = c / nc - r / nr
    u, v = np.sort(pc - pr), np.sort(rc - rr)
    d_paired, d_unpaired = beta * (u - v), beta * (np.sort(c) - np.sort(r))
    with np.errstate(over="ignore", invalid="ignore"):
        # At large negative m the product is exp(-m + m / tau), which vanishes.
        g = sig(m / TAU)
        exponential = np.where(m < -30, 0.0, g * np.exp(-np.maximum(m, -30)))
    formulas: dict[str, Callable[[], np.ndarray]] = {
        "sigmoid": lambda: -log_sigmoid(m),
        "sigmoid_norm": lambda: -log_sigmoid(beta * per_token),
        "hinge": lambda: np.maximum(0.0, 1 - m),
        "ipo": lambda: (per_token - 1 / (2 * beta)) ** 2,
        "robust": lambda: (-(1 - e) * log_sigmoid(m) + e * log_sigmoid(-m)) / (1 - 2 * e),
        "exo_pair": lambda: sig(m) * (log_sigmoid(m) - math.log(1 - e)) + sig(-m) * (log_sigmoid(-m) - math.log(e)),
        "discopop": lambda: -(1 - g) * log_sigmoid(m) + exponential,
        "nca_pair": lambda: -log_sigmoid(beta * c) - log_sigmoid(-beta * c) / 2 - log_sigmoid(-beta * r) / 2,
        "bco_pair": lambda: -log_sigmoid(beta * c) - log_sigmoid(-beta * r),
        "sppo_hard": lambda: (c - 0.5 / beta) ** 2 + (r + 0.5 / beta) ** 2,
        "apo_zero": lambda: (1 - sig(beta * c)) + sig(beta * r),
        "apo_down": lambda: sig(beta * c) + (1 - sig(m)),
        "aot": lambda: -(1 - e) * log_sigmoid(d_paired) - e * log_sigmoid(-d_paired),
        "aot_unpaired": lambda: -(1 - e) * log_sigmoid(d_unpaired) - e * log_sigmoid(-d_unpaired),
        "sft": lambda: -pc / MEAN_CHOSEN_TOKENS,
    }
    return formulas[name]()


def as_numpy(pairs: PairLogProbs) -> list[np.ndarray]:
    tensors = (
        pairs.policy_chosen,
        pairs.policy_rejected,
        pairs.reference_chosen,
        pairs.reference_rejected,
        pairs.chosen_tokens,
        pairs.rejected_tokens,
    )
    return [tensor.detach().double().numpy() for tensor in tensors]


def smoothing_for(name: str) -> float:
    return 0.0 if PREFERENCE_LOSSES[name].label_smoothing is LabelSmoothing.UNUSED else 0.1


def settings_for(name: str, *, beta: float = 0.25) -> LossSettings:
    return LossSettings(
        beta=beta, label_smoothing=smoothing_for(name), discopop_tau=TAU, mean_chosen_tokens=MEAN_CHOSEN_TOKENS
    )


HAND_CALCULATIONS = {
    "sigmoid": 0.4740769841801067,
    "sigmoid_norm": 0.6037852895555947,
    "hinge": 0.5,
    "ipo": 1.5625,
    "robust": 0.41157698418010663,
    "exo_pair": 0.27205483350588544,
    "discopop": 0.6065246465980625,
    "nca_pair": 1.2768788397576871,
    "bco_pair": 1.1518788397576871,
    "sppo_hard": 2.0,
    "apo_zero": 0.8756469982284038,
    "apo_down": 0.9397171696839435,
    "aot": 0.9 * 0.4740769841801067 + 0.1 * 0.9740769841801067,
    "aot_unpaired": 0.9 * 0.4740769841801067 + 0.1 * 0.9740769841801067,
    "sft": 3.6,
}


@pytest.mark.parametrize("name", LOSS_NAMES)
def test_hand_calculation(name, make_pairs):
    """One pair, worked out by hand.

    log pi = -9 (chosen, 2 tokens) and -13 (rejected, 4 tokens), log pi_ref = -10 and -12, beta = 0.25, e = 0.1,
    tau = 0.05. So c = 1, r = -1, m = 0.25 * 2 = 0.5, the per-token margin is 1/2 + 1/4 = 0.75, 1 / (2 beta) = 2.

    sigmoid       ln(1 + exp(-0.5)) = 0.474077; with the label flipped ln(1 + exp(0.5)) = 0.974077
    sigmoid_norm  ln(1 + exp(-0.1875))
    hinge         1 - 0.5
    ipo           (0.75 - 2)^2
    robust        (0.9 * 0.474077 - 0.1 * 0.974077) / 0.8
    exo_pair      with s = sigma(0.5) = 0.622459: s ln(s / 0.9) + (1 - s) ln((1 - s) / 0.1)
    discopop      with g = sigma(10) = 0.999955: (1 - g) * 0.474077 + g * exp(-0.5)
    nca_pair      1.5 ln(1 + exp(-0.25)) + 0.5 ln(1 + exp(0.25))
    bco_pair      2 ln(1 + exp(-0.25))
    sppo_hard     (1 - 2)^2 + (-1 + 2)^2
    apo_zero      2 sigma(-0.25)
    apo_down      sigma(0.25) + sigma(-0.5)
    aot           a batch of one is sorted already: 0.9 * 0.474077 + 0.1 * 0.974077
    sft           9 / 2.5
    """
    pairs = make_pairs([-9.0], [-13.0], [-10.0], [-12.0], [2], [4])
    loss = PREFERENCE_LOSSES[name](pairs, settings_for(name))
    torch.testing.assert_close(
        loss, torch.tensor([HAND_CALCULATIONS[name]], dtype=torch.float64), rtol=1e-12, atol=1e-12
    )


def test_aot_by_hand(make_pairs):
    """Three pairs, policy margins (4, 0, 2), reference margins (3, 1, -1), beta = 1.

    Sorted: (0, 2, 4) against (-1, 1, 3), so every difference is 1 and every loss ln(1 + exp(-1)) = 0.313262, though
    the differences within the pairs are 1, -1 and 3.
    """
    pairs = make_pairs([4.0, 0.0, 2.0], [0.0] * 3, [3.0, 1.0, -1.0], [0.0] * 3, [1] * 3, [1] * 3)
    loss = PREFERENCE_LOSSES["aot"](pairs, LossSettings(beta=1.0))
    torch.testing.assert_close(loss, torch.full((3,), 0.31326168751822286, dtype=torch.float64))


def test_aot_keeps_the_order_of_the_pairs(make_pairs):
    """Unpaired, beta = 1: chosen log-ratios (5, -1), rejected (0, 4). Ranks match 5 with 4 and -1 with 0: 1 and -1."""
    pairs = make_pairs([5.0, -1.0], [0.0, 4.0], [0.0] * 2, [0.0] * 2, [1] * 2, [1] * 2)
    loss = PREFERENCE_LOSSES["aot_unpaired"](pairs, LossSettings(beta=1.0))
    expected = torch.tensor([math.log1p(math.exp(-1)), math.log1p(math.exp(1))], dtype=torch.float64)
    torch.testing.assert_close(loss, expected)


LOGPS = st.floats(min_value=-400.0, max_value=0.0, allow_nan=False)
PAIRS = st.lists(st.tuples(LOGPS, LOGPS, LOGPS, LOGPS, st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=5)


@pytest.mark.parametrize("name", LOSS_NAMES)
@given(rows=PAIRS, beta=st.floats(min_value=0.01, max_value=2.0))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_closed_form_on_generated_values(name, rows, beta, make_pairs):
    pairs = make_pairs(*[list(column) for column in zip(*rows, strict=True)])
    loss = PREFERENCE_LOSSES[name](pairs, settings_for(name, beta=beta)).numpy()
    expected = closed_form(name, *as_numpy(pairs), beta, smoothing_for(name))
    if PREFERENCE_LOSSES[name].batch_coupled:
        loss, expected = np.sort(loss), np.sort(expected)
    np.testing.assert_allclose(loss, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", LOSS_NAMES)
def test_extreme_log_ratios_give_finite_losses_and_gradients(name, dtype, make_pairs):
    """|log-ratio| up to 1e4 on either side, in every combination of signs."""
    chosen = [1e4, 1e4, -1e4, -1e4, 0.0, 300.0]
    rejected = [1e4, -1e4, 1e4, -1e4, 0.0, -300.0]
    zeros, lengths = [0.0] * 6, [3, 1, 2, 7, 1, 5]
    pairs = make_pairs(chosen, rejected, zeros, zeros, lengths, lengths[::-1], dtype=dtype, requires_grad=True)
    loss = PREFERENCE_LOSSES[name](pairs, settings_for(name, beta=0.1))
    loss.sum().backward()
    assert loss.dtype == dtype
    assert torch.isfinite(loss).all()
    assert torch.isfinite(pairs.policy_chosen.grad).all()
    if name != "sft":
        assert torch.isfinite(pairs.policy_rejected.grad).all()
    expected = closed_form(name, *as_numpy(pairs), 0.1, smoothing_for(name))
    actual = loss.detach().double().numpy()
    if PREFERENCE_LOSSES[name].batch_coupled:
        actual, expected = np.sort(actual), np.sort(expected)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", LOSS_NAMES)
def test_gradient_equals_finite_differences(name, make_pairs):
    constant = make_pairs(
        [-9.0, -4.0, -7.5], [-13.0, -3.2, -8.0], [-10.0, -4.5, -5.0], [-12.0, -4.9, -6.1], [2, 5, 3], [4, 1, 3]
    )

    def loss(policy_chosen: torch.Tensor, policy_rejected: torch.Tensor) -> torch.Tensor:
        pairs = PairLogProbs(
            policy_chosen=policy_chosen,
            policy_rejected=policy_rejected,
            reference_chosen=constant.reference_chosen,
            reference_rejected=constant.reference_rejected,
            chosen_tokens=constant.chosen_tokens,
            rejected_tokens=constant.rejected_tokens,
        )
        return PREFERENCE_LOSSES[name](pairs, settings_for(name, beta=0.4))

    inputs = (constant.policy_chosen.requires_grad_(), constant.policy_rejected.requires_grad_())
    assert torch.autograd.gradcheck(loss, inputs)


@pytest.mark.parametrize("name", LOSS_NAMES)
def test_batch_coupled_says_whether_the_other_pairs_matter(name, make_pairs):
    """The mean over a batch of four equals the mean over its halves, unless the loss is batch-coupled."""
    columns = [
        [-3.0, -9.0, -5.0, -2.0],
        [-8.0, -1.0, -4.0, -6.0],
        [-4.0, -4.0, -4.5, -7.0],
        [-2.0, -6.0, -5.5, -3.0],
        [2, 5, 3, 1],
        [4, 1, 3, 2],
    ]
    whole = PREFERENCE_LOSSES[name](make_pairs(*columns), settings_for(name)).mean()
    halves = [
        PREFERENCE_LOSSES[name](make_pairs(*[column[part] for column in columns]), settings_for(name)).mean()
        for part in (slice(0, 2), slice(2, 4))
    ]
    differs = abs(whole - sum(halves) / 2) > 1e-6
    assert bool(differs) == PREFERENCE_LOSSES[name].batch_coupled


@pytest.mark.parametrize("name", LOSS_NAMES)
def test_uses_reference_says_whether_the_reference_matters(name, make_pairs):
    pairs = make_pairs([-8.0], [-3.0], [-4.0], [-2.0], [2], [4])
    moved = make_pairs([-8.0], [-3.0], [-5.0], [-2.5], [2], [4])
    loss, moved_loss = (PREFERENCE_LOSSES[name](batch, settings_for(name)) for batch in (pairs, moved))
    assert bool((loss != moved_loss).any()) == PREFERENCE_LOSSES[name].uses_reference


def test_policy_equal_to_reference_gives_log_two(make_pairs):
    """All log-ratios are 0, so -log sigma(0) = ln 2 at any beta."""
    pairs = make_pairs([-3.0, -7.0], [-8.0, -1.0], [-3.0, -7.0], [-8.0, -1.0], [2, 2], [3, 3])
    for beta in (0.01, 0.1, 5.0):
        torch.testing.assert_close(sigmoid(pairs, beta=beta), torch.full((2,), math.log(2), dtype=torch.float64))


def test_robust_is_unbiased_under_label_flips(make_pairs):
    """With flip rate e, (1 - e) * robust(pair) + e * robust(flipped pair) is the loss on clean labels."""
    pair = make_pairs([-3.0], [-8.0], [-4.0], [-2.0], [2], [4])
    flipped = make_pairs([-8.0], [-3.0], [-2.0], [-4.0], [4], [2])
    e = 0.3
    noisy = (1 - e) * robust(pair, beta=0.5, label_smoothing=e) + e * robust(flipped, beta=0.5, label_smoothing=e)
    torch.testing.assert_close(noisy, sigmoid(pair, beta=0.5))


def test_exo_is_zero_where_the_policy_matches_the_smoothed_label(make_pairs):
    """sigma(m) = 0.9 at m = ln 9; the divergence from the label (0.9, 0.1) is then 0."""
    pairs = make_pairs([math.log(9)], [0.0], [0.0], [0.0], [1], [1])
    loss = PREFERENCE_LOSSES["exo_pair"](pairs, LossSettings(beta=1.0, label_smoothing=0.1))
    torch.testing.assert_close(loss, torch.zeros(1, dtype=torch.float64), atol=1e-12, rtol=0)


def test_shapes_must_agree(make_pairs):
    with pytest.raises(ValueError, match=r"same shape \(B,\).*policy_rejected"):
        make_pairs([-3.0, -1.0], [-8.0], [-4.0, -2.0], [-2.0, -1.0], [2, 2], [4, 4])
