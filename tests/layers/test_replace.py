"""Replaced layers: only inside the context, only where they give the same, with a float32 stream where it can be."""

import pytest
import torch
from torch import nn

from agiledpo.layers import FastLayers
from agiledpo.layers.replace import can_stream_float32
from agiledpo.scoring import CausalLM


def forwards(model):
    return {name: vars(module).get("forward") for name, module in model.named_modules()}


def test_forward_passes_are_replaced_and_put_back_also_on_errors(lora_model):
    model = lora_model().base_model.model
    own = lambda x: x  # noqa: E731 - stands for a forward that another library has put there
    model.model.norm.forward = own
    before = forwards(model)
    with FastLayers(model).installed():
        # Per layer 7 LoRA layers, 2 norms and 1 block; the last norm keeps `own`.
        assert sum(now is not before[name] for name, now in forwards(model).items()) == 2 * (7 + 2 + 1)
    assert forwards(model) == before
    with pytest.raises(RuntimeError, match="on purpose"), FastLayers(model).installed():
        raise RuntimeError("on purpose")
    assert forwards(model) == before


def test_a_layer_that_computes_something_else_keeps_its_forward(lora_model):
    model = lora_model().base_model.model

    class LlamaRMSNorm(nn.Module):  # another library's class of the same name
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(32), requires_grad=False)
            self.variance_epsilon = 1e-6

        def forward(self, x):
            return torch.tanh(x)

    model.model.norm = LlamaRMSNorm()
    with FastLayers(model).installed():
        assert "forward" not in vars(model.model.norm)
        assert "forward" in vars(model.model.layers[0].input_layernorm)


def test_only_low_precision_models_of_known_norms_stream_in_float32(tiny_model):
    assert can_stream_float32(tiny_model("llama", dtype=torch.bfloat16).requires_grad_(False))
    assert not can_stream_float32(tiny_model("llama"))
    assert not can_stream_float32(tiny_model("gpt2", dtype=torch.bfloat16))


@pytest.mark.parametrize(
    "architecture", ["llama", "qwen2", "qwen3", "gemma", "mistral", "gemma2", "granite", "smollm3"]
)
def test_the_stream_is_float32_and_brings_hidden_states_nearer_to_float64(lora_model, architecture):
    ids = torch.arange(3, 33)[None] % 97
    exact = lora_model(architecture, dtype=torch.float64, layers=8)
    low = lora_model(architecture, dtype=torch.bfloat16, layers=8)
    # The same weights: those that bfloat16 can hold.
    for one, other in zip(exact.parameters(), low.parameters(), strict=True):
        one.data.copy_(other.data)
    lm = CausalLM.of(low.base_model.model.requires_grad_(False), fast_layers=True)
    assert lm.layers.float32_stream
    with torch.no_grad():
        expected = exact.base_model.model.model(ids).last_hidden_state
        plain = lm.body(ids).last_hidden_state
        with lm.layers.installed():
            fast = lm.body(ids).last_hidden_state
    assert fast.dtype == torch.float32
    errors = [float((x.double() - expected).norm() / expected.norm()) for x in (fast, plain)]
    assert errors[0] < 0.9 * errors[1] < 0.1
