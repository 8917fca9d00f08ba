"""Which sampled completions become a pair."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agiledpo.data.trajectories import DPOObjective
from agiledpo.scoring import RolloutBatch
from agiledpo.training.comparisons import compare


def rollouts(*groups, finished=True):
    """A batch from groups of (tokens, reward)."""
    return RolloutBatch(
        prompts=[torch.tensor([1, 10 + place]) for place in range(len(groups))],
        completions=[[torch.tensor(tokens) for tokens, _ in group] for group in groups],
        rewards=[[reward for _, reward in group] for group in groups],
        advantages=[None] * len(groups),
        sampling_logps=[None] * len(groups),
        finished=[[finished] * len(group) for group in groups],
        labels=[f"train row {place}" for place in range(len(groups))],
    )


def test_the_best_of_each_group_is_preferred_to_its_worst():
    batch = rollouts(
        [([4], 0.5), ([5, 6], 1.0), ([7], 0.0)],
        [([4], 0.5), ([5], 0.5)],  # a tie
        [([8, 9], -1.0), ([8, 9], 2.0)],  # the same completion, judged twice
        [([6], 3.0)],  # nothing to compare with
        [([6], 0.1 + 0.2), ([7], 0.3)],  # a tie but for rounding
        [([11, 12, 13], 0.0), ([11], 0.25)],
    )
    pairs, metrics = compare(batch, DPOObjective())
    assert [prompt.tolist() for prompt in pairs.prompts] == [[1, 10], [1, 15]]
    assert [ids.tolist() for ids in pairs.chosen] == [[5, 6], [11]]
    assert [ids.tolist() for ids in pairs.rejected] == [[7], [11, 12, 13]]
    assert {ids.dtype for side in (pairs.prompts, *pairs.sides) for ids in side} == {torch.int64}
    assert pairs.labels == ["train row 0", "train row 5"]
    rewards = [0.5, 1.0, 0.0, 0.5, 0.5, -1.0, 2.0, 3.0, 0.3, 0.3, 0.0, 0.25]
    assert metrics == {
        "mean_reward": pytest.approx(sum(rewards) / 12),
        "completion_length": pytest.approx(17 / 12),
        "finished_rate": 1.0,
        "pair_rate": 2 / 6,
        "reward_gap": pytest.approx((1.0 + 0.25) / 2),
        "masked_completions": 0,
    }
    wide, metrics = compare(batch, DPOObjective(min_reward_gap=0.5))
    assert wide.labels == ["train row 0"]
    assert metrics["pair_rate"] == 1 / 6


def test_completions_that_were_cut_make_no_pair():
    batch = rollouts([([4], 2.0), ([5], 1.0), ([6], 0.5), ([7], 0.0)], [([4], 1.0), ([5], 0.0)])
    batch = replace(batch, finished=[[False, True, True, False], [True, False]])
    pairs, metrics = compare(batch, DPOObjective(), mask_truncated=True)
    assert [ids.tolist() for side in pairs.sides for ids in side] == [[5], [6]]
    assert (metrics["masked_completions"], metrics["pair_rate"]) == (3, 0.5)


def test_no_pair_is_no_error():
    pairs, metrics = compare(rollouts([([4], 1.0), ([5], 1.0)], finished=False), DPOObjective())
    assert len(pairs) == 0
    assert metrics["pair_rate"] == 0
    assert metrics["finished_rate"] == 0
    assert math.isnan(metrics["reward_gap"])


def test_a_reward_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="'train row 1', trajectory 0 has the reward nan"):
        compare(rollouts([([4], 1.0), ([5], 0.0)], [([4], math.nan), ([5], 0.0)]), DPOObjective())


completions = st.tuples(st.lists(st.integers(3, 5), min_size=1, max_size=2), st.sampled_from([0.0, 0.5, 1.0]))


@given(st.lists(st.lists(completions, min_size=1, max_size=4), min_size=1, max_size=4), st.sampled_from([0.0, 0.75]))
def test_pairs_are_strict_and_from_one_group(groups, gap):
    batch = rollouts(*groups)
    pairs, metrics = compare(batch, DPOObjective(min_reward_gap=gap))
    assert metrics["pair_rate"] == len(pairs) / len(groups)
    made = dict(zip(pairs.labels, zip(pairs.chosen, pairs.rejected, strict=True), strict=True))
    for label, group in zip(batch.labels, groups, strict=True):
        high, low = max(reward for _, reward in group), min(reward for _, reward in group)
        best = [tokens for tokens, reward in group if reward == high]
        worst = [tokens for tokens, reward in group if reward == low]
        possible = high - low >= max(gap, 0.1) and any(one != other for one in best for other in worst)
        assert (label in made) is possible
        if possible:
            chosen, rejected = (ids.tolist() for ids in made[label])
            assert chosen in best
            assert rejected in worst
            assert chosen != rejected
