"""What an agent lets evolution change, checked when the agent is made."""

import math
from collections import Counter
from itertools import product

import numpy as np
import pytest

from agiledpo.algorithms.core.registry import (
    Choice,
    HyperparameterConfig,
    LogUniform,
    RLParameter,
    make_default_hp_config,
)

KINDS = {"lr": float, "batch_size": int, "loss_type": tuple}


def test_a_config_takes_domains_only_and_names_them():
    for wrong in (0.1, (0.1, 1.0), RLParameter):
        with pytest.raises(TypeError, match=r"lr=.* is not an RLParameter, LogUniform or Choice.*lr=Choice\(\.\.\.\)"):
            HyperparameterConfig(lr=wrong)
    config = HyperparameterConfig(lr=LogUniform(1e-6, 1e-3), loss_type=Choice("sigmoid", "ipo"))
    assert list(config) == ["lr", "loss_type"]
    assert config["lr"] == LogUniform(1e-6, 1e-3)
    assert (
        repr(config) == "HyperparameterConfig(lr=LogUniform(min=1e-06, max=0.001), loss_type=Choice('sigmoid', 'ipo'))"
    )
    assert not HyperparameterConfig()


def test_each_name_is_drawn_equally_often():
    config = HyperparameterConfig(a=RLParameter(1, 2), b=LogUniform(1, 2), c=Choice(1, 2))
    rng = np.random.default_rng(0)
    counts = Counter(config.sample(rng) for _ in range(3000))
    assert counts.keys() == {"a", "b", "c"}
    assert all(abs(count - 1000) < 4 * math.sqrt(3000 * 2 / 9) for count in counts.values())


def test_corners_are_singles_then_pairs_then_all_together():
    config = HyperparameterConfig(
        lr=LogUniform(1e-6, 1), batch_size=RLParameter(4, 16), loss_type=Choice("sigmoid", "ipo")
    )
    ends = {"lr": (1e-6, 1.0), "batch_size": (4, 5, 16), "loss_type": (("sigmoid",), ("ipo",))}
    corners = list(config.corners(KINDS))
    assert [len(corner) for corner in corners] == [1] * 7 + [2] * 16 + [3] * 12
    assert {tuple(corner.values()) for corner in corners[-12:]} == set(product(*ends.values()))
    assert {type(corner["batch_size"]) for corner in corners if "batch_size" in corner} == {int}
    assert list(HyperparameterConfig(batch_size=RLParameter(4, 5)).corners(KINDS)) == [
        {"batch_size": 4},
        {"batch_size": 5},
    ]


def test_corners_of_many_hyperparameters_stop_at_pairs():
    ranges = {f"x{i}": RLParameter(0.0, 1.0) for i in range(13)}
    kinds = dict.fromkeys(ranges, float)
    assert len(list(HyperparameterConfig(**ranges).corners(kinds))) == 13 * 2 + 13 * 12 // 2 * 4
    del ranges["x12"]
    assert len(list(HyperparameterConfig(**ranges).corners(kinds))) == 12 * 2 + 12 * 11 // 2 * 4 + 4096


def test_the_default_ranges_are_those_of_agilerl():
    config = make_default_hp_config(lr=1e-4, batch_size=16, update_epochs=1)
    assert dict(config) == {
        "lr": RLParameter(min=1e-5, max=1e-3),
        "batch_size": RLParameter(min=4, max=64, shrink_factor=0.75, grow_factor=1.5, dtype=int),
        "update_epochs": RLParameter(min=1, max=4, shrink_factor=0.75, grow_factor=1.5, dtype=int),
    }
    with pytest.raises(ValueError, match="nll_alpha=0"):
        make_default_hp_config(nll_alpha=0.0)


# Against a real agent -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "arguments", "message"),
    [
        ({"nll_alpha": RLParameter(0.0, 1.0)}, {"nll_alpha": 0.0}, r"nll_alpha=0\.0 would stay 0 for ever"),
        ({"loss_type": Choice("ipo", "hinge")}, {}, r"loss_type=\('sigmoid',\) is not among the options"),
        ({"loss_type": Choice("sigmoid", "ipoo")}, {}, r"reach loss_type=\('ipoo',\), which is refused.*'ipo'"),
        ({"lr": RLParameter(-1.0, 1.0)}, {}, r"reach lr=-1\.0, which is refused: lr=-1\.0 must be greater than 0"),
        ({"lr": Choice(None, 1e-3)}, {}, "reach lr=None, which is refused: lr=None must be a finite number"),
        ({"max_grad_norm": RLParameter(0.0, 1.0)}, {}, r"reach max_grad_norm=0\.0, which is refused"),
        ({"beta": RLParameter(0.0, 1.0)}, {}, r"reach beta=0\.0, which is refused"),
        # Each alone is fine, and the message names these two and not the third.
        (
            {"lr": LogUniform(1e-4, 1e-2), "loss_type": Choice("robust", "ipo"), "label_smoothing": Choice(0.0, 0.1)},
            {"loss_type": "robust"},
            r"reach loss_type=\('ipo',\), label_smoothing=0\.1, which is refused",
        ),
    ],
)
def test_what_evolution_must_not_reach_is_refused_when_the_agent_is_made(make_agent, config, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_agent(hp_config=HyperparameterConfig(**config), **arguments)


def test_trying_the_corners_leaves_the_agent_as_it_was(make_agent):
    config = HyperparameterConfig(
        lr=RLParameter(1e-4, 1e-2),
        batch_size=LogUniform(1, 16),
        loss_type=Choice("sigmoid", "ipo", ("sigmoid", "hinge")),
        ld_alpha=Choice(None, 0.5),
        use_weighting=Choice(False, True),
    )
    plain = make_agent().hyperparameters
    agent = make_agent(hp_config=config)
    assert agent.hyperparameters == plain
    assert agent.hp_config is config


def test_a_multiple_of_the_micro_batch_can_be_chosen(make_agent):
    agent = make_agent(micro_batch_size_per_gpu=3, hp_config=HyperparameterConfig(batch_size=Choice(3, 6, 12)))
    assert agent.batch_size == 6


def test_a_value_set_by_hand_outside_its_range_does_not_stop_cloning(make_agent):
    agent = make_agent(hp_config=HyperparameterConfig(lr=RLParameter(1e-4, 1e-2)))
    agent.lr = 1.0
    assert agent.clone(1).lr == 1.0
