"""Which groups bring advantages of their own."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agiledpo.data.trajectories import Step, Trajectory, TrajectoryGroup, own_advantages

NUMBERS = st.floats(-1e6, 1e6, width=32)


def group(*trajectories):
    """A group whose steps have the given numbers of response tokens and advantages."""
    return TrajectoryGroup.named(
        "task:solver",
        [Trajectory([Step((1,), range(count), advantage=value) for count, value in steps]) for steps in trajectories],
    )


def test_a_number_is_that_of_every_token_and_a_list_has_one_for_each():
    own = own_advantages(group([(3, 0.5), (2, [1.0, -2.0])], [(1, np.float32(0.25))], [(2, torch.tensor([3.0, 4.0]))]))
    assert [[values.tolist() for values in steps] for steps in own.steps] == [
        [[0.5, 0.5, 0.5], [1.0, -2.0]],
        [[0.25]],
        [[3.0, 4.0]],
    ]
    assert all(values.dtype == np.float32 for steps in own.steps for values in steps)
    assert own.problems == []


@pytest.mark.parametrize("count", [1, 4])
@given(value=NUMBERS)
def test_a_number_equals_the_constant_list(count, value):
    (number,), (listed,) = own_advantages(group([(count, value)], [(count, [value] * count)])).steps
    np.testing.assert_array_equal(number, listed)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "has no advantage"),
        ([1.0, 2.0], "has 2 advantages for 3 response tokens"),
        ([1.0, 2.0, 3.0, 4.0], "has 4 advantages for 3 response tokens"),
        ([], "has 0 advantages for 3 response tokens"),
        (math.nan, "has the advantage nan"),
        (-math.inf, "has the advantage -inf"),
        ([0.0, math.inf, 0.0], "has the advantage inf"),
        (1e39, "no finite number in single precision"),
        ("0.5", "no number and no list of numbers"),
        (True, "no number and no list of numbers"),
        ([0.0, None, 0.0], "no number and no list of numbers"),
        ([[1.0], [1.0], [1.0]], "no number and no list of numbers"),
        ([1.0, [2.0], 3.0], "no number and no list of numbers"),
    ],
)
def test_what_is_not_valid_is_named_with_its_place(value, said):
    own = own_advantages(group([(1, 0.5)], [(2, 0.5), (3, value)]))
    assert own.steps is None
    (problem,) = own.problems
    assert problem.startswith("trajectory 1, step 1 ")
    assert said in problem


def test_none_at_all_is_no_problem():
    own = own_advantages(group([(1, None)], [(2, None), (3, None)]))
    assert (own.steps, own.problems) == (None, [])


def test_every_step_that_lacks_one_is_named():
    own = own_advantages(group([(1, None), (1, 1.0)], [(2, None)]))
    assert own.problems == ["trajectory 0, step 0 has no advantage", "trajectory 1, step 0 has no advantage"]


STEPS = st.integers(1, 4).flatmap(
    lambda count: st.tuples(
        st.just(count),
        st.one_of(st.none(), NUMBERS, st.just(math.nan), st.lists(NUMBERS, min_size=0, max_size=5)),
    )
)


@given(st.lists(st.lists(STEPS, max_size=3), max_size=3))
def test_all_or_nothing(trajectories):
    def valid(count, value):
        return len(value) == count if isinstance(value, list) else value is not None and math.isfinite(value)

    steps = [step for trajectory in trajectories for step in trajectory]
    own = own_advantages(group(*trajectories))
    if all(valid(*step) for step in steps):
        assert own.problems == []
        expected = [[value if isinstance(value, list) else [value] * count for count, value in t] for t in trajectories]
        assert [[values.tolist() for values in steps] for steps in own.steps] == expected
    else:
        assert own.steps is None
        none = all(value is None for _, value in steps)
        assert len(own.problems) == (0 if none else sum(not valid(*step) for step in steps))
