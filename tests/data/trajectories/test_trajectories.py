"""Strict pairs from groups of trajectories, and which path a group takes."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agiledpo.data.trajectories import (
    DPOObjective,
    Objective,
    ObjectiveConfig,
    Step,
    Trajectory,
    TrajectoryGroup,
    build_preference_pairs,
    pairs_to_dataset,
    pairs_to_rows,
    route_groups,
)


def attempt(reward, response=(10,), prompt=(1, 2), steps=1):
    return Trajectory([Step(prompt, response)] * steps, reward)


def group(*attempts, name="task:solver"):
    return TrajectoryGroup.named(name, attempts)


def skipped(metrics):
    prefix = "dpo/groups_skipped_"
    return {name.removeprefix(prefix): count for name, count in metrics.items() if name.startswith(prefix) and count}


def test_best_against_worst_with_the_metrics_of_rllm():
    groups = [
        group(attempt(0.25, [11]), attempt(1.0, [12]), attempt(0.0, [13])),
        group(attempt(0.5, [14]), attempt(0.75, [15]), name="sum:1:judge"),
    ]
    pairs, metrics = build_preference_pairs(groups, DPOObjective())
    first, second = pairs
    assert (first.group_id, first.task_id, first.role, first.reward_gap) == ("task:solver", "task", "solver", 1.0)
    assert (first.chosen, first.rejected) == (groups[0].trajectories[1], groups[0].trajectories[2])
    assert (second.task_id, second.role, second.reward_gap) == ("sum:1", "judge", 0.25)
    assert skipped(metrics) == {}
    assert metrics["dpo/groups_seen"] == metrics["dpo/pairs_built"] == 2
    assert metrics["dpo/reward_gap_mean"] == 0.625
    assert metrics["dpo/chosen_reward_mean"] == 0.875
    assert metrics["dpo/rejected_reward_mean"] == 0.25


@pytest.mark.parametrize(
    ("attempts", "cause"),
    [
        ([], "insufficient_size"),
        ([attempt(1.0)], "insufficient_size"),
        ([attempt(1.0, steps=2), attempt(0.0, [11])], "multistep"),
        ([attempt(1.0, steps=0), attempt(0.0, [11])], "multistep"),
        ([attempt(1.0), attempt(0.0, [11], prompt=(9, 9))], "prompt_mismatch"),
        # The odd one is neither best nor worst; its reward still is not comparable with theirs.
        ([attempt(1.0), attempt(0.5, prompt=(1,)), attempt(0.0, [11])], "prompt_mismatch"),
        ([attempt(1.0, prompt=()), attempt(0.0, [11], prompt=())], "empty_prompt"),
        ([attempt(1.0), attempt(1.0, [11])], "tie"),
        ([attempt(0.1 + 0.2), attempt(0.3, [11])], "tie"),
        ([attempt(1.0), attempt(0.95, [11])], "small_gap"),
        ([attempt(1.0, []), attempt(0.0)], "empty_completion"),
        ([attempt(1.0), attempt(0.0, [])], "empty_completion"),
        ([attempt(1.0), attempt(0.0)], "identical_completions"),
        ([attempt(1.0), attempt(0.0, []), attempt(1.0), attempt(0.0)], "identical_completions"),
    ],
)
def test_what_is_not_strictly_valid_is_counted(attempts, cause):
    pairs, metrics = build_preference_pairs([group(*attempts)], DPOObjective(min_reward_gap=0.1))
    assert pairs == []
    assert skipped(metrics) == {cause: 1}
    assert metrics["dpo/pairs_built"] == 0
    assert not any(name.endswith("_mean") for name in metrics)


def test_a_gap_forgives_rounding():
    assert 0.3 - 0.1 < 0.2
    pairs, _ = build_preference_pairs([group(attempt(0.3), attempt(0.1, [11]))], DPOObjective(min_reward_gap=0.2))
    assert len(pairs) == 1


def test_rewards_may_be_of_single_precision():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pairs, _ = build_preference_pairs(
            [group(attempt(np.float32(1.0)), attempt(np.float32(0.5), [11]))], DPOObjective()
        )
    assert pairs[0].reward_gap == 0.5


def test_of_equal_rewards_the_earliest_stands_for_all():
    attempts = [attempt(reward, [number]) for number, reward in enumerate((0.5, 1.0, 0.0, 1.0, 0.0))]
    (pair,), _ = build_preference_pairs([group(*attempts)], DPOObjective())
    assert (pair.chosen.steps[0].response_ids, pair.rejected.steps[0].response_ids) == ([1], [2])


@pytest.mark.parametrize(
    ("attempts", "chosen", "rejected"),
    [
        ([attempt(1.0, [5]), attempt(1.0, [6]), attempt(0.0, [5])], 1, 2),
        ([attempt(1.0, [5]), attempt(0.0, [5]), attempt(0.0, [6])], 0, 2),
        ([attempt(1.0, [5]), attempt(1.0, [6]), attempt(0.0, [5]), attempt(0.0, [6])], 0, 3),
        ([attempt(1.0, []), attempt(1.0, [6]), attempt(0.0, []), attempt(0.0, [5])], 1, 3),
    ],
)
def test_among_equal_rewards_the_first_valid_combination_is_taken(attempts, chosen, rejected):
    (pair,), metrics = build_preference_pairs([group(*attempts)], DPOObjective())
    assert (pair.chosen, pair.rejected) == (attempts[chosen], attempts[rejected])
    assert skipped(metrics) == {}


@pytest.mark.parametrize(
    ("reward", "state"), [(None, "has no reward"), (math.nan, "the reward nan"), (math.inf, "inf"), ("1.0", "'1.0'")]
)
def test_a_missing_reward_names_group_and_trajectory(reward, state):
    groups = [group(attempt(1.0), attempt(0.0, [11])), group(attempt(1.0), attempt(reward, [11]), name="a:b")]
    with pytest.raises(ValueError, match=rf"group 'a:b', trajectory 1 has .*{state.split()[-1]}"):
        build_preference_pairs(groups, DPOObjective())


GROUPS = st.lists(
    st.builds(
        lambda role, attempts: group(*attempts, name=f"t:{role}"),
        st.sampled_from(["solver", "judge"]),
        st.lists(
            st.builds(
                attempt,
                st.integers(0, 4).map(lambda quarters: quarters / 4),
                st.lists(st.integers(0, 1), max_size=2),
                st.sampled_from([(1,), (1,), (2,)]),
                st.sampled_from([1, 1, 1, 2]),
            ),
            max_size=4,
        ),
    ),
    max_size=12,
)


@given(
    groups=GROUPS,
    objective=st.sampled_from(Objective),
    roles=st.dictionaries(st.sampled_from(["solver", "judge"]), st.sampled_from(Objective)),
    gap=st.sampled_from([0.0, 0.5]),
)
def test_every_group_is_in_one_path_or_counted(groups, objective, roles, gap):
    config = ObjectiveConfig(objective=objective, roles=roles, dpo=DPOObjective(min_reward_gap=gap))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        routed = route_groups(groups, config)
    assert list(routed.rl) == [g for g in groups if roles.get(g.role, objective) == "rl"]
    others = [g for g in groups if roles.get(g.role, objective) == "dpo"]
    assert routed.metrics["objective/groups_rl"] == len(routed.rl)
    assert routed.metrics["objective/groups_dpo"] == len(others)
    assert len(others) == len(routed.preference_pairs) + sum(skipped(routed.metrics).values())
    for pair in routed.preference_pairs:
        chosen, rejected = pair.chosen.steps[0], pair.rejected.steps[0]
        assert len(pair.chosen.steps) == len(pair.rejected.steps) == 1
        assert chosen.prompt_ids == rejected.prompt_ids
        assert chosen.response_ids
        assert rejected.response_ids
        assert chosen.response_ids != rejected.response_ids
        assert pair.reward_gap == pair.chosen.reward - pair.rejected.reward > 0
        assert pair.reward_gap >= gap


def test_a_misspelt_role_is_warned_about():
    groups = [group(attempt(1.0), attempt(0.0, [11])), group(attempt(1.0), attempt(0.0), name="t:judge")]
    with pytest.warns(UserWarning, match="no group has") as caught:
        routed = route_groups(groups, ObjectiveConfig(roles={"solverr": "dpo"}))
    assert [str(warning.message) for warning in caught] == [
        "no group has the role 'solverr' (nearest: 'solver'); groups of 'judge', 'solver' take the path of "
        "objective='rl'. Check the names in roles."
    ]
    assert caught[0].filename == __file__
    assert len(routed.rl) == 2


@pytest.mark.parametrize("roles", [{"solver": "dpo"}, {"solver": "dpo", "judge": "dpo"}])
def test_a_batch_without_a_role_is_nothing_to_warn_about(roles):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert route_groups(iter([group(attempt(1.0), attempt(0.0, [11]))]), ObjectiveConfig(roles=roles)).rl == []
        route_groups([], ObjectiveConfig(roles=roles))


def test_without_dpo_no_reward_is_read():
    routed = route_groups([group(attempt(None), attempt(None))], ObjectiveConfig())
    assert routed.metrics == {"objective/groups_rl": 1, "objective/groups_dpo": 0}


@pytest.mark.parametrize(
    ("settings", "first", "second", "way_out"),
    [
        (
            {"use_precomputed_advantage": True},
            "objective='dpo'",
            "use_precomputed_advantage=True",
            "use_precomputed_advantage=False",
        ),
        ({"asynchronous": True}, "objective='dpo'", "asynchronous=True", "asynchronous=False"),
        ({"rollouts_per_prompt": 1}, "objective='dpo'", "rollouts_per_prompt=1", "rollouts_per_prompt to 2"),
    ],
)
def test_what_does_not_go_together_names_both_settings_and_the_way_out(settings, first, second, way_out):
    assert ObjectiveConfig(objective="rl", **settings).objective is Objective.RL
    with pytest.raises(ValueError, match=rf"^{first} does not go with {second}.*{way_out}"):
        ObjectiveConfig(objective="dpo", **settings)
    with pytest.raises(ValueError, match=rf"^roles\['judge'\]='dpo' does not go with {second}.*{way_out}"):
        ObjectiveConfig(objective="rl", roles={"judge": "dpo"}, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "ppo"}, "objective must be 'rl' or 'dpo', got 'ppo'"),
        ({"roles": {"judge": "sft"}}, r"roles\['judge'\] must be 'rl' or 'dpo', got 'sft'"),
        ({"rollouts_per_prompt": 0}, "rollouts_per_prompt must be at least 1, got 0"),
        ({"dpo": {"beta": 0.0}}, "beta must be a finite number larger than 0, got 0.0"),
        ({"dpo": {"beta": math.nan}}, "beta must be a finite number larger than 0, got nan"),
        ({"dpo": {"min_reward_gap": -0.1}}, "min_reward_gap must be a finite number, at least 0, got -0.1"),
        ({"dpo": {"pairing_strategy": "all"}}, "pairing_strategy must be 'best_worst', got 'all'"),
        ({"dpo": {"drop_ties": False}}, "drop_ties=False with min_reward_gap=0 would call"),
        ({"dpo": {"gap": 1}}, "unknown setting dpo.gap; the settings are beta, pairing_strategy"),
        ({"dpo": 0.1}, "dpo must be a mapping of beta"),
        ({"objectiv": "dpo"}, "unknown setting objectiv; the settings are objective"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        ObjectiveConfig.from_dict(settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dpo": {"beta": "0.1"}}, "beta must be a number, got '0.1'"),
        ({"dpo": {"beta": True}}, "beta must be a number, got True"),
        ({"dpo": {"min_reward_gap": "0.2"}}, "min_reward_gap must be a number, got '0.2'"),
        ({"dpo": {"drop_ties": "no"}}, "drop_ties must be True or False, got 'no'"),
        ({"rollouts_per_prompt": "4"}, "rollouts_per_prompt must be an integer or None, got '4'"),
        ({"rollouts_per_prompt": True}, "rollouts_per_prompt must be an integer or None, got True"),
        ({"asynchronous": "false"}, "asynchronous must be True or False, got 'false'"),
        ({"use_precomputed_advantage": None}, "use_precomputed_advantage must be True or False, got None"),
        ({"roles": None}, "roles must be a mapping from roles to 'rl' or 'dpo', got None"),
    ],
)
def test_types_of_settings_are_checked(settings, message):
    with pytest.raises(TypeError, match=f"^{message}"):
        ObjectiveConfig.from_dict(settings)
    with pytest.raises(TypeError, match=r"^dpo must be a DPOObjective, got 0\.1"):
        ObjectiveConfig(dpo=0.1)


def test_settings_from_plain_data():
    config = ObjectiveConfig.from_dict({"objective": "dpo", "dpo": {"min_reward_gap": 0.5, "drop_ties": False}})
    assert config == ObjectiveConfig(objective=Objective.DPO, dpo=DPOObjective(min_reward_gap=0.5, drop_ties=False))
    _, metrics = build_preference_pairs([group(attempt(1.0), attempt(1.0, [11]))], config.dpo)
    assert skipped(metrics) == {"tie": 1}


@pytest.mark.parametrize("name", ["task", "task:", ":solver"])
def test_a_group_name_without_task_and_role_is_refused(name):
    with pytest.raises(ValueError, match="group_id must be 'task:role'"):
        group(name=name)


def test_pairs_as_rows_and_as_a_dataset():
    pairs, _ = build_preference_pairs([group(attempt(1.0, (3, 4)), attempt(0.5, (5,)))], DPOObjective())
    row = {
        "prompt_ids": [1, 2],
        "chosen_ids": [3, 4],
        "rejected_ids": [5],
        "group_id": "task:solver",
        "task_id": "task",
        "role": "solver",
        "reward_gap": 0.5,
    }
    assert pairs_to_rows(pairs) == [row]
    assert pairs_to_dataset(pairs).to_list() == [row]
    assert pairs_to_dataset([]).features == pairs_to_dataset(pairs).features
