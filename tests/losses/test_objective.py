"""The objective as a whole: its terms, its weights, splitting a batch, its description and its checks."""

import dataclasses
import itertools
import math

import pytest
import torch

from agiledpo.losses import (
    PREFERENCE_LOSSES,
    LabelSmoothing,
    ObjectiveTerms,
    PreferenceObjective,
    TokenLogProbs,
    preference_accuracy,
    wpo_weights,
)

CHOSEN_LENGTHS = [3, 5, 4, 6]
REJECTED_LENGTHS = [5, 2, 6, 3]


@pytest.fixture
def batch(random_tokens):
    """Policy chosen, policy rejected, reference chosen, reference rejected of four pairs."""
    return (
        random_tokens(CHOSEN_LENGTHS, seed=0, collision=True),
        random_tokens(REJECTED_LENGTHS, seed=1, collision=True),
        random_tokens(CHOSEN_LENGTHS, seed=2),
        random_tokens(REJECTED_LENGTHS, seed=3),
    )


def rows(tokens: TokenLogProbs, part: slice) -> TokenLogProbs:
    collision = None if tokens.log_collision is None else tokens.log_collision[part]
    return TokenLogProbs(logps=tokens.logps[part], mask=tokens.mask[part], log_collision=collision)


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))


def row_sums(tokens: TokenLogProbs) -> list[float]:
    return [math.fsum(row) for row in tokens.logps.tolist()]


def test_dpo_with_agilerl_likelihood_by_hand(make_tokens):
    """Two pairs, beta = 0.5, nll_alpha = 2, worked out by hand.

    log pi: chosen (-1, -2) = -3 and (-4) = -4, rejected (-3) = -3 and (-1, -1) = -2; log pi_ref: chosen -5 and -3,
    rejected -2 and -2. Log-ratios: chosen 2 and -1, rejected -1 and 0. Margins 3 and -1, times beta 1.5 and -0.5:
    losses ln(1 + exp(-1.5)) = 0.201413 and ln(1 + exp(0.5)) = 0.974077.
    Chosen has 3 tokens in 2 pairs, 1.5 per pair; likelihood terms 3 / 1.5 = 2 and 4 / 1.5 = 8/3, whose mean 7/3 is the
    mean over the 3 tokens. Totals 0.201413 + 4 and 0.974077 + 16/3.
    """
    terms = PreferenceObjective(beta=0.5, nll_alpha=2.0)(
        make_tokens([[-1.0, -2.0], [-4.0]]),
        make_tokens([[-3.0], [-1.0, -1.0]]),
        make_tokens([[-2.5, -2.5], [-3.0]]),
        make_tokens([[-2.0], [-1.0, -1.0]]),
    )
    expected = {
        "loss": [0.2014132779827524 + 4, 0.9740769841801067 + 16 / 3],
        "preference_loss": [0.2014132779827524, 0.9740769841801067],
        "sft_loss": [3.0, 4.0],
        "nll_loss": [2.0, 8 / 3],
        "chosen_rewards": [1.0, -0.5],
        "rejected_rewards": [-0.5, 0.0],
        "chosen_logps": [-3.0, -4.0],
        "rejected_logps": [-3.0, -2.0],
    }
    assert {field.name for field in dataclasses.fields(ObjectiveTerms)} == set(expected)
    for field, values in vars(terms).items():
        torch.testing.assert_close(values, torch.tensor(expected[field], dtype=torch.float64), msg=field)


@pytest.mark.parametrize("preference_average", [False, True])
@pytest.mark.parametrize("sft_average", [False, True])
@pytest.mark.parametrize(("preference_weight", "sft_weight"), [(1.0, 0.0), (1.0, 0.5), (0.0, 1.0), (0.3, 0.7)])
def test_nemo_rl_combinations(preference_average, sft_average, preference_weight, sft_weight, batch):
    """Chosen lengths 3, 5, 4, 6 with every combination of NeMo RL's weights and averages, in plain Python."""
    sums = [row_sums(side) for side in batch]
    losses = []
    for i, (n_chosen, n_rejected) in enumerate(zip(CHOSEN_LENGTHS, REJECTED_LENGTHS, strict=True)):
        chosen, rejected = sums[0][i] - sums[2][i], sums[1][i] - sums[3][i]
        if preference_average:
            chosen, rejected = chosen / n_chosen, rejected / n_rejected
        likelihood = -sums[0][i] / (n_chosen if sft_average else 1)
        losses.append(preference_weight * -log_sigmoid(0.05 * (chosen - rejected)) + sft_weight * likelihood)
    objective = PreferenceObjective(
        beta=0.05,
        preference_loss_weight=preference_weight,
        sft_loss_weight=sft_weight,
        preference_average_log_probs=preference_average,
        sft_average_log_probs=sft_average,
    )
    torch.testing.assert_close(objective(*batch).loss, torch.tensor(losses, dtype=torch.float64))


def test_several_losses_are_added_with_their_weights(batch):
    parts = {name: PreferenceObjective(loss_type=(name,))(*batch).loss for name in ("sigmoid", "ipo", "sft")}
    mixed = PreferenceObjective(loss_type=("sigmoid", "ipo", "sft"), loss_weights=(0.8, 0.2, 1.5))(*batch)
    torch.testing.assert_close(mixed.loss, 0.8 * parts["sigmoid"] + 0.2 * parts["ipo"] + 1.5 * parts["sft"])
    unweighted = PreferenceObjective(loss_type=("sigmoid", "ipo"))(*batch)
    torch.testing.assert_close(unweighted.loss, parts["sigmoid"] + parts["ipo"])


def test_wpo_multiplies_the_loss_of_each_pair(batch):
    """The weight in plain Python: exp of the mean of logp - log_collision over chosen, times the same of rejected."""
    plain, weighted = PreferenceObjective()(*batch), PreferenceObjective(use_weighting=True)(*batch)
    weights = [1.0] * 4
    for side, lengths in zip(batch[:2], (CHOSEN_LENGTHS, REJECTED_LENGTHS), strict=True):
        collision_sums = [math.fsum(row) for row in side.log_collision.tolist()]
        for i, (logp, collision) in enumerate(zip(row_sums(side), collision_sums, strict=True)):
            weights[i] *= math.exp((logp - collision) / lengths[i])
    torch.testing.assert_close(weighted.loss, plain.loss * torch.tensor(weights, dtype=torch.float64))


def test_ld_alpha_acts_on_policy_and_reference(batch):
    """Sums in which tokens beyond the shared lengths 3, 2, 4, 3 count 0.25."""
    shared = [min(pair) for pair in zip(CHOSEN_LENGTHS, REJECTED_LENGTHS, strict=True)]
    sums = [
        [math.fsum(row[:n]) + 0.25 * math.fsum(row[n:]) for row, n in zip(side.logps.tolist(), shared, strict=True)]
        for side in batch
    ]
    expected = [-log_sigmoid(0.1 * ((pc - rc) - (pr - rr))) for pc, pr, rc, rr in zip(*sums, strict=True)]
    terms = PreferenceObjective(ld_alpha=0.25)(*batch)
    torch.testing.assert_close(terms.loss, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize(
    "fields", [{}, {"ld_alpha": 0.2}, {"preference_average_log_probs": True}, {"f_divergence_type": "js_divergence"}]
)
def test_rewards_are_always_plain_sums(fields, batch):
    terms = PreferenceObjective(beta=0.3, **fields)(*batch)
    sums = [torch.tensor(row_sums(side), dtype=torch.float64) for side in batch]
    torch.testing.assert_close(terms.chosen_rewards, 0.3 * (sums[0] - sums[2]))
    torch.testing.assert_close(terms.rejected_rewards, 0.3 * (sums[1] - sums[3]))
    torch.testing.assert_close(terms.chosen_logps, sums[0])
    torch.testing.assert_close(terms.rejected_logps, sums[1])


def test_policy_equal_to_reference_gives_log_two_and_no_rewards(batch):
    policy_chosen, policy_rejected = batch[:2]
    terms = PreferenceObjective()(policy_chosen, policy_rejected, policy_chosen, policy_rejected)
    torch.testing.assert_close(terms.loss, torch.full((4,), math.log(2), dtype=torch.float64))
    assert (terms.chosen_rewards == 0).all()
    assert (terms.rejected_rewards == 0).all()
    assert preference_accuracy(terms.chosen_rewards, terms.rejected_rewards).tolist() == [0.5] * 4


def test_preference_accuracy():
    accuracy = preference_accuracy(torch.tensor([1.0, 0.0, -2.0, math.nan]), torch.tensor([0.0, 0.0, -1.0, 0.0]))
    assert accuracy.tolist() == [1.0, 0.5, 0.0, 0.0]


def smoothing(name: str) -> float:
    return 0.0 if PREFERENCE_LOSSES[name].label_smoothing is LabelSmoothing.UNUSED else 0.1


SPLITTABLE = [
    *(
        {"loss_type": (name,), "label_smoothing": smoothing(name)}
        for name, loss in PREFERENCE_LOSSES.items()
        if not loss.batch_coupled
    ),
    {"nll_alpha": 1.0},
    {"loss_type": ("sigmoid", "sft"), "loss_weights": (0.5, 2.0), "nll_alpha": 0.3, "sft_loss_weight": 0.7},
    {"use_weighting": True, "ld_alpha": 0.5, "nll_alpha": 1.0},
]


@pytest.mark.parametrize("cuts", [[1, 2, 3], [2], [1], [3]])
@pytest.mark.parametrize("fields", SPLITTABLE, ids=lambda fields: ",".join(str(value) for value in fields.values()))
def test_splitting_a_batch_changes_nothing(fields, cuts, batch):
    """Every entry of every term, hence the mean over pairs, is the same for 1 x 4, 4 x 1, 2 x 2, 1 + 3 and 3 + 1."""
    objective = PreferenceObjective(**fields)
    assert not objective.batch_coupled
    whole = objective(*batch)
    edges = [0, *cuts, 4]
    parts = [
        objective(*[rows(side, slice(a, b)) for side in batch], mean_chosen_tokens=sum(CHOSEN_LENGTHS) / 4)
        for a, b in itertools.pairwise(edges)
    ]
    for field in dataclasses.fields(ObjectiveTerms):
        whole_values = vars(whole)[field.name]
        split_values = torch.cat([vars(part)[field.name] for part in parts])
        torch.testing.assert_close(split_values, whole_values, rtol=1e-12, atol=1e-12)


def test_pooled_likelihood_is_the_mean_over_tokens(batch):
    tokens = [value for row, n in zip(batch[0].logps.tolist(), CHOSEN_LENGTHS, strict=True) for value in row[:n]]
    terms = PreferenceObjective(loss_type=("sft",))(*batch)
    assert terms.loss.mean().item() == pytest.approx(-math.fsum(tokens) / sum(CHOSEN_LENGTHS), rel=1e-12)


@pytest.mark.parametrize("name", ["aot", "aot_unpaired"])
def test_batch_coupled_losses_say_so(name):
    assert PreferenceObjective(loss_type=("sigmoid", name)).batch_coupled
    assert not PreferenceObjective(loss_type=("sigmoid", name), loss_weights=(1.0, 0.0)).batch_coupled


def test_pools_tokens_says_whether_a_split_needs_the_mean_length():
    assert not PreferenceObjective(sft_loss_weight=1.0).pools_tokens
    assert PreferenceObjective(nll_alpha=1.0).pools_tokens
    assert PreferenceObjective(loss_type=("sigmoid", "sft")).pools_tokens
    assert not PreferenceObjective(loss_type=("sigmoid", "sft"), loss_weights=(1.0, 0.0)).pools_tokens


DIFFERENTIABLE = [
    *({"loss_type": (name,), "label_smoothing": smoothing(name)} for name in PREFERENCE_LOSSES),
    {"ld_alpha": 0.3},
    {"preference_average_log_probs": True},
    {"nll_alpha": 0.5, "sft_loss_weight": 0.2, "sft_average_log_probs": True, "preference_loss_weight": 0.7},
    {"loss_type": ("sigmoid", "ipo", "sft"), "loss_weights": (0.8, 0.2, 1.0), "ld_alpha": 0.5},
    {"loss_type": ("sigmoid", "discopop"), "f_divergence_type": "js_divergence", "beta": 1.0},
    {"loss_type": ("hinge",), "f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.2},
]


@pytest.mark.parametrize("fields", DIFFERENTIABLE, ids=lambda fields: ",".join(str(value) for value in fields.values()))
def test_gradient_equals_finite_differences(fields, batch):
    """With respect to the token log-probabilities of the policy."""
    objective = PreferenceObjective(**fields)
    policy_chosen, policy_rejected, *reference = batch

    def loss(chosen_logps: torch.Tensor, rejected_logps: torch.Tensor) -> torch.Tensor:
        return objective(
            dataclasses.replace(policy_chosen, logps=chosen_logps),
            dataclasses.replace(policy_rejected, logps=rejected_logps),
            *reference,
        ).loss

    assert torch.autograd.gradcheck(
        loss, (policy_chosen.logps.requires_grad_(), policy_rejected.logps.requires_grad_())
    )


@pytest.mark.parametrize("name", [name for name, loss in PREFERENCE_LOSSES.items() if loss.accepts_weighting])
def test_wpo_weights_are_constants_of_the_gradient(name, batch):
    """The gradient of the weighted loss of a pair is its weight times the gradient of its plain loss."""
    plain = PreferenceObjective(loss_type=(name,), label_smoothing=smoothing(name))
    weighted = dataclasses.replace(plain, use_weighting=True)
    inputs = [side.logps.requires_grad_() for side in batch[:2]]
    weights = wpo_weights(*batch[:2])
    expected = torch.autograd.grad((weights * plain(*batch).loss).sum(), inputs)
    actual = torch.autograd.grad(weighted(*batch).loss.sum(), inputs)
    torch.testing.assert_close(actual, expected)


def test_only_the_policy_gets_a_gradient_and_only_the_loss_carries_one(batch):
    for side in batch:
        side.logps.requires_grad_()
    terms = PreferenceObjective(nll_alpha=1.0, sft_loss_weight=1.0)(*batch)
    carriers = [name for name, values in vars(terms).items() if values.requires_grad]
    assert carriers == ["loss"]
    terms.loss.sum().backward()
    assert [side.logps.grad is not None for side in batch] == [True, True, False, False]


def test_dtypes(random_tokens):
    """float32 stays float32, float64 stays float64, bfloat16 is raised to float32."""
    for dtype, expected in [
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.bfloat16, torch.float32),
    ]:
        sides = [random_tokens([3, 2], seed=seed, dtype=dtype) for seed in range(4)]
        terms = PreferenceObjective(nll_alpha=1.0)(*sides)
        assert {values.dtype for values in vars(terms).values()} == {expected}


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "1 * sigmoid(beta=0.1)"),
        ({"nll_alpha": 1.0}, "1 * sigmoid(beta=0.1) + 1 * token-mean NLL of chosen"),
        (
            {"loss_type": ("sigmoid", "sft"), "loss_weights": (0.8, 0.2), "preference_loss_weight": 0.5},
            "0.4 * sigmoid(beta=0.1) + 0.1 * sft(token-mean NLL of chosen)",
        ),
        (
            {"sft_loss_weight": 0.5, "sft_average_log_probs": True, "preference_average_log_probs": True},
            "1 * sigmoid(beta=0.1, mean log-probs) + 0.5 * NLL of chosen averaged per sequence",
        ),
        ({"preference_loss_weight": 0.0, "sft_loss_weight": 1.0}, "1 * NLL of chosen summed per sequence"),
        (
            {"loss_type": ("robust", "discopop"), "label_smoothing": 0.1, "f_divergence_type": "js_divergence"},
            "1 * robust(beta=0.1, label_smoothing=0.1, f_divergence=js_divergence)"
            " + 1 * discopop(beta=0.1, f_divergence=js_divergence, tau=0.05)",
        ),
        (
            {"f_divergence_type": "alpha_divergence", "ld_alpha": 0.5, "use_weighting": True},
            "1 * sigmoid(beta=0.1, f_divergence=alpha_divergence(0.5), ld_alpha=0.5, WPO weights)",
        ),
    ],
)
def test_describe(fields, text):
    assert PreferenceObjective(**fields).describe() == text


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"beta": 0.0}, r"beta=0.0 must be greater than 0"),
        ({"beta": -0.1}, r"beta=-0.1 must be greater than 0"),
        ({"beta": math.nan}, r"beta=nan must be a finite number"),
        ({"beta": math.inf}, r"beta=inf must be a finite number"),
        ({"beta": "0.1"}, r"beta='0.1' must be a finite number"),
        ({"beta": True}, r"beta=True must be a finite number"),
        ({"loss_type": ()}, r"loss_type=\(\) must be a non-empty tuple"),
        ({"loss_type": "sigmoid"}, r"loss_type='sigmoid' must be a non-empty tuple of names"),
        ({"loss_type": ("sigmiod",)}, r"loss_type: 'sigmiod' is unknown; did you mean 'sigmoid'\?.*hinge"),
        ({"loss_type": ("sigmoid", "ippo")}, r"'ippo' is unknown; did you mean 'ipo'\?"),
        ({"loss_type": ("exo",), "label_smoothing": 0.1}, r"'exo' is unknown; did you mean 'exo_pair'\?"),
        ({"loss_weights": (1.0, 2.0)}, r"loss_weights=\(1.0, 2.0\) must be a tuple with one weight for each of the 1"),
        ({"loss_weights": [1.0]}, r"loss_weights=\[1.0\] must be a tuple"),
        ({"loss_weights": (-1.0,)}, r"loss_weights\[0\]=-1.0 must be at least 0"),
        ({"loss_weights": (math.inf,)}, r"loss_weights\[0\]=inf must be a finite number"),
        ({"loss_weights": (0.0,)}, r"loss_weights=\(0.0,\).*leave nothing to train"),
        ({"preference_loss_weight": 0.0}, r"preference_loss_weight=0.0.*leave nothing to train"),
        ({"preference_loss_weight": -1.0}, r"preference_loss_weight=-1.0 must be at least 0"),
        ({"sft_loss_weight": -0.5}, r"sft_loss_weight=-0.5 must be at least 0"),
        ({"nll_alpha": -1.0}, r"nll_alpha=-1.0 must be at least 0"),
        ({"nll_alpha": math.nan}, r"nll_alpha=nan must be a finite number"),
        ({"discopop_tau": 0.0}, r"discopop_tau=0.0 must be greater than 0"),
        ({"f_alpha_divergence_coef": math.nan}, r"f_alpha_divergence_coef=nan must be a finite number"),
        ({"f_divergence_type": "js"}, r"f_divergence_type: 'js' is unknown; did you mean 'js_divergence'\?"),
        ({"ld_alpha": 1.5}, r"ld_alpha=1.5 must lie in \[0, 1\], or be None"),
        ({"ld_alpha": -0.5}, r"ld_alpha=-0.5 must lie in \[0, 1\]"),
        ({"ld_alpha": math.nan}, r"ld_alpha=nan must be a finite number"),
        (
            {"label_smoothing": 0.1},
            r"label_smoothing=0.1 has no effect on loss_type=\('sigmoid',\); set it to 0 or.*rob",
        ),
        ({"label_smoothing": math.nan}, r"label_smoothing=nan must be a finite number"),
        ({"loss_type": ("exo_pair",)}, r"label_smoothing=0.0 must lie in \(0, 0.5\) for loss_type 'exo_pair'"),
        ({"loss_type": ("robust",), "label_smoothing": 0.5}, r"label_smoothing=0.5 must lie in \[0, 0.5\).*'robust'"),
        ({"loss_type": ("robust",), "label_smoothing": -0.1}, r"label_smoothing=-0.1 must lie in \[0, 0.5\)"),
        ({"loss_type": ("aot",), "label_smoothing": 0.7}, r"label_smoothing=0.7 must lie in \[0, 0.5\).*'aot'"),
        (
            {"loss_type": ("sigmoid", "nca_pair"), "f_divergence_type": "forward_kl"},
            r"f_divergence_type='forward_kl' does not work with loss_type nca_pair; set f_divergence_type='reverse_kl'",
        ),
        (
            {"loss_type": ("sigmoid", "aot"), "use_weighting": True},
            r"use_weighting=True does not work with loss_type aot; set use_weighting=False",
        ),
        ({"loss_type": ("sft",), "use_weighting": True}, r"use_weighting=True does not work with loss_type sft"),
        (
            {"loss_type": ("ipo",), "preference_average_log_probs": True},
            r"preference_average_log_probs=True does not work with loss_type ipo",
        ),
        (
            {"ld_alpha": 0.5, "preference_average_log_probs": True},
            r"preference_average_log_probs=True and ld_alpha=0.5.*set preference_average_log_probs=False or ld_alpha=N",
        ),
    ],
)
def test_invalid_settings_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        PreferenceObjective(**fields)


@pytest.mark.parametrize("name", [name for name, loss in PREFERENCE_LOSSES.items() if not loss.accepts_f_divergence])
def test_f_divergences_are_refused_where_the_prompt_term_does_not_cancel(name):
    with pytest.raises(ValueError, match=f"f_divergence_type='js_divergence' does not work with loss_type {name}"):
        PreferenceObjective(loss_type=(name,), label_smoothing=smoothing(name), f_divergence_type="js_divergence")


@pytest.mark.parametrize("value", [0.0, -2.0, math.nan])
def test_mean_chosen_tokens_must_be_positive(value, batch):
    with pytest.raises(ValueError, match=f"mean_chosen_tokens={value} must be positive"):
        PreferenceObjective()(*batch, mean_chosen_tokens=value)


def test_weighting_needs_log_collision(random_tokens):
    sides = [random_tokens([3, 2], seed=seed) for seed in range(4)]
    with pytest.raises(ValueError, match="log_collision, and it is None for chosen"):
        PreferenceObjective(use_weighting=True)(*sides)
