"""Rollouts of groups of trajectories: whose advantages they have, and which rows they become."""

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agiledpo.algorithms.precomputed import rollouts_from_groups
from agiledpo.data.trajectories import Step, Trajectory, TrajectoryGroup


def attempt(reward, *steps):
    return Trajectory(steps, reward)


def group(*attempts, name="task:solver"):
    return TrajectoryGroup.named(name, attempts)


def lists(column):
    return [[values.tolist() for values in row] for row in column]


def strictly(groups, **settings):
    """Without any warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return rollouts_from_groups(groups, **settings)


def test_valid_advantages_are_used_as_they_are_whatever_the_rewards():
    batch = strictly(
        [
            group(
                attempt(1.0, Step((5, 6), (10, 11), advantage=[0.5, -0.25])),
                attempt(None, Step((5, 6), (12,), advantage=2)),
            )
        ]
    )
    assert lists([batch.prompts]) == [[[5, 6]]]
    assert lists(batch.completions) == [[[10, 11], [12]]]
    assert lists(batch.advantages) == [[[0.5, -0.25], [2.0]]]
    assert batch.rewards[0][0] == 1.0
    assert math.isnan(batch.rewards[0][1])
    assert batch.sampling_logps == [None]
    assert batch.finished == [[True, True]]
    assert batch.labels == ["group 'task:solver', trajectory 0, step 0 (and 1 more of its prompt)"]


@pytest.mark.parametrize(("adv_norm", "high"), [("mean_std", math.sqrt(0.5)), ("mean_only", 0.5)])
def test_without_advantages_they_follow_from_the_rewards(adv_norm, high):
    # Rewards 1 and 0: the deviations are 1/2, the standard deviation of the sample is sqrt(1/2).
    batch = strictly([group(attempt(1.0, Step((5,), (10, 11))), attempt(0.0, Step((5,), (12,))))], adv_norm=adv_norm)
    assert lists(batch.completions) == [[[10, 11], [12]]]
    assert batch.rewards == [[1.0, 0.0]]
    torch.testing.assert_close(batch.advantages[0][0], torch.full((2,), high), atol=1e-6, rtol=0)
    torch.testing.assert_close(batch.advantages[0][1], torch.full((1,), -high), atol=1e-6, rtol=0)


def test_trajectories_are_compared_and_not_the_rows_that_their_steps_become():
    batch = strictly(
        [
            group(
                attempt(3.0, Step((1,), (20,)), Step((1, 20, 2), (21, 22))),
                attempt(1.0, Step((1,), (23,))),
                attempt(2.0),  # it broke off before its first step, and is compared all the same
            ),
            group(attempt(0.0, Step((1,), (24,))), attempt(4.0, Step((1,), (25,))), name="other:solver"),
        ],
        adv_norm="mean_only",
    )
    assert lists([batch.prompts]) == [[[1], [1, 20, 2], [1]]]
    assert lists(batch.completions) == [[[20], [23]], [[21, 22]], [[24], [25]]]
    assert lists(batch.advantages) == [[[1.0], [-1.0]], [[1.0, 1.0]], [[-2.0], [2.0]]]
    assert batch.rewards == [[3.0, 1.0], [3.0], [0.0, 4.0]]
    assert batch.labels[1] == "group 'task:solver', trajectory 0, step 1"


@pytest.mark.parametrize("broken", [None, [1.0], math.nan, "0.5"])
def test_a_group_with_some_valid_advantages_follows_from_its_rewards_and_says_so(broken):
    mixed = group(
        attempt(1.0, Step((5,), (10,), advantage=7.0), Step((6,), (11, 12), advantage=broken)),
        attempt(0.0, Step((5,), (13,), advantage=7.0)),
        name="sum:3:judge",
    )
    whole = group(attempt(None, Step((9,), (14,), advantage=0.125)))
    with pytest.warns(
        UserWarning, match="group 'sum:3:judge': trajectory 0, step 1 has .*whole group .* rewards"
    ) as said:
        batch = rollouts_from_groups([mixed, whole], adv_norm="mean_only")
    assert len(said) == 1
    assert lists(batch.advantages) == [[[0.5], [-0.5]], [[0.5, 0.5]], [[0.125]]]


def test_a_warning_names_a_few_places_and_counts_the_rest():
    steps = [Step((5,), (10,)) for _ in range(5)]
    mixed = group(attempt(1.0, Step((5,), (9,), advantage=1.0), *steps), attempt(0.0, Step((5,), (9,), advantage=1.0)))
    with pytest.warns(UserWarning, match="step 1 has no advantage; .*step 3 has no advantage; and 2 more"):
        rollouts_from_groups([mixed])


@pytest.mark.parametrize("reward", [None, math.nan])
def test_a_group_that_needs_rewards_needs_all_of_them(reward):
    plain = group(attempt(1.0, Step((5,), (10,))), attempt(reward, Step((5,), (11,))))
    with pytest.raises(ValueError, match="group 'task:solver', trajectory 1 has no reward"):
        rollouts_from_groups([plain])
    mixed = group(attempt(1.0, Step((5,), (10,), advantage=1.0)), attempt(reward, Step((5,), (11,))))
    with pytest.raises(ValueError, match=r"trajectory 1 has no reward.*trajectory 1, step 0 has no advantage"):
        rollouts_from_groups([mixed])


def test_one_trajectory_alone_cannot_be_compared():
    with pytest.raises(ValueError, match="group 'task:solver'"):
        rollouts_from_groups([group(attempt(1.0, Step((5,), (10,))))])


def test_use_precomputed_advantage_false_takes_the_rewards_and_says_once_that_something_is_ignored():
    groups = [
        group(attempt(1.0, Step((5,), (10,), advantage=7.0)), attempt(0.0, Step((5,), (11,), advantage=7.0)), name=name)
        for name in ("a:b", "c:d")
    ]
    with pytest.warns(UserWarning, match="group 'a:b', trajectory 0, step 0 .*ignored") as said:
        batch = rollouts_from_groups(groups, adv_norm="mean_only", use_precomputed_advantage=False)
    assert len(said) == 1
    assert lists(batch.advantages) == [[[0.5], [-0.5]]] * 2
    strictly([group(attempt(1.0, Step((5,), (10,))), attempt(0.0, Step((5,), (11,))))], use_precomputed_advantage=False)


def test_per_step_is_deprecated_and_broadcasts():
    groups = [group(attempt(1.0, Step((5,), (10,)), Step((6,), (11,))), attempt(0.0, Step((5,), (12,))))]
    with pytest.warns(DeprecationWarning, match="per_step"):
        batch = rollouts_from_groups(groups, stepwise_mode="per_step")
    assert lists(batch.advantages) == lists(strictly(groups).advantages)
    with pytest.raises(ValueError, match="stepwise_mode='sum'; use 'broadcast'"):
        rollouts_from_groups(groups, stepwise_mode="sum")


def test_logprobs_are_where_the_samples_came_from():
    batch = strictly(
        [
            group(
                attempt(1.0, Step((5,), (10, 11), logprobs=[-0.5, -1.0])),
                attempt(0.0, Step((5,), (12,))),
                attempt(0.0, Step((5,), (13,), logprobs=[-2.0])),
            )
        ],
        adv_norm="mean_only",
    )
    # A row knows them of all its completions or of none, so the one without has a row of its own.
    assert lists(batch.completions) == [[[10, 11], [13]], [[12]]]
    assert lists(batch.sampling_logps[:1]) == [[[-0.5, -1.0], [-2.0]]]
    assert batch.sampling_logps[1] is None
    torch.testing.assert_close(batch.advantages[1][0], torch.tensor([-1 / 3]))


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (Step((5,), (10, 11), logprobs=[-1.0]), "step 1 has 1 logprobs for 2 response tokens"),
        (Step((5,), (10,), logprobs=[-1.0, -1.0]), "step 1 has 2 logprobs for 1 response tokens"),
        (Step((5,), (10,), logprobs=[-math.inf]), "step 1 has logprobs that are not finite"),
        (Step((5,), ()), "step 1: response_ids"),
        (Step((), (10,)), "step 1: prompt_ids"),
        (Step((5,), (10.5,)), "step 1: response_ids"),
        (Step((-5,), (10,)), "step 1: prompt_ids"),
    ],
)
def test_a_malformed_step_is_refused_with_its_place(step, said):
    groups = [group(attempt(1.0, Step((5,), (9,))), attempt(0.0, Step((5,), (9,)), step), name="a:b")]
    with pytest.raises(ValueError, match=f"group 'a:b', trajectory 1, {said}"):
        rollouts_from_groups(groups)


@pytest.mark.parametrize("advantage", [None, 1.0])
@pytest.mark.parametrize("reward", [math.inf, 1e39, "1.0"])
def test_a_reward_that_is_no_number_is_refused_with_its_place(reward, advantage):
    broken = attempt(reward, Step((5,), (9,), advantage=advantage))
    with pytest.raises(ValueError, match="group 'task:solver', trajectory 1 has the reward"):
        rollouts_from_groups([group(attempt(1.0, Step((5,), (9,), advantage=advantage)), broken)])


@pytest.mark.parametrize("groups", [[], [group()], [group(attempt(1.0), attempt(0.0))]])
def test_groups_without_a_step_are_refused(groups):
    with pytest.raises(ValueError, match="no step"):
        rollouts_from_groups(groups)


def test_an_unknown_norm_is_refused_even_where_nothing_is_compared():
    with pytest.raises(ValueError, match="adv_norm"):
        rollouts_from_groups([group(attempt(None, Step((5,), (9,), advantage=1.0)))], adv_norm="mean")


TOKENS = st.lists(st.integers(0, 9), min_size=1, max_size=3)
STEPS = st.builds(
    lambda prompt, response, value, known: Step(
        prompt, response, [-1.0] * len(response) if known else None, [value + n for n in range(len(response))]
    ),
    st.sampled_from([(1,), (1, 2), (3,)]),
    TOKENS,
    st.integers(-9, 9),
    st.booleans(),
)
GROUPS = st.lists(
    st.builds(
        lambda name, attempts: TrajectoryGroup.named(f"{name}:solver", attempts),
        st.text("ab", min_size=1, max_size=2),
        st.lists(
            st.builds(Trajectory, st.lists(STEPS, min_size=1, max_size=3), st.floats(-2, 2)), min_size=2, max_size=4
        ),
    ),
    min_size=1,
    max_size=3,
)


@settings(deadline=None)
@given(GROUPS)
def test_every_step_becomes_one_completion_with_its_own_advantages(groups):
    batch = strictly(groups)
    made = sorted(
        (prompt.tolist(), ids.tolist(), values.tolist(), reward)
        for prompt, row, advantages, rewards in zip(
            batch.prompts, batch.completions, batch.advantages, batch.rewards, strict=True
        )
        for ids, values, reward in zip(row, advantages, rewards, strict=True)
    )
    given_ = sorted(
        (list(step.prompt_ids), list(step.response_ids), [float(x) for x in step.advantage], trajectory.reward)
        for each in groups
        for trajectory in each.trajectories
        for step in trajectory.steps
    )
    assert made == given_
    kinds = [
        {(tuple(step.prompt_ids), step.logprobs is None) for t in each.trajectories for step in t.steps}
        for each in groups
    ]
    assert len(batch) == sum(map(len, kinds))


@settings(deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(0, 3), st.floats(-2, 2)), min_size=2, max_size=4), max_size=3))
def test_from_rewards_every_token_of_a_trajectory_has_its_distance_from_the_mean_of_the_group(groups):
    made = [
        TrajectoryGroup.named(
            f"{g}:x",
            [
                Trajectory([Step((g, t, s), (1,) * (s + 1)) for s in range(steps)], reward)
                for t, (steps, reward) in enumerate(attempts)
            ],
        )
        for g, attempts in enumerate(groups)
    ]
    expected = {
        (g, t, s): [reward - sum(r for _, r in attempts) / len(attempts)] * (s + 1)
        for g, attempts in enumerate(groups)
        for t, (steps, reward) in enumerate(attempts)
        for s in range(steps)
    }
    if not expected:
        return
    batch = strictly(made, adv_norm="mean_only")
    found = {
        tuple(prompt.tolist()): values.tolist()
        for prompt, (values,) in zip(batch.prompts, batch.advantages, strict=True)
    }
    assert found.keys() == expected.keys()
    for step, values in expected.items():
        assert found[step] == pytest.approx(values, abs=1e-6)
