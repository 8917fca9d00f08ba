"""The chunked head against plain full logits, in values, derivatives and memory."""

import pytest
import torch
from peft import LoraConfig
from torch import nn
from transformers import LlamaForCausalLM

from agiledpo.adapters import AgentAdapters, SharedBaseModel
from agiledpo.scoring import CausalLM, PreferenceBatch, Scorer
from agiledpo.scoring import head as head_module
from agiledpo.scoring.head import LMHead, completion_logps

N, H, V = 11, 6, 13


def score(scorer, batch):
    with scorer.session():
        return scorer.score(batch)


def make_head(*, bias=False, dtype=torch.float64, trained=False, **transform):
    module = nn.Linear(H, V, bias=bias, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        parameter.requires_grad_(trained)
    return LMHead(module.to(dtype), **transform)


def inputs(dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(N, H, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    return hidden, torch.randint(0, V, (N,), generator=generator)


def plain(hidden, targets, head):
    logits = head.module(hidden) * head.scale
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    logits = logits / head.temperature
    log_probs = torch.log_softmax(logits, -1)
    return log_probs[torch.arange(N), targets], torch.log((log_probs.exp() ** 2).sum(-1))


@pytest.mark.parametrize("chunk_rows", [1, 4, 100])
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    "transform",
    [
        {},
        {"scale": 0.3},
        {"softcap": 2.0},
        {"scale": 1.7, "softcap": 2.0},
        {"temperature": 0.7},
        {"scale": 1.7, "softcap": 2.0, "temperature": 1.6},
    ],
)
def test_values_and_derivatives(monkeypatch, chunk_rows, trained, bias, transform):
    monkeypatch.setattr(head_module, "_CHUNK_LOGITS", chunk_rows * V)
    monkeypatch.setattr(head_module, "_BLOCK_LOGITS", chunk_rows * N)
    monkeypatch.setattr(head_module, "_POSITIONS", 7)
    head = make_head(bias=bias, trained=trained, **transform)
    hidden, targets = inputs()
    weights = torch.linspace(-1, 2, N, dtype=torch.float64)
    expected, expected_collision = plain(hidden, targets, head)
    logps, collision = completion_logps(hidden, targets, head, collision=True)
    torch.testing.assert_close(logps, expected)
    torch.testing.assert_close(collision, expected_collision.detach())
    assert not collision.requires_grad
    wanted = [hidden, *(head.module.parameters() if trained else ())]
    actual = torch.autograd.grad((weights * logps).sum(), wanted)
    for one, other in zip(actual, torch.autograd.grad((weights * expected).sum(), wanted), strict=True):
        torch.testing.assert_close(one, other)


def test_finite_differences():
    head = make_head(bias=True, softcap=2.0, scale=0.7)
    hidden, targets = inputs()
    assert torch.autograd.gradcheck(lambda h: completion_logps(h, targets, head, collision=False)[0], (hidden,))


def test_low_precision_hidden_states_give_float32_log_probabilities():
    head = make_head(dtype=torch.bfloat16)
    hidden, targets = inputs(torch.bfloat16)
    logps, collision = completion_logps(hidden, targets, head, collision=False)
    assert logps.dtype == torch.float32
    assert collision is None
    expected, _ = plain(hidden.double(), targets, make_head())
    assert (logps.double() - expected).abs().max() < 0.1
    (gradient,) = torch.autograd.grad(logps.sum(), hidden)
    assert gradient.dtype == torch.bfloat16


def test_no_full_logits_exist(monkeypatch, tiny_model, lora, make_experiences):
    """Log-probabilities of 80 positions over 5000 tokens never hold more numbers at once than a block allows."""
    model = tiny_model("llama", vocab_size=5000)
    adapters = AgentAdapters(SharedBaseModel.of(model), lora, separate_reference=False, seed=0)
    scorer = Scorer(CausalLM.of(model), pad_token_id=0)
    monkeypatch.setattr(head_module, "_BLOCK_LOGITS", 80 * 100)
    batch = PreferenceBatch.from_experiences(make_experiences([(5, 20, 20)] * 2))
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.untyped_storage().data_ptr() not in weights:
                largest = max(largest, result.numel())
            return result

    with adapters.select("actor"), Watch():
        scores = score(scorer, batch)
        (scores.chosen.logps.sum() - scores.rejected.logps.sum()).backward()
    assert 80 * 100 <= largest <= 90 * 90  # the latter is an attention mask


def test_a_lora_adapter_on_the_head_is_used_and_trained(tiny_model, make_experiences, plain_logps):
    model = tiny_model("llama")
    lora = LoraConfig(r=2, target_modules=["lm_head"], task_type="CAUSAL_LM")
    adapters = AgentAdapters(SharedBaseModel.of(model), lora, separate_reference=False, seed=0)
    for parameter in adapters.parameters("actor"):
        nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    scorer = Scorer(CausalLM.of(model), pad_token_id=0)
    batch = PreferenceBatch.from_experiences(make_experiences([(4, 6, 3)]))
    with adapters.select("actor") as active:
        expected = plain_logps(active, batch.prompts[0], batch.chosen[0])
        actual = score(scorer, batch).chosen.logps[0]
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
        pairs = [torch.autograd.grad(x.sum(), adapters.parameters("actor")) for x in (actual, expected)]
    for one, other in zip(*pairs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


class OddLogits(LlamaForCausalLM):
    """A model whose logits are not what its head gives."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits * 0.5 + torch.arange(output.logits.shape[-1]) * 0.01
        return output


def test_a_model_with_logits_of_its_own_falls_back_to_its_own_forward(tiny_model, lora, make_experiences, plain_logps):
    model = OddLogits(tiny_model("llama").config)
    adapters = AgentAdapters(SharedBaseModel.of(model), lora, separate_reference=False, seed=0)
    with pytest.warns(UserWarning, match="OddLogits computes its logits in a way"):
        scorer = Scorer(CausalLM.of(model), pad_token_id=0)
    batch = PreferenceBatch.from_experiences(make_experiences([(4, 6, 3), (2, 1, 5)]))
    with adapters.select("actor") as active:
        scores = score(scorer, batch)
        for i in range(2):
            expected = plain_logps(active, batch.prompts[i], batch.rejected[i])
            torch.testing.assert_close(scores.rejected.logps[i, : len(expected)], expected, rtol=1e-5, atol=1e-5)
