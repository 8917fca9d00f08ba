"""What tells base models apart, and what does not."""

import warnings
from dataclasses import replace

import pytest
import torch

from agiledpo.adapters import SharedBaseModel
from agiledpo.algorithms import DPO
from agiledpo.checkpoint import CheckpointError
from agiledpo.checkpoint.identity import _kept_of, _packed, check_base, identity_of


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


@pytest.mark.parametrize("other", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_float16_is_compared_by_values(tiny_model, other, architecture):
    half, full = (
        identity(tiny_model(architecture, dtype=torch.float16)),
        identity(tiny_model(architecture, dtype=other)),
    )
    assert half.weights_sha256 != full.weights_sha256  # which is why
    compare(half, full)
    compare(full, half)
    compare(half, identity(tiny_model(architecture, dtype=torch.float16)))
    for wrong in (torch.float16, other):
        with pytest.raises(CheckpointError, match="differ in weights"):
            compare(half, identity(tiny_model(architecture, seed=1, dtype=wrong)))
    with pytest.raises(CheckpointError, match="names or shapes"):
        compare(half, identity(tiny_model(architecture, num_hidden_layers=1)))


def test_a_sampled_weight_that_is_off_by_more_than_rounding_is_found_in_float16(tiny_model):
    half, model = identity(tiny_model(dtype=torch.float16)), tiny_model()
    weight = model.model.layers[1].mlp.down_proj.weight
    with torch.no_grad():
        weight.reshape(-1)[0] *= 1 + 2**-8
    compare(half, identity(model))
    model = tiny_model()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.reshape(-1)[0] *= 1 + 2**-5
    with pytest.raises(CheckpointError, match="differ in weights"):
        compare(half, identity(model))


def test_what_is_too_large_or_too_small_for_float16_is_no_difference(tiny_model):
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight.reshape(-1)[0] = 1e6
        model.lm_head.weight.reshape(-1)[97 * 32 // 16] = 1e-9
    full = identity(model)
    compare(identity(model.half()), full)


def test_samples_stay_small_whatever_the_number_of_tensors():
    for count in (1, 20, 1000, 4096, 5000, 20000):
        chosen, each = _kept_of([str(number) for number in range(count)])
        text = _packed([torch.arange(float(each))] * len(chosen))
        assert len(text) <= 4 * -(-4096 * 4 // 3)
        assert len(text) >= min(count * 16, 2500) * 4  # and are not few


def test_without_samples_or_quantized_a_warning_says_that_nothing_was_compared(tiny_model):
    half, full = identity(tiny_model(dtype=torch.float16)), identity(tiny_model())
    for saved, live in ((replace(half, samples=""), full), (replace(full, dtype="uint8", layout_sha256="0"), full)):
        with pytest.warns(UserWarning, match=r"could not be compared; class and configuration are the same"):
            check_base(saved, live, "manifest.json")
    for samples in ("%", "AAA=", "AAA", 3):
        with pytest.raises(CheckpointError, match=r"manifest\.json: the base model's samples are not as agiledpo"):
            check_base(replace(half, samples=samples), full, "manifest.json")


def test_another_release_of_transformers_may_say_it_in_other_words(tiny_model):
    live = identity(tiny_model())
    with pytest.warns(UserWarning, match=r"Transformers 4\.0"):
        check_base(replace(live, transformers="4.0", config_sha256="0"), live, "manifest.json")


def test_it_is_computed_once(tiny_model, monkeypatch):
    base = SharedBaseModel.of(tiny_model())
    first = identity_of(base)
    monkeypatch.setattr(base, "base_state", lambda: pytest.fail("computed again"))
    assert identity_of(base) is first
