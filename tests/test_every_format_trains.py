"""Eight ways to write the same preferences, from a file to the weights after a training step: the same to the bit."""

import json

import pytest
import torch
from datasets import Dataset

from agiledpo.algorithms import DPO
from agiledpo.data import load_preferences
from agiledpo.data.rollouts import make_pairs
from agiledpo.data.trajectories import (
    DPOObjective,
    Step,
    Trajectory,
    TrajectoryGroup,
    build_preference_pairs,
    pairs_to_dataset,
)
from agiledpo.llm_envs import PreferenceGym

# Each message in words of the tiny tokenizer, and one end of turn.
TEMPLATE = (
    "{% for m in messages %}{{ 'w90 ' if m['role'] == 'user' else 'w91 ' }}{{ m['content'] }}{{ ' </s> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'w91 ' }}{% endif %}"
)
# Question, better answer, worse answer.
PREFERENCES = [(f"w{i} w{i + 1}", f"w{i + 20} w{i + 21}", f"w{i + 40}") for i in range(10, 16)]


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def messages(path, tokenizer):
    rows = [
        {"prompt": [user(question)], "chosen": [assistant(better)], "rejected": [assistant(worse)]}
        for question, better, worse in PREFERENCES
    ]
    return write(path, rows)


def implicit(path, tokenizer):
    rows = [
        {"chosen": [user(question), assistant(better)], "rejected": [user(question), assistant(worse)]}
        for question, better, worse in PREFERENCES
    ]
    return write(path, rows)


def ultrafeedback(path, tokenizer):
    rows = [
        {
            "prompt": question,
            "chosen": [user(question), assistant(better)],
            "rejected": [user(question), assistant(worse)],
            "score_chosen": 8.0,
        }
        for question, better, worse in PREFERENCES
    ]
    return load_preferences(write(path, rows), name="UltraFeedback")


def ranked(path, tokenizer):
    rows = [
        {
            "context": [user(question)],
            "completions": [
                {"rank": 2, "completion": [assistant(worse)]},
                {"rank": 0, "completion": [assistant(better)]},
                {"rank": 1, "completion": [assistant("w60 w61")]},
            ],
        }
        for question, better, worse in PREFERENCES
    ]
    return write(path, rows)


def helpsteer(path, tokenizer):
    rows = [
        {
            "domain": "general",
            "context": [user(question)],
            "response1": better if i % 2 else worse,
            "response2": worse if i % 2 else better,
            "overall_preference": -2 if i % 2 else 1,
        }
        for i, (question, better, worse) in enumerate(PREFERENCES)
    ]
    return load_preferences(write(path, rows), name="HelpSteer3")


def transcripts(path, tokenizer):
    rows = [
        {
            "chosen": f"\n\nHuman: {question}\n\nAssistant: {better}",
            "rejected": f"\n\nHuman: {question}\n\nAssistant: {worse}",
        }
        for question, better, worse in PREFERENCES
    ]
    return load_preferences(write(path, rows), name="HH-RLHF")


def rollouts(path, tokenizer):
    lines = [
        {
            "responses_create_params": {"input": [user(question)]},
            "output": [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": answer}]}],
            "reward": reward,
        }
        for question, better, worse in PREFERENCES
        for answer, reward in ((worse, 0.1), ("w60 w61", 0.5), (better, 0.9))
    ]
    made = path.with_name("made.jsonl")
    assert make_pairs(write(path, lines), made).pairs == len(PREFERENCES)
    return made


def trajectories(path, tokenizer):
    """The tokens that the template makes of the messages."""

    def ids(*turns, **options):
        return tokenizer.apply_chat_template(list(turns), return_dict=False, **options)

    groups = []
    for number, (question, better, worse) in enumerate(PREFERENCES):
        prompt = ids(user(question), add_generation_prompt=True)
        answers = [ids(user(question), assistant(answer))[len(prompt) :] for answer in (worse, better)]
        attempts = [
            Trajectory([Step(prompt, answer)], reward) for answer, reward in zip(answers, (0.0, 1.0), strict=True)
        ]
        groups.append(TrajectoryGroup.named(f"task{number}:solver", attempts))
    pairs, _ = build_preference_pairs(groups, DPOObjective())
    return pairs_to_dataset(pairs)


FORMATS = [messages, implicit, ultrafeedback, ranked, helpsteer, transcripts, rollouts, trajectories]


def trained(source, tokenizer, model, lora):
    """The figures of a step, and the weights after it."""
    agent = DPO(actor_network=model, lora_config=lora, nll_alpha=0.0, lr=5e-3, batch_size=4)
    env = PreferenceGym(source, source, tokenizer, 4)
    metrics = [agent.learn(env.step()) for _ in range(2)]
    weights = torch.cat([parameter.detach().flatten() for parameter in agent.adapters.parameters("actor")])
    return [{name: value for name, value in step.items() if "second" not in name} for step in metrics], weights


@pytest.fixture
def tokenizer(tiny_tokenizer):
    tiny_tokenizer.chat_template = TEMPLATE
    return tiny_tokenizer


@pytest.mark.parametrize("make", FORMATS[1:], ids=lambda make: make.__name__)
def test_a_training_step_is_the_same_from_every_format(make, tmp_path, tokenizer, tiny_model, lora):
    expected, expected_weights = trained(messages(tmp_path / "a.jsonl", tokenizer), tokenizer, tiny_model(), lora)
    metrics, weights = trained(make(tmp_path / "b.jsonl", tokenizer), tokenizer, tiny_model(), lora)
    assert expected[0]["mean_loss"] == pytest.approx(0.6931, abs=1e-4)
    assert expected[1]["mean_loss"] != expected[0]["mean_loss"]
    assert metrics == expected
    assert torch.equal(weights, expected_weights)


def test_text_and_named_columns_of_text_are_the_same(tmp_path, tokenizer, tiny_model, lora):
    rows = [(f"{question} ", better, worse) for question, better, worse in PREFERENCES]
    text = Dataset.from_list([dict(zip(("prompt", "chosen", "rejected"), row, strict=True)) for row in rows])
    path = tmp_path / "named.csv"
    path.write_text("question,good,bad\n" + "".join(f"{','.join(row)}\n" for row in rows))
    named = load_preferences(path, prompt_key="question", chosen_key="good", rejected_key="bad")
    metrics, weights = trained(named, tokenizer, tiny_model(), lora)
    expected, expected_weights = trained(text, tokenizer, tiny_model(), lora)
    assert metrics == expected
    assert torch.equal(weights, expected_weights)
