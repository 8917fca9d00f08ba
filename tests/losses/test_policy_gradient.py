"""The losses of GRPO and its kin: closed forms in float64, gradients, clipping, normalisation."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agiledpo.losses import PolicyObjective, TokenLogProbs
from agiledpo.losses.policy_gradient import LOSS_NORMALIZATIONS, LOSS_TYPES

LENGTHS = [3, 5, 1, 4]
# Log-ratios of the tokens: inside the bounds, below and above them; none near enough to a bound for finite differences.
LOG_RATIOS = [0.05, -0.5, 0.6, -0.1, 0.4, -0.3, 0.15]
ADVANTAGES = [1.3, -0.7, 0.4, -1.1, 0.9]


@pytest.fixture
def case(random_tokens):
    """Policy, the one it was, the reference, and advantages: every region of the clipped loss, with both signs."""
    policy, reference = random_tokens(LENGTHS, seed=0), random_tokens(LENGTHS, seed=1)
    shape, mask = policy.logps.shape, policy.mask

    def spread(values):
        repeated = torch.tensor(values, dtype=torch.float64).repeat(shape[0] * shape[1])[: shape[0] * shape[1]]
        return repeated.reshape(shape).masked_fill(~mask, 0.0)

    drift = torch.tensor([[0.5], [-0.6], [0.0], [0.0]], dtype=torch.float64)  # of whole completions
    old = TokenLogProbs(logps=policy.logps - (spread(LOG_RATIOS) + drift).masked_fill(~mask, 0.0), mask=mask)
    return policy, old, reference, spread(ADVANTAGES)


def plain_loss(objective, case, *, sampling=None, mean_tokens=None):
    """The objective of each completion, token by token in Python."""
    policy, old, reference, advantages = case
    low, high = objective.bounds
    losses = []
    for row, length in enumerate(policy.lengths.tolist()):
        total = 0.0
        log_ratios = [float(policy.logps[row, t] - old.logps[row, t]) for t in range(length)]
        for t in range(length):
            advantage, logp = float(advantages[row, t]), float(policy.logps[row, t])
            mean = sum(log_ratios) / length
            ratio = math.exp(mean if objective.level == "trajectory" else log_ratios[t])
            clipped = min(max(ratio, low), high)
            if objective.loss_type == "cispo":
                loss = -clipped * advantage * logp
            else:
                loss = -min(ratio * advantage, clipped * advantage)
            if sampling is not None:
                loss *= min(math.exp(float(old.logps[row, t]) - float(sampling[row, t])), objective.sampling_cap)
            if objective.beta:
                quotient = math.exp(float(reference.logps[row, t]) - logp)
                loss += objective.beta * (quotient - math.log(quotient) - 1)
            total += loss
        divisor = {
            "sequence": length,
            "token": mean_tokens or sum(LENGTHS) / len(LENGTHS),
            "constant": objective.max_completion_length,
        }[objective.loss_normalization]
        losses.append(total / divisor)
    return torch.tensor(losses, dtype=torch.float64)


def call(objective, case, **arguments):
    policy, old, reference, advantages = case
    return objective(policy, advantages, old=old, reference=reference if objective.beta else None, **arguments)


every_objective = pytest.mark.parametrize(
    ("loss_type", "level", "normalization", "beta", "clip_coef"),
    [
        (loss_type, level, normalization, beta, clip_coef)
        for loss_type in LOSS_TYPES
        for level in (("trajectory",) if loss_type == "gspo" else ("token", "trajectory"))
        for normalization in LOSS_NORMALIZATIONS
        for beta, clip_coef in ((0.0, 0.2), (0.3, (0.8, 1.28)))
    ],
)


def make(loss_type, level, normalization, beta, clip_coef):
    return PolicyObjective(
        loss_type=loss_type,
        importance_sampling_level=level,
        loss_normalization=normalization,
        beta=beta,
        clip_coef=clip_coef,
        max_completion_length=7,
    )


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_the_case_tests_something(case, loss_type):
    """Of the 13 tokens some are held by the lower bound, some by the upper one, and some by none."""
    terms = call(PolicyObjective(loss_type=loss_type), case)
    low, high = int(terms.clipped_low.sum()), int(terms.clipped_high.sum())
    assert low >= 2
    assert high >= 2
    assert low + high < 13


@every_objective
def test_values_are_those_of_a_loop_over_tokens(case, loss_type, level, normalization, beta, clip_coef):
    objective = make(loss_type, level, normalization, beta, clip_coef)
    torch.testing.assert_close(call(objective, case).loss, plain_loss(objective, case), rtol=1e-12, atol=1e-12)


@every_objective
def test_gradients_are_finite_differences(case, loss_type, level, normalization, beta, clip_coef):
    """CISPO's weights are constants, so its loss is differentiated with them held: the loss of a linear policy.

    A completion with one ratio has one advantage here; with several the gradient is none of the value's.
    """
    objective = make(loss_type, level, normalization, beta, clip_coef)
    policy, old, reference, advantages = case
    if objective.level == "trajectory":
        advantages = advantages[:, :1].expand_as(advantages)
    logps = policy.logps.clone().requires_grad_()

    def loss(values):
        return call(objective, (TokenLogProbs(logps=values, mask=policy.mask), old, reference, advantages)).loss

    if loss_type != "cispo":
        assert torch.autograd.gradcheck(loss, (logps,))
        return
    low, high = objective.bounds
    log_ratios = policy.logps - old.logps
    if objective.level == "trajectory":
        log_ratios = (log_ratios.sum(1) / policy.lengths)[:, None].expand_as(log_ratios)
    weights = log_ratios.exp().clamp(low, high).masked_fill(~policy.mask, 0.0)

    def with_constant_weights(values):
        total = -weights * advantages * values
        if beta:
            quotient = reference.logps - values
            total = total + beta * (quotient.exp() - quotient - 1).masked_fill(~policy.mask, 0.0)
        divisor = {"sequence": policy.lengths, "token": sum(LENGTHS) / len(LENGTHS), "constant": 7}[normalization]
        return total.sum(1) / divisor

    assert torch.autograd.gradcheck(with_constant_weights, (logps,))
    (actual,) = torch.autograd.grad(loss(logps).sum(), logps)
    (expected,) = torch.autograd.grad(with_constant_weights(logps).sum(), logps)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("log_ratio", "advantage", "gradient", "low", "high"),
    [
        (0.0, 1.0, -1.0, 0, 0),
        (0.1, 1.0, -math.exp(0.1), 0, 0),
        (0.3, 1.0, 0.0, 0, 1),  # it has gone far enough
        (0.3, -1.0, math.exp(0.3), 0, 0),  # the wrong way: all the way back
        (-0.3, -1.0, 0.0, 1, 0),
        (-0.3, 1.0, -math.exp(-0.3), 0, 0),
    ],
)
def test_a_bound_takes_the_gradient_only_where_the_ratio_went_the_right_way(log_ratio, advantage, gradient, low, high):
    logps = torch.tensor([[-1.0 + log_ratio]], dtype=torch.float64, requires_grad=True)
    mask = torch.ones(1, 1, dtype=torch.bool)
    old = TokenLogProbs(logps=torch.tensor([[-1.0]], dtype=torch.float64), mask=mask)
    terms = PolicyObjective(beta=0.0)(TokenLogProbs(logps=logps, mask=mask), torch.tensor([[advantage]]), old=old)
    terms.loss.sum().backward()
    assert float(logps.grad) == pytest.approx(gradient, rel=1e-6)
    assert (int(terms.clipped_low), int(terms.clipped_high)) == (low, high)


def test_cispo_keeps_the_gradient_that_the_others_clip():
    logps = torch.tensor([[-1.0]], dtype=torch.float64, requires_grad=True)
    mask = torch.ones(1, 1, dtype=torch.bool)
    old = TokenLogProbs(logps=torch.tensor([[-2.0]], dtype=torch.float64), mask=mask)
    objective = PolicyObjective(loss_type="cispo", beta=0.0, clip_coef=(0.0, 1.28))
    terms = objective(TokenLogProbs(logps=logps, mask=mask), torch.tensor([[2.0]]), old=old)
    terms.loss.sum().backward()
    assert float(logps.grad) == pytest.approx(-1.28 * 2)
    assert int(terms.clipped_high) == 1


@pytest.mark.parametrize("loss_type", ["gspo", "grpo"])
def test_advantages_of_tokens_reach_their_tokens_through_a_ratio_of_the_completion(loss_type):
    """Ratios e^0.3 and e^-0.1 have the geometric mean e^0.1; advantages (0, -2, 5) pull at the last two alone."""
    old = torch.tensor([[-1.0, -2.0, -0.5]], dtype=torch.float64)
    logps = (old + torch.tensor([[0.3, -0.1, 0.1]])).requires_grad_()
    mask, advantages = torch.ones(1, 3, dtype=torch.bool), torch.tensor([[0.0, -2.0, 5.0]], dtype=torch.float64)
    objective = PolicyObjective(loss_type=loss_type, importance_sampling_level="trajectory", beta=0.0)
    terms = objective(TokenLogProbs(logps=logps, mask=mask), advantages, old=TokenLogProbs(logps=old, mask=mask))
    terms.loss.sum().backward()
    torch.testing.assert_close(logps.grad, -math.exp(0.1) * advantages / 3)
    assert float(terms.loss) == pytest.approx(-math.exp(0.1))


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_without_an_old_policy_the_gradient_is_reinforces(case, loss_type):
    """Ratios of exactly 1: -A grad log pi for each token, also where a completion has one ratio."""
    policy, _, _, advantages = case
    logps = policy.logps.clone().requires_grad_()
    objective = PolicyObjective(loss_type=loss_type, beta=0.0, loss_normalization="constant", max_completion_length=1)
    terms = objective(TokenLogProbs(logps=logps, mask=policy.mask), advantages)
    terms.loss.sum().backward()
    torch.testing.assert_close(logps.grad, -advantages)
    assert int(terms.clipped_low.sum() + terms.clipped_high.sum()) == 0
    if loss_type == "grpo":
        torch.testing.assert_close(terms.loss, -advantages.sum(1).detach(), rtol=0, atol=0)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.sampled_from(LOSS_TYPES), st.integers(0, 5))
def test_padding_plays_no_part(random_tokens, lengths, loss_type, width):
    """Garbage in the padding, NaN included, changes neither the value nor the gradient."""
    policy, old, reference = (random_tokens(lengths, seed=seed) for seed in (0, 1, 2))
    advantages = random_tokens(lengths, seed=3).logps + 1
    objective = PolicyObjective(loss_type=loss_type, beta=0.1)

    def garbage(values):
        wide = torch.nn.functional.pad(values.masked_fill(~policy.mask, math.nan), (0, width), value=math.nan)
        return wide, torch.nn.functional.pad(policy.mask, (0, width))

    results = []
    for change in (lambda values: (values, policy.mask), garbage):
        (own, mask), (theirs, _), (base, _), (pull, _) = map(
            change, (policy.logps, old.logps, reference.logps, advantages)
        )
        own = own.clone().requires_grad_()
        terms = objective(
            TokenLogProbs(logps=own, mask=mask),
            pull,
            old=TokenLogProbs(logps=theirs, mask=mask),
            reference=TokenLogProbs(logps=base, mask=mask),
        )
        terms.loss.sum().backward()
        results.append((terms, own.grad[mask]))
    (plain, gradient), (padded, other) = results
    torch.testing.assert_close(padded.loss, plain.loss)
    torch.testing.assert_close(padded.kl, plain.kl)
    torch.testing.assert_close(other, gradient)
    assert torch.equal(padded.clipped_low, plain.clipped_low)
    assert torch.equal(padded.clipped_high, plain.clipped_high)


def part(tokens, span):
    return TokenLogProbs(logps=tokens.logps[span], mask=tokens.mask[span])


@pytest.mark.parametrize("normalization", LOSS_NORMALIZATIONS)
def test_parts_of_a_step_add_up_to_the_step(case, normalization):
    policy, old, reference, advantages = case
    objective = PolicyObjective(loss_normalization=normalization, max_completion_length=6)
    whole = call(objective, case).loss
    mean_tokens = sum(LENGTHS) / len(LENGTHS)
    parts = [
        objective(
            part(policy, span),
            advantages[span],
            old=part(old, span),
            reference=part(reference, span),
            mean_tokens=mean_tokens,
        ).loss
        for span in (slice(0, 1), slice(1, 4))
    ]
    torch.testing.assert_close(torch.cat(parts), whole)


def test_what_the_normalisations_weigh_alike(case):
    """Every token counts the same in a step, or in a completion, or in any completion of any step."""
    policy, _, _, _ = case
    ones = torch.ones_like(policy.logps)
    weights = {}
    for normalization in LOSS_NORMALIZATIONS:
        logps = policy.logps.clone().requires_grad_()
        objective = PolicyObjective(beta=0.0, loss_normalization=normalization, max_completion_length=10)
        objective(TokenLogProbs(logps=logps, mask=policy.mask), ones).loss.mean().backward()
        weights[normalization] = -logps.grad
    for row, length in enumerate(LENGTHS):
        tokens = policy.mask[row]
        torch.testing.assert_close(weights["sequence"][row][tokens], torch.full((length,), 1 / length / 4).double())
        torch.testing.assert_close(weights["token"][row][tokens], torch.full((length,), 1 / sum(LENGTHS)).double())
        torch.testing.assert_close(weights["constant"][row][tokens], torch.full((length,), 1 / 10 / 4).double())


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_sampling_correction(case, loss_type):
    """Weights are capped, 1 where nothing is known, and leave the divergence alone."""
    _, old, _, _ = case
    shift = torch.tensor([0.5, -0.4, 1.5, 0.0, -2.0], dtype=torch.float64)
    sampling = old.logps - shift
    objective = PolicyObjective(loss_type=loss_type, beta=0.3, sampling_cap=2.0)
    corrected = call(objective, case, sampling=sampling)
    torch.testing.assert_close(corrected.loss, plain_loss(objective, case, sampling=sampling), rtol=1e-12, atol=1e-12)
    unknown = call(objective, case, sampling=torch.full_like(sampling, math.nan))
    torch.testing.assert_close(unknown.loss, call(objective, case).loss, rtol=0, atol=0)
    assert not torch.allclose(corrected.loss, unknown.loss)
    torch.testing.assert_close(corrected.kl, unknown.kl)


def test_the_divergence_is_estimated_without_bias():
    """Over tokens drawn from the policy the mean of k3 is KL(policy || reference), and its gradient of both signs."""
    generator = torch.Generator().manual_seed(0)
    policy, reference = (torch.randn(6, generator=generator, dtype=torch.float64).log_softmax(0) for _ in range(2))
    tokens = torch.multinomial(policy.exp(), 200_000, replacement=True, generator=generator)
    mask = torch.ones(1, len(tokens), dtype=torch.bool)
    terms = PolicyObjective(beta=1.0)(
        TokenLogProbs(logps=policy[tokens][None], mask=mask),
        torch.zeros(1, len(tokens)),
        reference=TokenLogProbs(logps=reference[tokens][None], mask=mask),
    )
    divergence = float((policy.exp() * (policy - reference)).sum())
    assert float(terms.kl) / len(tokens) == pytest.approx(divergence, rel=0.01)
    assert float(terms.loss) == pytest.approx(float(terms.kl) / len(tokens))
    assert divergence > 0.1


def test_terms(case):
    policy, _, reference, _ = case
    terms = call(PolicyObjective(beta=0.0), case)
    assert terms.kl is None
    assert terms.tokens.tolist() == LENGTHS
    torch.testing.assert_close(terms.logps, policy.logps.sum(1))
    with_kl = call(PolicyObjective(beta=0.1), case)
    quotient = reference.logps - policy.logps
    torch.testing.assert_close(with_kl.kl, ((quotient.exp() - quotient - 1) * policy.mask).sum(1))
    for values in (with_kl.kl, with_kl.logps, with_kl.clipped_low):
        assert not values.requires_grad


def test_half_precision_is_computed_in_float32():
    mask = torch.ones(1, 1, dtype=torch.bool)
    half = TokenLogProbs(logps=torch.full((1, 1), -1.0, dtype=torch.bfloat16), mask=mask)
    assert PolicyObjective(beta=0.0)(half, torch.ones(1, 1)).loss.dtype == torch.float32


def test_descriptions():
    assert PolicyObjective(clip_coef=(0.8, 1.28), beta=0.0, loss_normalization="token").describe() == (
        "grpo(token ratios from 0.8 to 1.28, mean over the tokens of a step)"
    )
    assert PolicyObjective(loss_type="gspo", beta=0.01).describe() == (
        "gspo(trajectory ratios from 0.8 to 1.2, mean over the tokens of a completion) + 0.01 * KL(policy || reference)"
    )
    constant = PolicyObjective(loss_normalization="constant", max_completion_length=9, beta=0.0)
    assert constant.describe().endswith("sum over tokens / 9)")
    assert replace(constant, loss_type="cispo", importance_sampling_level="trajectory").level == "trajectory"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"loss_type": "ppo"}, "loss_type: 'ppo' is unknown; did you mean"),
        ({"loss_normalization": "batch"}, "loss_normalization: 'batch' is unknown"),
        ({"importance_sampling_level": "turn"}, "importance_sampling_level: 'turn' is unknown"),
        ({"loss_type": "gspo", "importance_sampling_level": "token"}, "'gspo' has one ratio per completion"),
        ({"beta": -0.1}, "beta=-0.1 must be at least 0"),
        ({"clip_coef": -0.1}, "clip_coef=-0.1 must be at least 0"),
        ({"clip_coef": (0.8,)}, "must be one number, or two"),
        ({"clip_coef": (1.1, 1.2)}, "min <= 1 <= max"),
        ({"clip_coef": (-0.1, 1.2)}, r"clip_coef \(min\)=-0.1"),
        ({"clip_coef": (0.8, math.inf)}, r"clip_coef \(max\)=inf"),
        ({"sampling_cap": 0.0}, "sampling_cap=0.0 must be greater than 0"),
        ({"loss_normalization": "constant"}, "divides by max_completion_length, which is None"),
        ({"max_completion_length": 0}, "max_completion_length=0"),
    ],
)
def test_refused_settings(fields, message):
    with pytest.raises(ValueError, match=message):
        PolicyObjective(**fields)


def test_refused_calls(case):
    policy, old, _, advantages = case
    with pytest.raises(ValueError, match=r"beta=0.001 needs the reference's log-probabilities"):
        PolicyObjective()(policy, advantages, old=old)
    with pytest.raises(ValueError, match=r"mean_tokens=0.0 must be positive"):
        PolicyObjective(beta=0.0)(policy, advantages, mean_tokens=0.0)
