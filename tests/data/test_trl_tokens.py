"""Our tokens and those of TRL's DPOTrainer, of the same rows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import DPOConfig, DPOTrainer

from agiledpo.data import prepare_rows

MakeTokenizer = Callable[..., PreTrainedTokenizerBase]
COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")
SWITCHED = (
    "{% for t in tools or [] %}{{ t.function.name }}\n{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


@pytest.fixture
def trl_tokens(
    tiny_model: Callable[..., PreTrainedModel], lora: LoraConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Dataset, PreTrainedTokenizerBase], list[dict[str, list[int]]]]:
    monkeypatch.setenv("CI", "1")  # TRL sends telemetry otherwise

    def tokenize(rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, list[int]]]:
        arguments = DPOConfig(output_dir=str(tmp_path), report_to=[], use_cpu=True, bf16=False, max_length=None)
        trainer = DPOTrainer(
            model=get_peft_model(tiny_model(), lora),
            args=arguments,
            train_dataset=rows,
            processing_class=tokenizer,
        )
        return trainer.train_dataset.select_columns(list(COLUMNS)).to_list()

    return tokenize


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def chat(**more: Any) -> list[dict[str, Any]]:
    turns = [message("user", "hello"), message("assistant", "happy"), message("user", "how are you?")]
    return [
        {
            "prompt": prompt,
            "chosen": [message("assistant", "yes yes ")],
            "rejected": [message("assistant", "no 世界")],
            **more,
        }
        for prompt in (turns, turns[:1])
    ]


TEXT = [
    {"prompt": "hello, how", "chosen": " are you?", "rejected": " unhappy"},
    {"prompt": "hel", "chosen": "lo world", "rejected": "p"},
    {"prompt": "one ", "chosen": "two</s>", "rejected": "three"},
]
CLOCK = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object"}}}


@pytest.mark.parametrize(
    ("rows", "options"),
    [
        (TEXT, {"bos": True}),
        (chat(), {"template": "chatml"}),
        # The template's end of a turn is the end of a sequence, and what it writes behind it is left there.
        (chat(), {"template": "chatml", "eos_token": "<|im_end|>"}),
        (chat(), {"template": "llama3", "bos": True}),
        (chat(), {"template": "gemma", "bos": True}),
        (chat(), {"template": "thinking"}),
        (chat(), SWITCHED),
        (chat(tools=[CLOCK], chat_template_kwargs={"enable_thinking": False}), SWITCHED),
    ],
    ids=["text", "chatml", "chatml-eos", "llama3", "gemma", "header", "switch", "switched"],
)
def test_same_tokens(
    rows: list[dict[str, Any]],
    options: dict[str, Any] | str,
    make_tokenizer: MakeTokenizer,
    trl_tokens: Callable[[Dataset, PreTrainedTokenizerBase], list[dict[str, list[int]]]],
) -> None:
    tokenizer = make_tokenizer(**(options if isinstance(options, dict) else {"template": "chatml"}))
    if isinstance(options, str):
        tokenizer.chat_template = options
    dataset = Dataset.from_list(rows)
    ours = prepare_rows(dataset, tokenizer, name="train").dataset.select_columns(list(COLUMNS)).to_list()
    assert ours == trl_tokens(dataset, tokenizer)
    if tokenizer.eos_token == "<|im_end|>":
        assert [row["chosen_ids"].count(tokenizer.eos_token_id) for row in ours] == [1, 1]
        assert tokenizer.decode(ours[0]["chosen_ids"]).endswith("<|im_end|>\n")


def test_an_open_turn_is_ended_by_us_alone(
    make_tokenizer: MakeTokenizer,
    trl_tokens: Callable[[Dataset, PreTrainedTokenizerBase], list[dict[str, list[int]]]],
) -> None:
    """A model that never sees the end of an answer never ends one."""
    tokenizer, dataset = make_tokenizer(template="plain"), Dataset.from_list(chat())
    ours = prepare_rows(dataset, tokenizer, name="train").dataset.to_list()
    for one, other in zip(ours, trl_tokens(dataset, tokenizer), strict=True):
        assert one["prompt_ids"] == other["prompt_ids"]
        assert one["chosen_ids"] == [*other["chosen_ids"], tokenizer.eos_token_id]
