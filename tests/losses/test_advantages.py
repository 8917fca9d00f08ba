"""Group-relative advantages: closed forms, invariances, and what is refused."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agiledpo.losses import group_advantages

groups = st.lists(st.floats(-100, 100, width=16), min_size=2, max_size=8)


def test_by_hand():
    """Rewards 0, 1, 2, 5: mean 2, sum of squares 4 + 1 + 0 + 9 = 14, standard deviation sqrt(14 / 3)."""
    centred = torch.tensor([-2.0, -1.0, 0.0, 3.0])
    (plain,) = group_advantages([[0, 1, 2, 5]], adv_norm="mean_only")
    (scaled,) = group_advantages([[0, 1, 2, 5]])
    assert torch.equal(plain, centred)
    torch.testing.assert_close(scaled, centred / math.sqrt(14 / 3))
    assert scaled.dtype == plain.dtype == torch.float32


@given(st.lists(groups, min_size=1, max_size=4), st.sampled_from(["mean_std", "mean_only"]))
def test_against_numpy_group_by_group(rewards, adv_norm):
    for group, advantages in zip(rewards, group_advantages(rewards, adv_norm=adv_norm), strict=True):
        values = np.array(group)
        expected = values - values.mean()
        if adv_norm == "mean_std":
            expected = expected / (values.std(ddof=1) + 1e-8)
        np.testing.assert_allclose(advantages.numpy(), expected, rtol=1e-5, atol=1e-5)


@given(groups, st.floats(0.5, 20), st.floats(-50, 50))
def test_scale_and_level_of_the_rewards_play_no_part(group, scale, level):
    (one,) = group_advantages([group], eps=0.0)
    (other,) = group_advantages([[scale * reward + level for reward in group]], eps=0.0)
    if max(group) - min(group) > 0.1:
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("adv_norm", ["mean_std", "mean_only"])
@pytest.mark.parametrize("reward", [0.1, 1 / 3, 1e9, 0.0])
def test_equal_rewards_have_no_advantage_at_all(adv_norm, reward):
    """The mean of three times 0.1 is not 0.1, which eps alone would not hide."""
    (advantages,) = group_advantages([[reward] * 3], adv_norm=adv_norm)
    assert torch.equal(advantages, torch.zeros(3))


@pytest.mark.parametrize("adv_norm", ["mean_std", "mean_only"])
@pytest.mark.parametrize("scale", [1.0, 100.0, 1e4, -1e9])
def test_rounding_is_no_advantage(adv_norm, scale):
    group = [scale * (0.1 + 0.2), scale * 0.3, scale * 0.3]
    assert len(set(group)) == 2
    (advantages,) = group_advantages([group], adv_norm=adv_norm)
    assert torch.equal(advantages, torch.zeros(3))


def test_eps_damps_what_is_only_noise():
    (advantages,) = group_advantages([[1.0, 1.0 + 1e-6]], eps=1e-4)
    assert advantages.abs().max() < 0.01
    (advantages,) = group_advantages([[1.0, 1.0 + 1e-6]])
    assert advantages.abs().max() == pytest.approx(math.sqrt(0.5), rel=0.02)


def test_groups_differ_in_size_and_do_not_see_each_other():
    rewards = [[0.0, 1.0], [5.0, 5.0, 8.0], [1.0] * 4]
    together = group_advantages(rewards)
    assert [len(group) for group in together] == [2, 3, 4]
    for group, alone in zip(together, (group_advantages([group])[0] for group in rewards), strict=True):
        assert torch.equal(group, alone)
    assert group_advantages([]) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rewards": [[1.0, 0.0], [1.0]]}, r"group 1 has 1 completion\(s\).*group_size of at least 2"),
        ({"rewards": [[1.0]], "labels": ["train row 17"]}, "train row 17 has 1 completion"),
        ({"rewards": [[1.0, math.nan]], "labels": ["train row 17"]}, "train row 17 has the rewards 1, nan"),
        ({"rewards": [[math.inf, 1.0]]}, "group 0 has the rewards inf, 1"),
        ({"rewards": [[0.0, 1.0]], "adv_norm": "std"}, "adv_norm: 'std' is unknown"),
        ({"rewards": [[0.0, 1.0]], "eps": -1.0}, "eps=-1.0"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        group_advantages(**arguments)
