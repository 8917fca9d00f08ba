"""What YAML gives, as parameters want it."""

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Any, Literal

import pytest
import torch

from agiledpo.config.kinds import KindError, coerce, describe

_ALLOWED = [
    (5e-6, float, 5e-6),
    ("5e-6", float, 5e-6),  # which YAML 1.1 reads as text
    ("-1_000", int, -1000),
    (1, float, 1.0),
    (1e3, int, 1000),
    ("64", int | None, 64),
    (None, int | None, None),
    (True, bool, True),
    ("5e-6", str, "5e-6"),
    ("5e-6", str | float, "5e-6"),
    ("sigmoid", str | Sequence[str], "sigmoid"),
    (["sigmoid", "ipo"], str | Sequence[str], ["sigmoid", "ipo"]),
    (["1e-3", 2], Sequence[float], [1e-3, 2.0]),
    ("never", Literal["never", "epoch"] | int, "never"),
    (7, Literal["never", "epoch"] | int, 7),
    (True, bool | Literal["gaussian"], True),
    ("gaussian", bool | Literal["gaussian"], "gaussian"),
    ([0.8, 1.28], float | tuple[float, float], [0.8, 1.28]),
    ({"a": "1e2"}, Mapping[str, float], {"a": 100.0}),
    ("here", str | PathLike[str] | None, "here"),
    ("cpu", str | torch.device | None, "cpu"),
    ({"any": [1, None]}, dict[str, Any] | None, {"any": [1, None]}),
]
_REFUSED = [
    (True, int),
    (True, float),
    (1, bool),
    ("true", bool),
    (1.5, int),
    ("1e-6 ", int),
    ("five", float),
    (None, float),
    (3, str),
    ("sometimes", Literal["never", "epoch"]),
    (["a", 1], Sequence[str]),
    ("abc", Sequence[int]),
    ([1.0, 2.0, 3.0], tuple[float, float]),
    ({"a": "b"}, Mapping[str, float]),
    ([1], dict[str, Any]),
]


@pytest.mark.parametrize(("value", "hint", "expected"), _ALLOWED)
def test_a_value_becomes_what_its_parameter_wants(value: Any, hint: Any, expected: Any) -> None:
    found = coerce(value, hint)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(("value", "hint"), _REFUSED)
def test_nothing_is_guessed(value: Any, hint: Any) -> None:
    with pytest.raises(KindError):
        coerce(value, hint)


def test_what_is_allowed_is_said_in_words() -> None:
    assert describe(int | None) == "a whole number or null"
    assert describe(Literal["never", "epoch"] | int) == "one of never, epoch or a whole number"
    assert describe(str | Sequence[str]) == "text or a list, each text"
    assert describe(str | Callable[[], None] | None) == "text or null"
    assert describe(float | tuple[float, float]) == "a number or a list of 2: a number, a number"
