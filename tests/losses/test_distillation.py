"""Advantages of distillation on the student's samples."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agiledpo.losses.distillation import DistillationObjective

STUDENT = torch.tensor([-1.0, -2.0, -0.5])
TEACHER = torch.tensor([-0.5, -4.0, -0.5])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0.5, -2.0, 0.0]),
        ({"kl_coef": 3.0}, [1.5, -6.0, 0.0]),
        ({"clip": 1.0}, [0.5, -1.0, 0.0]),
        ({"clip": 1.0, "kl_coef": 3.0}, [1.5, -3.0, 0.0]),
        ({"discount": 1.0}, [-1.5, -2.0, 0.0]),
        ({"discount": 0.5}, [-0.5, -2.0, 0.0]),
        ({"discount": 0.5, "clip": 1.0, "kl_coef": 2.0}, [0.0, -2.0, 0.0]),
    ],
)
def test_closed_form(settings, expected):
    advantages = DistillationObjective(**settings).advantages(STUDENT, TEACHER)
    assert advantages.dtype == torch.float32
    torch.testing.assert_close(advantages, torch.tensor(expected))


VALUES = st.lists(st.tuples(st.floats(-20, 0), st.floats(-20, 0)), min_size=1, max_size=12)


@settings(deadline=None)
@given(VALUES, st.floats(0, 1), st.floats(0.1, 5), st.none() | st.floats(0.1, 5))
def test_the_future_counts_by_powers_of_the_discount(pairs, discount, kl_coef, clip):
    bound = math.inf if clip is None else clip
    rewards = [kl_coef * min(max(teacher - student, -bound), bound) for student, teacher in pairs]
    expected = [sum(discount**k * reward for k, reward in enumerate(rewards[place:])) for place in range(len(rewards))]
    student, teacher = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    found = DistillationObjective(kl_coef=kl_coef, discount=discount, clip=clip).advantages(student, teacher)
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-5, atol=1e-5)


def test_the_expected_gradient_of_a_token_is_that_of_the_reverse_kl():
    """Sum over all tokens, weighed by the student, of advantage times gradient of its log-probability."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7, generator=generator, dtype=torch.float64).requires_grad_()
    student, teacher = logits.log_softmax(0), torch.randn(7, generator=generator, dtype=torch.float64).log_softmax(0)
    (exact,) = torch.autograd.grad((student.exp() * (student - teacher)).sum(), logits, retain_graph=True)
    advantages = DistillationObjective().advantages(student, teacher)
    (estimated,) = torch.autograd.grad(-(student.exp().detach() * advantages * student).sum(), logits)
    torch.testing.assert_close(estimated, exact, rtol=1e-5, atol=1e-7)


def test_no_gradient_flows_through_advantages():
    assert not DistillationObjective().advantages(STUDENT.clone().requires_grad_(), TEACHER).requires_grad


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"kl_coef": 0.0}, "kl_coef=0.0"),
        ({"kl_coef": math.nan}, "kl_coef=nan"),
        ({"discount": -0.1}, "discount=-0.1"),
        ({"discount": 1.1}, "discount=1.1 must be at most 1"),
        ({"clip": 0.0}, "clip=0.0"),
        ({"clip": math.inf}, "clip=inf"),
    ],
)
def test_settings_out_of_range_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        DistillationObjective(**settings)


def test_different_tokens_are_refused():
    with pytest.raises(ValueError, match=r"student has \(3,\) .* teacher \(2,\)"):
        DistillationObjective().advantages(STUDENT, TEACHER[:2])
