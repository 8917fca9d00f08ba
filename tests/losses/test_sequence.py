"""Reduction of token log-probabilities to sequences: sums, means, LD-DPO and WPO weights."""

import math

import pytest
import torch

from agiledpo.losses import TokenLogProbs, ld_sequence_logps, nll, sequence_logps, wpo_weights


def test_sums_and_means(make_tokens):
    """Rows (-1, -2, -3) and (-4): sums -6 and -4, means -2 and -4."""
    tokens = make_tokens([[-1.0, -2.0, -3.0], [-4.0]])
    torch.testing.assert_close(sequence_logps(tokens), torch.tensor([-6.0, -4.0], dtype=torch.float64))
    torch.testing.assert_close(sequence_logps(tokens, average=True), torch.tensor([-2.0, -4.0], dtype=torch.float64))
    torch.testing.assert_close(nll(tokens), torch.tensor([6.0, 4.0], dtype=torch.float64))
    torch.testing.assert_close(nll(tokens, average=True), torch.tensor([2.0, 4.0], dtype=torch.float64))


def test_padding_and_its_width_play_no_part(make_tokens):
    """Garbage in the padding, NaN included, changes neither the value nor the gradient."""
    narrow = make_tokens([[-1.0, -2.0], [-4.0]])
    wide = make_tokens([[-1.0, -2.0], [-4.0]], width=6)
    garbage = wide.logps.masked_fill(~wide.mask, math.nan).requires_grad_()
    sums = sequence_logps(TokenLogProbs(logps=garbage, mask=wide.mask))
    torch.testing.assert_close(sums, sequence_logps(narrow))
    sums.sum().backward()
    torch.testing.assert_close(garbage.grad, wide.mask.double())


def test_half_precision_is_summed_in_float32():
    """2049 tokens of log-probability -1 sum to -2049, which bfloat16 and float16 cannot count to."""
    logps = torch.full((1, 2049), -1.0, dtype=torch.bfloat16)
    sums = sequence_logps(TokenLogProbs(logps=logps, mask=torch.ones(1, 2049, dtype=torch.bool)))
    assert sums.dtype == torch.float32
    assert sums.item() == -2049.0


def test_empty_completion_gives_zero():
    tokens = TokenLogProbs(logps=torch.zeros(1, 3), mask=torch.zeros(1, 3, dtype=torch.bool))
    assert sequence_logps(tokens).item() == 0.0
    assert sequence_logps(tokens, average=True).item() == 0.0


def test_ld_weights_the_excess_of_the_longer_side(make_tokens):
    """Lengths 4 and 2, then 1 and 3; alpha = 0.25.

    Pair 1: chosen -1 - 2 + 0.25 * (-3 - 4) = -4.75, rejected -5 - 6 = -11.
    Pair 2: chosen -7, rejected -1 + 0.25 * (-2 - 3) = -2.25.
    """
    chosen = make_tokens([[-1.0, -2.0, -3.0, -4.0], [-7.0]])
    rejected = make_tokens([[-5.0, -6.0], [-1.0, -2.0, -3.0]])
    chosen_logps, rejected_logps = ld_sequence_logps(chosen, rejected, 0.25)
    torch.testing.assert_close(chosen_logps, torch.tensor([-4.75, -7.0], dtype=torch.float64))
    torch.testing.assert_close(rejected_logps, torch.tensor([-11.0, -2.25], dtype=torch.float64))


def test_ld_with_alpha_one_is_the_sum(random_tokens):
    chosen, rejected = random_tokens([3, 5, 1], seed=0), random_tokens([4, 2, 1], seed=1)
    for weighted, side in zip(ld_sequence_logps(chosen, rejected, 1.0), (chosen, rejected), strict=True):
        torch.testing.assert_close(weighted, sequence_logps(side))


def test_ld_gradient_equals_finite_differences(random_tokens):
    chosen, rejected = (
        random_tokens([3, 5], seed=0, requires_grad=True),
        random_tokens([4, 2], seed=1, requires_grad=True),
    )

    def reduce(chosen_logps: torch.Tensor, rejected_logps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return ld_sequence_logps(
            TokenLogProbs(logps=chosen_logps, mask=chosen.mask),
            TokenLogProbs(logps=rejected_logps, mask=rejected.mask),
            0.3,
        )

    assert torch.autograd.gradcheck(reduce, (chosen.logps, rejected.logps))


@pytest.mark.parametrize("alpha", [-0.1, 1.1])
def test_ld_alpha_range(alpha, random_tokens):
    tokens = random_tokens([3], seed=0)
    with pytest.raises(ValueError, match=rf"alpha={alpha} must lie in \[0, 1\]"):
        ld_sequence_logps(tokens, tokens, alpha)


def test_wpo_weights_by_hand(make_tokens):
    """Chosen: mean of (-1 + 0.5, -2 + 1) = -0.75; rejected: -3 + 1 = -2. Weight exp(-2.75), without gradient."""
    chosen = make_tokens([[-1.0, -2.0]], [[-0.5, -1.0]])
    rejected = make_tokens([[-3.0]], [[-1.0]])
    chosen.logps.requires_grad_()
    weights = wpo_weights(chosen, rejected)
    torch.testing.assert_close(weights, torch.tensor([math.exp(-2.75)], dtype=torch.float64))
    assert not weights.requires_grad


def test_wpo_weight_of_a_uniform_policy_is_one(make_tokens):
    """Under a uniform distribution over 8 tokens, log p = log sum p^2 = -ln 8 everywhere."""
    uniform = [[-math.log(8)] * 3, [-math.log(8)]]
    tokens = make_tokens(uniform, uniform)
    torch.testing.assert_close(wpo_weights(tokens, tokens), torch.ones(2, dtype=torch.float64))


def test_wpo_needs_log_collision(make_tokens):
    with_collision, without = make_tokens([[-1.0]], [[-0.5]]), make_tokens([[-1.0]])
    with pytest.raises(ValueError, match="log_collision, and it is None for rejected"):
        wpo_weights(with_collision, without)


def test_token_inputs_are_checked():
    logps, mask = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"logps must be floating point of shape \(B, T\)"):
        TokenLogProbs(logps=logps[0], mask=mask[0])
    with pytest.raises(ValueError, match=r"logps must be floating point of shape \(B, T\), got torch.int64"):
        TokenLogProbs(logps=logps.long(), mask=mask)
    with pytest.raises(ValueError, match=r"mask must be bool of shape \(2, 3\)"):
        TokenLogProbs(logps=logps, mask=mask.float())
    with pytest.raises(ValueError, match=r"mask must be bool of shape \(2, 3\)"):
        TokenLogProbs(logps=logps, mask=mask[:, :2])
    with pytest.raises(ValueError, match=r"log_collision must have the shape \(2, 3\)"):
        TokenLogProbs(logps=logps, mask=mask, log_collision=torch.zeros(2, 2))
