"""Changes of weights are noticed however they are made, and digests name contents."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from agiledpo.adapters import SharedBaseModel
from agiledpo.adapters.contents import WatchedTensors, content_digest

MATRIX = "model.layers.1.mlp.up_proj"


@pytest.fixture
def base(tiny_model):
    return SharedBaseModel.of(tiny_model())


@pytest.fixture
def named(base, lora):
    return base.add("reference", lora, trainable=False, seed=0)


def fill(base, name, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in base.parameters(name).values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))


WRITES = {
    "in place": lambda w: w.detach().mul_(1.5),
    "one element in place": lambda w: w.detach()[3, 5].add_(1.0),
    "through data": lambda w: w.data.mul_(1.5),
    "other data": lambda w: setattr(w, "data", w.data * 1.5),
    "not a number": lambda w: w.data.fill_(float("nan")),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("portable", [False, True])
def test_a_write_to_the_base_changes_its_name_once(base, named, write, portable):
    names = {base.content(None, portable=portable) for _ in range(3)}
    write(base.model.get_submodule(MATRIX).get_base_layer().weight)
    names |= {base.content(None, portable=portable) for _ in range(3)}
    assert len(names) == 2


def test_a_replaced_parameter_and_a_fused_optimizer_are_noticed():
    module = torch.nn.Linear(8, 8)
    watched = WatchedTensors(lambda: dict(module.named_parameters()), content_digest)
    names = [watched.content]
    module.weight = torch.nn.Parameter(module.weight.detach().clone() + 1)
    names.append(watched.content)
    optimizer = torch.optim.AdamW(module.parameters(), fused=True)
    module(torch.ones(1, 8)).sum().backward()
    writes = module.weight._version
    optimizer.step()
    assert module.weight._version == writes  # why counting writes does not do
    names.append(watched.content)
    assert len(set(names)) == 3
    assert watched.content == names[-1]


def test_a_portable_name_is_that_of_the_content(tiny_model, lora):
    one, other, different = (SharedBaseModel.of(tiny_model(seed=seed)) for seed in (0, 0, 1))
    names = [b.add("reference", lora, trainable=False, seed=3) for b in (one, other, different)]
    for b, name in zip((one, other, different), names, strict=True):
        fill(b, name)
    contents = [b.content(name, portable=True) for b, name in zip((one, other, different), names, strict=True)]
    assert contents[0] == contents[1] != contents[2]
    # Nor does it matter that adapters wrap the layers, or that a PeftModel was there first.
    plain = SharedBaseModel.of(tiny_model()).content(None, portable=True)
    wrapped = SharedBaseModel.of(get_peft_model(tiny_model(), lora)).content(None, portable=True)
    assert plain == wrapped == one.content(None, portable=True)
    half = SharedBaseModel.of(tiny_model(dtype=torch.bfloat16))
    assert half.content(None, portable=True) != plain
    scaled = SharedBaseModel.of(tiny_model(rope_parameters={"rope_type": "default", "rope_theta": 5.0}))
    assert scaled.content(None, portable=True) != plain


def test_the_scale_of_an_adapter_is_part_of_its_name(base):
    configs = [
        LoraConfig(r=4, lora_alpha=a, target_modules=["q_proj"], lora_dropout=d) for a, d in ((8, 0), (8, 0.5), (4, 0))
    ]
    names = [base.add("reference", config, trainable=False, seed=0) for config in configs]
    for name in names:
        fill(base, name)
    contents = [base.content(name, portable=False) for name in names]
    assert contents[0] == contents[1] != contents[2]


@pytest.mark.parametrize("embeddings", [False, True])
def test_a_fresh_adapter_is_named_like_the_bare_base_because_it_computes_the_same(base, embeddings):
    targets = ["q_proj", "down_proj", *(["embed_tokens"] if embeddings else [])]
    config = LoraConfig(r=3, lora_alpha=5, target_modules=targets)
    name = base.add("reference", config, trainable=False, seed=9)
    ids = torch.arange(1, 9)[None]
    logits = []
    for adapter in (None, name):
        with base.active(adapter) as model:
            logits.append(model(ids).logits)
    assert torch.equal(*logits)
    bare = base.content(None, portable=False)
    assert base.content(name, portable=False) == bare
    with torch.no_grad():
        next(p for key, p in base.parameters(name).items() if key.endswith("q_proj.lora_B.weight"))[0, 0] = 1e-6
    assert base.content(name, portable=False) != bare


def test_dora_is_never_taken_for_nothing(base):
    name = base.add("reference", LoraConfig(target_modules=["q_proj"], use_dora=True), trainable=False, seed=0)
    assert base.content(name, portable=False) != base.content(None, portable=False)


def test_mixing_interpolates_every_parameter(base, lora):
    source, target = (base.add(role, lora, trainable=False, seed=0) for role in ("actor", "reference"))
    for weight in (0.3, 1.0):
        fill(base, source, seed=1)
        fill(base, target, seed=2)
        old = {key: p.double() for key, p in base.parameters(target).items()}
        base.mix(source, target, weight)
        for key, p in base.parameters(source).items():
            expected = weight * p.double() + (1 - weight) * old[key]
            torch.testing.assert_close(base.parameters(target)[key].double(), expected, rtol=0, atol=1e-6)
    assert all(torch.equal(p, base.parameters(target)[key]) for key, p in base.parameters(source).items())
