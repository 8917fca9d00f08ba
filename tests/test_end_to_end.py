"""From rows to weights: what users' data can look like, and what must come out."""

import copy

import pytest
import torch
from datasets import Dataset

from agiledpo.algorithms import DPO
from agiledpo.llm_envs import PreferenceGym

CHAT_TEMPLATE = (
    "{% for m in messages %}{{ 'w90 ' + m['role'] + ' ' + m['content'] + ' </s> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'w90 assistant ' }}{% endif %}"
)


@pytest.fixture
def make_agent(tiny_model, lora):
    def make(**arguments):
        return DPO(actor_network=tiny_model(), lora_config=lora, nll_alpha=0.0, lr=5e-3, batch_size=4, **arguments)

    return make


def weights(agent):
    return torch.cat([p.detach().flatten() for p in agent.adapters.parameters("actor")])


def text(*rows):
    return Dataset.from_list([dict(zip(("prompt", "chosen", "rejected"), row, strict=True)) for row in rows])


def test_the_padding_side_of_the_tokenizer_does_not_matter(make_agent, make_pairs, tiny_tokenizer):
    results = []
    for side in ("right", "left"):
        tokenizer = copy.deepcopy(tiny_tokenizer)
        tokenizer.padding_side = side
        env, agent = PreferenceGym(make_pairs(8), make_pairs(4), tokenizer, data_batch_size_per_gpu=4), make_agent()
        agent.learn(env.step())
        agent.learn(env.step())
        results.append(weights(agent))
    assert torch.equal(*results)


def test_an_end_of_sequence_token_is_learned(make_agent, tiny_tokenizer):
    """Both answers begin alike and the rejected one rambles on, so what is preferred is stopping."""
    pairs = text(*[(f"w{i} w{i + 1} ", "w5", "w5 w6 w7 w8") for i in range(10, 26)])
    env, agent = PreferenceGym(pairs, pairs, tiny_tokenizer, data_batch_size_per_gpu=4), make_agent()
    end = tiny_tokenizer.eos_token_id
    batch = env.step()
    last = batch["chosen_attention_mask"].sum(1) - 1
    assert (batch["chosen_input_ids"].gather(1, last[:, None]) == end).all()
    assert (batch["chosen_input_ids"] == end).sum() == 4

    def probability_of_stopping():
        ids = torch.tensor([tiny_tokenizer.encode("w60 w61 w5", add_special_tokens=False)])
        with agent.select_adapter("actor") as model, torch.no_grad():
            return float(model.eval()(ids).logits[0, -1].softmax(-1)[end])

    before = probability_of_stopping()
    for _ in range(16):
        agent.learn(env.step())
    assert probability_of_stopping() > 5 * before


def test_answers_that_are_prefixes_and_prompts_that_share_prefixes(make_agent, tiny_tokenizer, plain):
    pairs = text(
        ("w5 w6 ", "w7 w8 w9", "w7 w8"),
        ("w5 w6 w7 ", "w8", "w8 w9 w10 w11"),
        ("w5 ", "w6 w7", "w6"),
        ("w5 w6 ", "w9", "w7"),
    )
    env, agent = PreferenceGym(pairs, pairs, tiny_tokenizer, data_batch_size_per_gpu=4), make_agent()
    metrics = agent.learn(env.step(), training=False)
    chosen = sum(plain(agent, tiny_tokenizer, row["prompt"], row["chosen"]) for row in pairs) / 4
    rejected = sum(plain(agent, tiny_tokenizer, row["prompt"], row["rejected"]) for row in pairs) / 4
    assert metrics["logps/chosen"] == pytest.approx(chosen, rel=1e-5)
    assert metrics["logps/rejected"] == pytest.approx(rejected, rel=1e-5)


@pytest.fixture
def plain():
    """Log p(answer + end | prompt) from words, one forward, full logits."""

    def score(agent, tokenizer, prompt, answer):
        before, after = ([tokenizer.convert_tokens_to_ids(word) for word in part.split()] for part in (prompt, answer))
        after.append(tokenizer.eos_token_id)
        with agent.select_adapter("actor") as model, torch.no_grad():
            log_probs = model.eval()(torch.tensor([before + after])).logits[0].log_softmax(-1)
        return sum(float(log_probs[len(before) - 1 + i, token]) for i, token in enumerate(after))

    return score


def test_chat_rows_are_learned(make_agent, tiny_tokenizer):
    tiny_tokenizer.chat_template = CHAT_TEMPLATE
    rows = [
        {
            "prompt": [{"role": "system", "content": "w4"}, {"role": "user", "content": f"w{i}"}],
            "chosen": [{"role": "assistant", "content": "w5 w6"}],
            "rejected": [{"role": "assistant", "content": "w70 w71 w72"}],
        }
        for i in range(10, 26)
    ]
    data = Dataset.from_list(rows)
    env, agent = PreferenceGym(data, data, tiny_tokenizer, data_batch_size_per_gpu=4), make_agent()
    for _ in range(8):
        agent.learn(env.step())
    assert agent.evaluate(env)["rewards/accuracies"] == 1.0
    assert agent.evaluate(env)["rewards/margins"] > 0.1


def test_a_tied_preference_counts_one_half(make_agent, make_pairs, tiny_tokenizer):
    env = PreferenceGym(make_pairs(8), make_pairs(5), tiny_tokenizer)
    assert float(make_agent().test(env)) == 0.5


def test_a_tokenizer_that_is_not_the_models_is_refused_before_any_weight_changes(make_agent, make_experiences):
    agent = make_agent()
    before = weights(agent)
    experiences = make_experiences([(2, 2, 2)])
    experiences["rejected_input_ids"][0, 3] = 500
    with pytest.raises(ValueError, match=r"token id 500.*resize_token_embeddings"):
        agent.learn(experiences)
    assert torch.equal(weights(agent), before)
