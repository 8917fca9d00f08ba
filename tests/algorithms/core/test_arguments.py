"""Constructor arguments as plain data, and back."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agiledpo.algorithms import DPO
from agiledpo.algorithms.core.arguments import constructor_arguments, plain
from agiledpo.algorithms.core.domains import Choice, LogUniform, RLParameter
from agiledpo.algorithms.core.registry import HyperparameterConfig

numbers = st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | numbers | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def written_and_read(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)


@given(values)
def test_plain_values_come_back_as_they_were(value):
    assert written_and_read(plain(value)) == value


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float64(0.1), 0.1),
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (Path("a") / "b", "a/b"),
        ((np.float64(1.0), [np.int32(2)]), (1.0, [2])),
    ],
)
def test_numpys_numbers_and_paths_become_pythons(value, expected):
    found = written_and_read(plain(value))
    assert found == expected
    assert type(found) is type(expected)


def test_objects_are_refused():
    with pytest.raises(TypeError, match="device cannot be saved as plain data"):
        plain(torch.device("cpu"))


@pytest.mark.parametrize(
    "domain",
    [
        RLParameter(min=0.01, max=1.0, shrink_factor=0.5, grow_factor=3.0),
        RLParameter(min=1, max=8, dtype=int),
        LogUniform(min=np.float64(0.01), max=1.0),
        Choice("sigmoid", ("hinge", "ipo")),
        Choice(None, 0.5),
    ],
)
def test_domains_come_back_equal(tiny_model, lora, domain):
    agent = DPO(actor_network=tiny_model(), lora_config=lora)
    agent.hp_config = HyperparameterConfig(beta=domain)
    saved = written_and_read(agent.plain_arguments())
    assert constructor_arguments(DPO, saved)["hp_config"] == agent.hp_config


def test_what_is_the_machines_is_not_carried(tiny_model, lora, tmp_path):
    agent = DPO(actor_network=tiny_model(), lora_config=lora, reference_cache=tmp_path, device="cpu")
    saved = agent.plain_arguments()
    assert not saved.keys() & {"device", "accelerator", "lora_config", "reference_cache", "actor_network", "clone"}
    assert {"lr", "beta", "seed", "index", "micro_batch_size_per_gpu", "prefix_sharing"} <= saved.keys()


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({"device": "cuda:7"}, "no arguments device"),
        ({"actor_network": None, "lr": 1.0}, "no arguments actor_network"),
        ({"self": 1}, "no arguments self"),
        ([1], "no arguments list"),
        ({"hp_config": {"lr": {"min": 1}}}, "hp_config cannot be read"),
        ({"hp_config": {"lr": {"kind": "RLParameter", "min": 1, "max": 2, "dtype": "str"}}}, "hp_config cannot be"),
        ({"hp_config": 5}, "hp_config cannot be read"),
    ],
)
def test_what_the_constructor_does_not_take_is_refused(saved, message):
    with pytest.raises(ValueError, match=message):
        constructor_arguments(DPO, saved)
