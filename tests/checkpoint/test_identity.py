"""What tells base models apart, and what does not."""

import warnings

import pytest
import torch

from agiledpo.adapters import SharedBaseModel
from agiledpo.algorithms import DPO
from agiledpo.checkpoint import CheckpointError
from agiledpo.checkpoint.identity import check_base, identity_of


def identity(model):
    base = SharedBaseModel.of(model)
    return identity_of(base)


def compare(one, other):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_base(one, other, "manifest.json")


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2"])
def test_the_same_model_in_two_precisions_is_one(tiny_model, tmp_path, architecture):
    one, other = identity(tiny_model(architecture)), identity(tiny_model(architecture, dtype=torch.bfloat16))
    assert (one.dtype, other.dtype) == ("float32", "bfloat16")
    assert one.weights_sha256 == other.weights_sha256
    compare(one, other)
    compare(other, one)
    tiny_model(architecture).save_pretrained(tmp_path / "m")
    compare(one, identity(type(tiny_model(architecture)).from_pretrained(tmp_path / "m", attn_implementation="eager")))


def test_adapters_and_labels_do_not_count(tiny_model, lora):
    plain = identity(tiny_model())
    model = tiny_model()
    agent = DPO(actor_network=model, lora_config=lora)
    model.config.pad_token_id = 5
    model.config.use_cache = False
    compare(plain, identity_of(agent.base))
    assert identity_of(agent.base).config_sha256 == plain.config_sha256


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "weights"),
        ({"rms_norm_eps": 1e-3}, "configuration"),
        ({"vocab_size": 98}, "names or shapes"),
        ({"architecture": "mistral"}, "class"),
    ],
)
def test_another_model_is_found_out(tiny_model, change, message):
    with pytest.raises(CheckpointError, match=rf"manifest\.json.*differ in.*{message}"):
        compare(identity(tiny_model()), identity(tiny_model(**change)))


def test_every_weight_counts_and_the_identity_follows(tiny_model):
    base = SharedBaseModel.of(tiny_model())
    seen = {identity_of(base).weights_sha256}
    with torch.no_grad():
        for tensor in base.base_state().values():
            tensor.reshape(-1)[0] += 1
            seen.add(identity_of(base).weights_sha256)
    assert len(seen) == 1 + len(base.base_state())


def test_a_difference_that_bfloat16_does_not_see_is_none(tiny_model):
    model = tiny_model()
    before = identity(model).weights_sha256
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    assert identity(model).weights_sha256 == before


def test_float16_cannot_be_compared_and_a_warning_says_so(tiny_model):
    half, full = identity(tiny_model(dtype=torch.float16)), identity(tiny_model())
    with pytest.warns(UserWarning, match="float16 and is float32.*could not be compared"):
        check_base(half, full, "manifest.json")
    compare(half, identity(tiny_model(dtype=torch.float16)))
    with pytest.raises(CheckpointError, match="differ in weights"):
        compare(half, identity(tiny_model(seed=1, dtype=torch.float16)))
    with pytest.raises(CheckpointError, match="names or shapes"):
        compare(half, identity(tiny_model(num_hidden_layers=1)))


def test_another_release_of_transformers_may_say_it_in_other_words(tiny_model):
    from dataclasses import replace

    live = identity(tiny_model())
    with pytest.warns(UserWarning, match=r"Transformers 4\.0"):
        check_base(replace(live, transformers="4.0", config_sha256="0"), live, "manifest.json")


def test_it_is_computed_once(tiny_model, monkeypatch):
    base = SharedBaseModel.of(tiny_model())
    first = identity_of(base)
    monkeypatch.setattr(base, "base_state", lambda: pytest.fail("computed again"))
    assert identity_of(base) is first
