"""SFT's loss, token accuracy and LoRA gradients against Transformers on padded rows with masked labels."""

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig

from agiledpo.adapters import AgentAdapters, SharedBaseModel
from agiledpo.losses import CompletionTerms
from agiledpo.scoring import CausalLM, CompletionBatch, Scorer
from agiledpo.scoring import head as head_module

ARCHITECTURES = (
    "llama", "qwen2", "qwen3", "gpt2", "gemma", "mistral", "gemma2", "cohere", "granite", "phi3", "olmo2", "smollm3"
)  # fmt: skip
LENGTHS = [(7, 5), (1, 1), (3, 8), (12, 1)]


def make(tiny_model, lora, architecture, *, dtype=torch.float32, packs=True, fast=True):
    model = tiny_model(architecture, dtype=dtype).eval()
    adapters = AgentAdapters(SharedBaseModel.of(model), lora, separate_reference=False, seed=0)
    generator = torch.Generator().manual_seed(3)
    for parameter in adapters.parameters("actor"):
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    lm = CausalLM.of(model, fast_layers=fast)
    assert lm.packs
    return adapters, Scorer(replace(lm, packs=packs), pad_token_id=0, hits=True)


def ours(adapters, scorer, experiences):
    batch = CompletionBatch.from_experiences(experiences)
    with adapters.select("actor"), scorer.session():
        (tokens,) = scorer.score_sides(batch)
        terms = CompletionTerms.of(tokens)
        loss = terms.nll.sum() / batch.completion_tokens
        gradients = torch.autograd.grad(loss, adapters.parameters("actor"))
    return loss.detach(), terms, torch.cat([gradient.flatten() for gradient in gradients])


def plain(adapters, experiences):
    """Cross-entropy over all labels that are not -100, and hits and tokens of each row."""
    ids, mask = experiences["input_ids"], experiences["attention_mask"]
    places = mask.cumsum(1) - 1
    labels = torch.where((mask == 1) & (places >= experiences["prompt_lengths"][:, None]), ids, -100)
    with adapters.select("actor") as model:
        logits = model(input_ids=ids, attention_mask=mask, position_ids=places.clamp(min=0)).logits
        logits, labels = logits[:, :-1], labels[:, 1:]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
        gradients = torch.autograd.grad(loss, adapters.parameters("actor"))
    hits = ((logits.argmax(-1) == labels) & (labels != -100)).sum(1)
    return loss.detach(), hits, (labels != -100).sum(1), torch.cat([gradient.flatten() for gradient in gradients])


def relative(actual, expected):
    return float((actual - expected).norm() / expected.norm())


def with_likely_tokens(adapters, experiences):
    """Replace every second token by the model's own choice, so that there is something to hit."""
    ids = experiences["input_ids"].clone()
    with adapters.select("actor") as model, torch.no_grad():
        for place in range(1, ids.shape[1], 2):
            choice = model(input_ids=ids, attention_mask=experiences["attention_mask"]).logits[:, place - 1].argmax(-1)
            ids[:, place] = torch.where(experiences["attention_mask"][:, place] == 1, choice, ids[:, place])
    return experiences | {"input_ids": ids}


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_loss_accuracy_and_gradients_equal_masked_labels(tiny_model, lora, demonstrations, architecture, packs):
    adapters, scorer = make(tiny_model, lora, architecture, packs=packs)
    experiences = with_likely_tokens(adapters, demonstrations(LENGTHS))
    loss, terms, gradient = ours(adapters, scorer, experiences)
    expected_loss, hits, tokens, expected_gradient = plain(adapters, experiences)
    assert relative(loss, expected_loss) < 1e-5
    assert relative(gradient, expected_gradient) < 1e-5
    assert terms.tokens.tolist() == tokens.tolist() == [5, 1, 8, 1]
    assert terms.hits.tolist() == hits.tolist()
    assert 0 < int(terms.hits.sum()) < int(tokens.sum())


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen3"])
def test_float64_is_exact(tiny_model, lora, demonstrations, architecture, packs):
    adapters, scorer = make(tiny_model, lora, architecture, dtype=torch.float64, packs=packs, fast=False)
    experiences = demonstrations(LENGTHS)
    loss, _, gradient = ours(adapters, scorer, experiences)
    expected_loss, _, _, expected_gradient = plain(adapters, experiences)
    # Adapters are float32, as is rotary embedding in Transformers.
    assert relative(loss, expected_loss) < 1e-7
    assert relative(gradient, expected_gradient) < 1e-6


def test_a_trained_head_and_blocks_of_the_vocabulary(monkeypatch, tiny_model, lora, demonstrations):
    """Hits are the same from whole logits in chunks of positions and from blocks of the vocabulary."""
    trained = LoraConfig(r=4, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM")
    monkeypatch.setattr(head_module, "_BLOCK_LOGITS", 15 * 10)
    monkeypatch.setattr(head_module, "_POSITIONS", 7)
    monkeypatch.setattr(head_module, "_CHUNK_LOGITS", 97 * 4)
    for config in (lora, trained):
        adapters, scorer = make(tiny_model, config, "llama")
        experiences = with_likely_tokens(adapters, demonstrations(LENGTHS))
        loss, terms, gradient = ours(adapters, scorer, experiences)
        expected_loss, hits, _, expected_gradient = plain(adapters, experiences)
        assert relative(loss, expected_loss) < 1e-5
        assert relative(gradient, expected_gradient) < 1e-5
        assert terms.hits.tolist() == hits.tolist()
        assert int(terms.hits.sum()) > 0


def test_a_head_that_is_not_known(tiny_model, lora, demonstrations):
    adapters, scorer = make(tiny_model, lora, "llama", fast=False)
    scorer.lm = replace(scorer.lm, head=None)
    experiences = with_likely_tokens(adapters, demonstrations(LENGTHS))
    loss, terms, _ = ours(adapters, scorer, experiences)
    expected_loss, hits, _, _ = plain(adapters, experiences)
    assert relative(loss, expected_loss) < 1e-5
    assert terms.hits.tolist() == hits.tolist()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=4),
    left=st.booleans(),
    packs=st.booleans(),
)
def test_any_lengths_and_either_padding_side(tiny_model, lora, demonstrations, lengths, left, packs):
    adapters, scorer = make(tiny_model, lora, "llama", packs=packs)
    experiences = demonstrations(lengths, left=left)
    loss, terms, gradient = ours(adapters, scorer, experiences)
    expected_loss, _, tokens, expected_gradient = plain(adapters, experiences)
    assert terms.tokens.tolist() == tokens.tolist() == [completion for _, completion in lengths]
    assert relative(loss, expected_loss) < 1e-5
    assert relative(gradient, expected_gradient) < 1e-4


def test_extras_exclude_each_other(tiny_model, lora):
    _, scorer = make(tiny_model, lora, "llama")
    with pytest.raises(ValueError, match="collision=True and hits=True"):
        Scorer(scorer.lm, pad_token_id=0, collision=True, hits=True)
