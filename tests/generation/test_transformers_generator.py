"""Completions against Transformers' ``generate`` row by row, the scorer, and the exact distribution."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from agiledpo.algorithms import DPO
from agiledpo.algorithms.core.randomness import TorchRandomStream
from agiledpo.generation import Completions, SamplingSettings, TransformersGenerator
from agiledpo.generation.batches import prompt_batches
from agiledpo.generation.probe import cache_traits
from agiledpo.scoring import Scorer
from agiledpo.scoring.causal_lm import CausalLM
from agiledpo.scoring.rollout_batch import RolloutBatch

# What these small configurations need beside the common sizes.
HYBRIDS: dict[str, dict[str, Any]] = {
    "bamba": {
        "mamba_n_heads": 8,
        "mamba_d_head": 8,
        "mamba_d_state": 4,
        "mamba_n_groups": 1,
        "attn_layer_indices": [1],
    },
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "mamba": {},
}


def by_hand(model: PreTrainedModel, prompt: Tensor, tokens: int, **arguments: Any) -> Tensor:
    """One greedy completion by one call of ``generate``."""
    ids = prompt[None]
    output = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False, **arguments
    )
    return output[0, len(prompt) :]


def flat(values: Sequence[Sequence[Any]]) -> list[Any]:
    return [value for group in values for value in group]


def same(one: Completions, other: Completions) -> bool:
    return all(torch.equal(a, b) for a, b in zip(flat(one.tokens), flat(other.tokens), strict=True))


def scored(agent: DPO, prompts: Sequence[Tensor], completions: Completions, temperature: float) -> list[Tensor]:
    """Log-probabilities of the tokens by the scorer."""
    batch = RolloutBatch(
        prompts=prompts,
        completions=completions.tokens,
        rewards=[[0.0] * len(group) for group in completions.tokens],
        advantages=[None] * len(prompts),
        sampling_logps=[None] * len(prompts),
        finished=completions.finished,
        labels=[f"row {place}" for place in range(len(prompts))],
    )
    scorer = Scorer(agent.lm, pad_token_id=0, temperature=temperature)
    with torch.no_grad(), agent.select_adapter("actor"), scorer.session():
        result = scorer.score_completions(batch)
    return [logps[mask] for logps, mask in zip(result.logps, result.mask, strict=True)]


# Greedy -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mistral", "gemma2", *HYBRIDS])
def test_greedy_completions_are_those_of_generate_row_by_row(tiny_model, prompts, architecture) -> None:
    # Prompts of 9 and 7 tokens are longer than the sliding windows of 6.
    model = tiny_model(architecture, **HYBRIDS.get(architecture, {})).eval()
    lm = CausalLM.of(model)
    stream = TorchRandomStream(0, torch.device("cpu"))
    # Some token that is said early ends completions, so that rows leave the batch at different times.
    eos = int(by_hand(model, prompts[1], 12, eos_token_id=None)[4])
    model.generation_config = GenerationConfig(eos_token_id=eos)
    model.config.eos_token_id = None
    expected = [by_hand(model, prompt, 12) for prompt in prompts]
    assert len({len(tokens) for tokens in expected}) > 1
    for segment, batch_size in [(1, None), (5, None), (100, None), (3, 3)]:
        completions = TransformersGenerator(batch_size, segment=segment).sample(
            lm, prompts, group_size=2, settings=SamplingSettings(max_new_tokens=12, temperature=0), stream=stream
        )
        for group, finished, tokens in zip(completions.tokens, completions.finished, expected, strict=True):
            assert all(torch.equal(row, tokens) for row in group)
            assert finished == [bool(tokens[-1] == eos)] * 2


def test_which_models_share_a_prompt(tiny_model) -> None:
    shares = {
        name: cache_traits(tiny_model(name, **HYBRIDS.get(name, {})).eval(), 97).shares
        for name in ("llama", "gpt2", "mistral", *HYBRIDS)
    }
    assert shares == {"llama": True, "gpt2": True, "mistral": True, "bamba": True, "lfm2": True, "mamba": False}
    # Keys and values of 2 layers, 2 heads and 8 channels in 4 bytes.
    assert cache_traits(tiny_model("llama").eval(), 97).token_bytes == 2 * 2 * 2 * 8 * 4


def test_a_prompt_goes_through_the_model_once(make_agent, prompts) -> None:
    agent = make_agent()
    tokens: list[int] = []
    embedding = agent.base.model.get_input_embeddings()
    generator = TransformersGenerator()
    limits = SamplingSettings(max_new_tokens=2, min_new_tokens=2)
    generator.generate(agent, prompts, group_size=8, settings=limits)  # probes the model
    with embedding.register_forward_hook(lambda module, inputs, output: tokens.append(inputs[0].numel())):
        generator.generate(agent, prompts, group_size=8, settings=limits)
    # All but the last token of the prompts, padded to 8, then 40 rows with it, then with their first token.
    assert tokens == [5 * 8, 40, 40]


# Log-probabilities ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mistral", "gemma2", "bamba"])
def test_log_probabilities_are_the_scorers_and_those_of_a_plain_forward_pass(
    make_agent, tiny_model, prompts, architecture
) -> None:
    agent = make_agent(actor_network=tiny_model(architecture, **HYBRIDS.get(architecture, {})))
    drawn = SamplingSettings(
        max_new_tokens=11, temperature=1.7, top_p=0.9, top_k=40, min_p=0.001, repetition_penalty=1.2
    )
    completions = TransformersGenerator(segment=4).generate(agent, prompts, group_size=3, settings=drawn)
    rows = scored(agent, prompts, completions, 1.7)
    for place, (tokens, logps) in enumerate(zip(flat(completions.tokens), flat(completions.logps), strict=True)):
        assert logps.dtype == torch.float32
        assert len(tokens) == len(logps) > 0
        torch.testing.assert_close(logps, rows[place], atol=1e-4, rtol=0)
        ids = torch.cat([prompts[place // 3], tokens])[None]
        with torch.no_grad(), agent.select_adapter("actor") as model:
            logits = model(input_ids=ids).logits[0, -len(tokens) - 1 : -1]
        plain = (logits.float() / 1.7).log_softmax(-1).gather(1, tokens[:, None])[:, 0]
        torch.testing.assert_close(logps, plain, atol=1e-4, rtol=0)


def test_greedy_log_probabilities_are_at_temperature_one(make_agent, prompts) -> None:
    agent = make_agent()
    completions = TransformersGenerator().generate(
        agent, prompts, group_size=1, settings=SamplingSettings(max_new_tokens=6, temperature=0)
    )
    for logps, expected in zip(flat(completions.logps), scored(agent, prompts, completions, 1.0), strict=True):
        torch.testing.assert_close(logps, expected, atol=1e-4, rtol=0)


def test_bfloat16_completions_are_as_likely_as_the_scorer_says(make_agent, tiny_model, prompts) -> None:
    agent = make_agent(actor_network=tiny_model(dtype=torch.bfloat16))
    completions = TransformersGenerator().generate(
        agent, prompts, group_size=4, settings=SamplingSettings(max_new_tokens=10)
    )
    errors = torch.cat(flat(completions.logps)) - torch.cat(scored(agent, prompts, completions, 1.0))
    # Two ways to round the same network.
    assert float(errors.square().mean().sqrt()) < 0.1


@pytest.mark.parametrize(
    "settings",
    [{"target_modules": ["q_proj", "lm_head"]}, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
     {"target_modules": ["q_proj"], "use_dora": True}],
    ids=str,
)  # fmt: skip
def test_bfloat16_adapters_of_other_kinds_sample(make_agent, tiny_model, prompts, settings) -> None:
    config = LoraConfig(r=4, task_type="CAUSAL_LM", **settings)
    agent = make_agent(actor_network=tiny_model(dtype=torch.bfloat16), lora_config=config)
    completions = TransformersGenerator().generate(
        agent, prompts, group_size=2, settings=SamplingSettings(max_new_tokens=6)
    )
    errors = torch.cat(flat(completions.logps)) - torch.cat(scored(agent, prompts, completions, 1.0))
    assert float(errors.square().mean().sqrt()) < 0.1


# Distribution -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "truncation", [{}, {"top_k": 7}, {"top_p": 0.6}, {"min_p": 0.2}, {"top_k": 9, "top_p": 0.8, "min_p": 0.05}]
)
def test_one_token_is_drawn_from_the_truncated_softmax(make_agent, prompts, truncation) -> None:
    agent = make_agent()
    # The model's own settings would truncate otherwise.
    agent.base.model.generation_config = GenerationConfig(
        do_sample=True, top_k=2, temperature=0.1, top_p=0.3, repetition_penalty=2.0, suppress_tokens=[5, 6, 7]
    )
    count, temperature = 4000, 2.5
    drawn = SamplingSettings(max_new_tokens=1, temperature=temperature, **truncation)
    completions = TransformersGenerator().generate(agent, prompts[:1], group_size=count, settings=drawn)
    with torch.no_grad(), agent.select_adapter("actor") as model:
        logits = model(input_ids=prompts[0][None]).logits[0, -1].double() / temperature
    expected = truncated(logits.softmax(-1), **truncation)
    counts = torch.bincount(torch.cat(completions.tokens[0]), minlength=len(expected))
    assert int(counts[expected == 0].sum()) == 0
    kept = expected * count >= 5
    observed = [*counts[kept].tolist(), int(counts[~kept].sum())]
    wanted = [*(expected[kept] * count).tolist(), float(expected[~kept].sum() * count)]
    if wanted[-1] == 0:
        observed, wanted = observed[:-1], wanted[:-1]
    assert len(wanted) > 3
    assert p_value(torch.tensor(observed).double(), torch.tensor(wanted).double()) > 0.001


def p_value(observed: Tensor, expected: Tensor) -> float:
    """Of Pearson's chi-square test."""
    statistic = ((observed - expected).square() / expected).sum()
    return float(torch.special.gammaincc(torch.tensor((len(observed) - 1) / 2).double(), statistic / 2))


def truncated(p: Tensor, *, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> Tensor:
    """The probabilities that are left when the three are applied one after the other, each to what is left."""
    if top_k:
        p = torch.where(p >= p.sort(descending=True).values[top_k - 1], p, 0)
        p = p / p.sum()
    ordered = p.sort(descending=True)
    before = ordered.values.cumsum(0) - ordered.values
    p = torch.zeros_like(p).scatter(0, ordered.indices, torch.where(before < top_p, ordered.values, 0))
    p = p / p.sum()
    p = torch.where(p >= min_p * p.max(), p, 0)
    return p / p.sum()


# Ends -------------------------------------------------------------------------------------------------------------


def test_every_end_of_sequence_token_ends_a_completion_and_is_its_last(make_agent, prompts, tiny_tokenizer) -> None:
    agent = make_agent()
    model = agent.base.model
    model.generation_config = GenerationConfig(eos_token_id=[10, 20, 30, 40])
    model.config.eos_token_id = 50
    tiny_tokenizer.eos_token = "w60"
    ends = {10, 20, 30, 40, 50, 60}
    completions = TransformersGenerator(segment=7).generate(
        agent,
        prompts,
        group_size=20,
        settings=SamplingSettings(max_new_tokens=24, temperature=3.0),
        tokenizer=tiny_tokenizer,
    )
    seen = set()
    for tokens, finished in zip(flat(completions.tokens), flat(completions.finished), strict=True):
        assert not ends & set(tokens[:-1].tolist())
        assert finished == (int(tokens[-1]) in ends)
        assert len(tokens) == 24 or finished
        seen.add(int(tokens[-1]))
    assert ends <= seen


def test_no_completion_ends_before_its_fewest_tokens(make_agent, prompts) -> None:
    agent = make_agent()
    agent.base.model.generation_config = GenerationConfig(eos_token_id=list(range(40, 97)))
    for segment in (2, 5, 16):
        completions = TransformersGenerator(segment=segment).generate(
            agent,
            prompts,
            group_size=8,
            settings=SamplingSettings(max_new_tokens=20, min_new_tokens=7, temperature=3.0),
        )
        assert min(map(len, flat(completions.tokens))) in (7, 8)  # more than half of all tokens end from there on
        assert max(map(len, flat(completions.tokens))) < 20


def test_a_stop_text_ends_a_completion_that_keeps_it(make_agent, prompts, tiny_tokenizer) -> None:
    agent = make_agent()
    free = TransformersGenerator().generate(
        agent, prompts, group_size=1, settings=SamplingSettings(max_new_tokens=12, temperature=0)
    )
    texts = [tiny_tokenizer.decode(row) for row in flat(free.tokens)]
    words = texts[0].split()
    stop = " ".join(words[2:4])  # spans two tokens
    assert " ".join(words[:4]).index(stop) == len(" ".join(words[:2])) + 1
    stopped = TransformersGenerator(segment=2).generate(
        agent,
        prompts,
        group_size=1,
        settings=SamplingSettings(max_new_tokens=12, temperature=0, stop=(stop,)),
        tokenizer=tiny_tokenizer,
    )
    assert torch.equal(stopped.tokens[0][0], free.tokens[0][0][:4])
    for text, tokens, whole, finished in zip(
        texts, flat(stopped.tokens), flat(free.tokens), flat(stopped.finished), strict=True
    ):
        if stop in text:
            assert tiny_tokenizer.decode(tokens).endswith(stop)
            assert finished
        else:
            assert torch.equal(tokens, whole)
    with pytest.raises(ValueError, match="tokenizer"):
        TransformersGenerator().generate(
            agent, prompts, group_size=1, settings=SamplingSettings(max_new_tokens=2, stop=(stop,))
        )


def test_a_stop_text_does_not_end_a_completion_before_its_fewest_tokens(make_agent, prompts, tiny_tokenizer) -> None:
    agent, greedy = make_agent(), SamplingSettings(max_new_tokens=12, temperature=0)
    free = TransformersGenerator().generate(agent, prompts[:1], group_size=1, settings=greedy).tokens[0][0]
    texts = tuple(tiny_tokenizer.decode([int(token)]).strip() for token in free)
    for fewest in (0, 5):
        stopped = TransformersGenerator(segment=2).generate(
            agent,
            prompts[:1],
            group_size=1,
            settings=replace(greedy, stop=texts, min_new_tokens=fewest),
            tokenizer=tiny_tokenizer,
        )
        assert len(stopped.tokens[0][0]) == fewest + 1


def test_a_stop_text_that_begins_in_the_prompt_does_not_count(make_agent, prompts, tiny_tokenizer) -> None:
    agent = make_agent()
    whole = TransformersGenerator().generate(
        agent, prompts, group_size=1, settings=SamplingSettings(max_new_tokens=5, temperature=0)
    )
    stop = tiny_tokenizer.decode([int(prompts[0][-1]), int(whole.tokens[0][0][0])])
    stopped = TransformersGenerator().generate(
        agent,
        prompts,
        group_size=1,
        settings=SamplingSettings(max_new_tokens=5, temperature=0, stop=(stop,)),
        tokenizer=tiny_tokenizer,
    )
    assert len(stopped.tokens[0][0]) == 5


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_completions_end_at_the_models_longest_sequence(make_agent, architecture, caplog) -> None:
    agent = make_agent(architecture)
    agent.base.model.generation_config.eos_token_id = agent.base.model.config.eos_token_id = None
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(3, 97, (length,), generator=generator) for length in (60, 10, 61, 63)]
    limits = SamplingSettings(max_new_tokens=30, temperature=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        completions = TransformersGenerator().generate(agent, prompts, group_size=2, settings=limits)
    assert [[len(row) for row in group] for group in completions.tokens] == [[4, 4], [30, 30], [3, 3], [1, 1]]
    assert not any(flat(completions.finished))
    assert not caplog.records
    with agent.select_adapter("actor"):
        assert torch.equal(completions.tokens[0][0], by_hand(agent.base.model, prompts[0], 4))
    with pytest.raises(ValueError, match="Prompt 1 has 64 tokens and leaves no room"):
        TransformersGenerator().generate(agent, [prompts[0], torch.arange(3, 67)], group_size=1, settings=limits)
    shorter = replace(limits, max_model_len=25)
    completions = TransformersGenerator().generate(agent, prompts[1:2], group_size=1, settings=shorter)
    assert len(completions.tokens[0][0]) == 15
    with pytest.raises(ValueError, match=r"Prompt 0 has 60 tokens and leaves no room .* max_model_len, is 25"):
        TransformersGenerator().generate(agent, prompts, group_size=1, settings=shorter)


# Whose adapter, whose randomness ----------------------------------------------------------------------------------


def test_each_agent_answers_with_its_own_actor_and_leaves_the_base_as_it_was(make_agent, tiny_model, prompts) -> None:
    base = tiny_model()
    agents = [make_agent(actor_network=base, seed=seed, gradient_checkpointing=True) for seed in (1, 2)]
    theirs = base.generation_config
    limits = SamplingSettings(max_new_tokens=10, temperature=0)
    agents[1].use_adapter("reference")
    active = agents[1].base.active_name
    rows = []
    for agent in agents:
        completions = TransformersGenerator().generate(agent, prompts, group_size=1, settings=limits)
        assert agent.base.active_name == active
        with agent.select_adapter("actor"):
            expected = [by_hand(base, prompt, 10) for prompt in prompts]
        assert all(torch.equal(a, b) for a, b in zip(flat(completions.tokens), expected, strict=True))
        rows.append(completions)
    assert not same(*rows)
    assert base.generation_config is theirs
    assert not any("forward" in vars(module) for module in base.modules())
    assert all(parameter.requires_grad for parameter in agents[0].adapters.parameters("actor"))


def test_draws_come_from_the_agents_stream_alone(make_agent, prompts) -> None:
    agent = make_agent()
    generator = TransformersGenerator(batch_size=4, segment=3)
    drawn = SamplingSettings(max_new_tokens=8, temperature=1.5)
    outside = torch.get_rng_state()
    saved = agent.sampling_stream.state_dict()
    first = generator.generate(agent, prompts, group_size=3, settings=drawn)
    second = generator.generate(agent, prompts, group_size=3, settings=drawn)
    assert not same(first, second)
    agent.sampling_stream.load_state_dict(saved)
    torch.manual_seed(99)
    global_state = torch.get_rng_state()
    again = TransformersGenerator(batch_size=4, segment=3).generate(agent, prompts, group_size=3, settings=drawn)
    assert same(first, again)
    assert all(torch.equal(a, b) for a, b in zip(flat(first.logps), flat(again.logps), strict=True))
    assert torch.equal(torch.get_rng_state(), global_state)
    after = agent.sampling_stream.state_dict()
    generator.generate(agent, prompts, group_size=2, settings=SamplingSettings(max_new_tokens=4, temperature=0))
    assert torch.equal(agent.sampling_stream.state_dict()["states"][0], after["states"][0])
    torch.set_rng_state(outside)


# Batches ----------------------------------------------------------------------------------------------------------


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    group_size=st.integers(1, 7),
    batch_size=st.integers(1, 12),
    pads=st.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_batches_hold_every_row_once(lengths, group_size, batch_size, pads) -> None:
    rooms = [min(4, 10 - length) for length in lengths]
    batches = list(prompt_batches(lengths, rooms, group_size, batch_size, pads=pads))
    counts = dict.fromkeys(range(len(lengths)), 0)
    parts = -(-group_size // batch_size)
    for batch in batches:
        assert sum(batch.copies) <= batch_size
        assert {rooms[place] for place in batch.places} == {batch.room}
        assert pads or len({lengths[place] for place in batch.places}) == 1
        for place, count in zip(batch.places, batch.copies, strict=True):
            counts[place] += count
            assert count == group_size or group_size > batch_size
            assert count in (group_size // parts, -(-group_size // parts))  # parts as equal as can be
    assert set(counts.values()) == {group_size}
    assert [lengths[place] for batch in batches for place in batch.places] == sorted(
        (lengths[place] for batch in batches for place in batch.places), reverse=True
    )
    # Never more batches than the limits ask for: two neighbours that fit together are one.
    for one, other in pairwise(batches):
        alike = one.room == other.room and (pads or lengths[one.places[0]] == lengths[other.places[0]])
        assert not alike or sum(one.copies) + other.copies[0] > batch_size


@pytest.mark.parametrize("arguments", [{"batch_size": 0}, {"segment": 0}])
def test_a_batch_has_rows(arguments) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        TransformersGenerator(**arguments)
