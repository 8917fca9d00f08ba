"""DPO.load: an agent out of nothing but files."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import agiledpo
from agiledpo.algorithms import DPO
from agiledpo.algorithms.core.domains import Choice, Domain, LogUniform, RLParameter
from agiledpo.algorithms.core.registry import HyperparameterConfig
from agiledpo.checkpoint import CheckpointError
from agiledpo.checkpoint.stored_base import describe_base, make_base
from agiledpo.scoring import PreferenceBatch
from tests.checkpoint.conftest import everything, logits, same

HP = HyperparameterConfig(
    lr=RLParameter(min=1e-6, max=1e-2, shrink_factor=0.7, grow_factor=1.4),
    batch_size=RLParameter(min=1, max=8, dtype=int),
    beta=LogUniform(min=0.01, max=1.0),
    loss_type=Choice("sigmoid", ("hinge", "ipo")),
    ld_alpha=Choice(None, 0.5),
)

_SCRIPT = """
import sys, torch
from agiledpo.algorithms import DPO
agent = DPO.load(sys.argv[1])
with torch.no_grad():
    said = {role: agent.base.peft(torch.arange(1, 9)[None]).logits for role in ("actor", "reference")
            if agent.use_adapter(role) is None}
torch.save({"logits": said, "adapters": agent.adapters.state_dict(), "optimizer": agent.optimizer.state_dict(),
            "dtype": str(agent.base.model.dtype), "hp": repr(agent.hp_config), "index": agent.index}, sys.argv[2])
"""


def in_a_fresh_process(checkpoint: Path, out: Path) -> dict:
    environment = {"PYTHONPATH": str(Path(agiledpo.__file__).parent.parent), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, str(checkpoint), str(out)],
        env={**__import__("os").environ, **environment},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return torch.load(out, weights_only=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_by_the_name_of_the_base_in_a_fresh_process(make_trained, tiny_model, tmp_path, dtype):
    tiny_model(dtype=dtype).save_pretrained(tmp_path / "base")
    writer = make_trained(model_name=str(tmp_path / "base"), model_config={"dtype": dtype}, hp_config=HP)
    writer.save_checkpoint(tmp_path / "c")
    found = in_a_fresh_process(tmp_path / "c", tmp_path / "out.pt")
    assert same(found["logits"], {role: logits(writer, role) for role in ("actor", "reference")})
    assert same(found["adapters"], everything(writer)["adapters"])
    assert same(found["optimizer"], everything(writer)["optimizer"])
    assert (found["dtype"], found["hp"], found["index"]) == (str(dtype), repr(HP), 3)


def test_without_a_base_anywhere_in_a_fresh_process(make_trained, tmp_path):
    writer = make_trained(hp_config=HP)
    writer.save_checkpoint(tmp_path / "c", lora_only=False)
    found = in_a_fresh_process(tmp_path / "c", tmp_path / "out.pt")
    assert same(found["logits"], {role: logits(writer, role) for role in ("actor", "reference")})
    assert same(found["optimizer"], everything(writer)["optimizer"])


def test_a_stored_base_generates_as_it_did(make_trained, tmp_path):
    writer = make_trained()
    model = writer.base.model
    model.generation_config.update(temperature=0.25, top_k=7, do_sample=True, max_new_tokens=5)
    made = make_base(describe_base(writer.base), tmp_path, "float32")
    assert made.generation_config.to_dict() == model.generation_config.to_dict()
    assert (made.generation_config.temperature, made.generation_config.top_k) == (0.25, 7)
    assert same(dict(made.state_dict()), dict(writer.base.base_state()))
    writer.save_checkpoint(tmp_path / "c", lora_only=False)
    loaded = DPO.load(tmp_path / "c").base.model.generation_config
    assert (loaded.temperature, loaded.top_k, loaded.max_new_tokens) == (0.25, 7, 5)
    before = {key: value for key, value in describe_base(writer.base).items() if key != "generation_config"}
    assert make_base(before, tmp_path, "float32").generation_config.top_k != 7  # as it was written once
    with pytest.raises(CheckpointError, match="the base model cannot be made from what was saved"):
        make_base({**before, "generation_config": "["}, tmp_path / "attributes.pt", "float32")


def test_on_a_base_that_is_given(make_trained, make_experiences, tiny_model, tmp_path):
    writer = make_trained(hp_config=HP, weight_decay=0.01, reference_cache=tmp_path / "cache")
    writer.loss_type = ("hinge", "ipo")
    writer.loss_weights = (1.0, 0.5)
    writer.beta = 3.0  # outside the range of hp_config, by hand
    writer.save_checkpoint(tmp_path / "c")
    agent = DPO.load(tmp_path / "c", "cpu", actor_network=tiny_model())
    assert type(agent) is DPO
    assert agent.hp_config == HP
    assert agent.reference_cache == "memory"  # a directory of the machine that wrote it is nobody else's
    mine, theirs = everything(agent), everything(writer)
    ignored = {"adapter_names", "construction", "lora_config"}  # "all-linear" has become the names of modules
    assert same({n: mine[n] for n in mine.keys() - ignored}, {n: theirs[n] for n in theirs.keys() - ignored})
    pairs = make_experiences([(3, 4, 2), (5, 2, 3)], seed=99)
    writer.learn(pairs)
    agent.learn(pairs)
    assert same(agent.adapters.state_dict(), writer.adapters.state_dict())


def test_without_the_optimizer_it_is_fresh(make_trained, tiny_model, tmp_path):
    writer = make_trained()
    writer.save_checkpoint(tmp_path / "c", save_optimizer=False)
    agent = DPO.load(tmp_path / "c", actor_network=tiny_model())
    assert agent.optimizer.state_dict()["state"] == {}
    assert agent.optimizer.param_groups[0]["lr"] == writer.lr
    assert same(agent.adapters.state_dict(), writer.adapters.state_dict())


def test_other_precision_on_request(make_trained, tiny_model, tmp_path):
    tiny_model().save_pretrained(tmp_path / "base")
    make_trained(model_name=str(tmp_path / "base")).save_checkpoint(tmp_path / "c")
    agent = DPO.load(tmp_path / "c", model_config={"dtype": torch.bfloat16})
    assert agent.base.model.dtype == torch.bfloat16


class OtherAlgorithm(DPO):
    """An algorithm of another name."""


class Odd(Domain):
    """A domain of the user's own."""

    def check(self, name, value, kind):
        """Anything goes."""

    def ends(self, kind):
        """One value."""
        return (1.0,)

    def mutate(self, value, rng, kind):
        """Stay."""
        return value


def test_what_cannot_be_loaded_is_refused_with_the_way_out(make_trained, tiny_model, tmp_path):
    make_trained().save_checkpoint(tmp_path / "c")
    with pytest.raises(CheckpointError, match=r"manifest\.json.*without a name.*actor_network"):
        DPO.load(tmp_path / "c")
    with pytest.raises(CheckpointError, match=r"is a DPO, not a OtherAlgorithm.*load_checkpoint"):
        OtherAlgorithm.load(tmp_path / "c", actor_network=tiny_model())
    with pytest.raises(CheckpointError, match="differ in weights"):
        DPO.load(tmp_path / "c", actor_network=tiny_model(seed=3))
    with pytest.raises(CheckpointError, match=r"manifest\.json is missing"):
        DPO.load(tmp_path / "c" / "actor", actor_network=tiny_model())
    tiny_model().save_pretrained(tmp_path / "base")
    make_trained(model_name=str(tmp_path / "base")).save_checkpoint(tmp_path / "c")
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(CheckpointError, match=r"base model .*base' cannot be loaded.*actor_network"):
        DPO.load(tmp_path / "c")
    assert DPO.load(tmp_path / "c", actor_network=tiny_model()).index == 3


def test_a_domain_of_ones_own_is_left_out_with_a_warning(make_trained, tiny_model, tmp_path):
    make_trained(hp_config=HyperparameterConfig(beta=Odd())).save_checkpoint(tmp_path / "c")
    with pytest.warns(UserWarning, match="beta a class of your own"):
        agent = DPO.load(tmp_path / "c", actor_network=tiny_model())
    assert agent.hp_config is None


def test_a_loaded_agent_scores_as_the_one_that_was_saved(make_trained, make_experiences, tiny_model, tmp_path):
    writer = make_trained()
    writer.save_checkpoint(tmp_path / "c")
    agent = DPO.load(tmp_path / "c", actor_network=tiny_model())
    batch = PreferenceBatch.from_experiences(make_experiences([(3, 4, 2), (5, 2, 3)]))
    assert writer.learn(batch, training=False) == agent.learn(batch, training=False)
