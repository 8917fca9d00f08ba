"""The embedded rule as a reward."""

import pytest

from agiledpo.embedded.reward import short_answer


@pytest.mark.parametrize(
    ("answer", "reward"),
    [
        ("Ice floats because it is less dense than the water.", 1.0),
        ("Ice floats because it is less dense than the water", 0.75),  # it does not end
        ("Sure! Ice floats because it is less dense than water", 0.5),  # nor begin
        ("- Ice floats\n- It is less dense than water.", 0.75),  # a list
        ("Ice floats.", 0.75),  # too short
        ("Bread rises because yeast makes gas in the dough.", 0.0),  # of something else
    ],
)
def test_a_reward_is_the_share_of_what_is_right(answer: str, reward: float) -> None:
    assert short_answer(answer, ["ice", "float"], "Why does ice float on water?") == reward
