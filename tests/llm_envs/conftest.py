"""A real tokenizer, trained here, and datasets of pairs of different lengths."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from agiledpo.llm_envs import PreferenceExperiences, PreferenceGym

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., PreTrainedTokenizerBase]:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["hello world, how are you", "yes no maybe"] * 4, trainer)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])

    def make(**options: Any) -> PreTrainedTokenizerBase:
        options = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", **options}
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **options)
        tokenizer.chat_template = CHATML
        return tokenizer

    return make


@pytest.fixture(scope="session")
def make_rows() -> Callable[..., Dataset]:
    """Text rows whose prompts and completions have different lengths."""

    def make(n: int, *, first: int = 0) -> Dataset:
        return Dataset.from_list(
            [
                {
                    "prompt": f"hello {i}," + " world" * (i % 4),
                    "chosen": " yes" * (1 + i % 3) + str(i),
                    "rejected": " no" * (1 + i % 5) + str(i),
                }
                for i in range(first, first + n)
            ]
        )

    return make


@pytest.fixture(scope="session")
def make_env(
    make_tokenizer: Callable[..., PreTrainedTokenizerBase], make_rows: Callable[..., Dataset]
) -> Callable[..., PreferenceGym]:
    def make(train: int = 10, test: int = 5, batch: int = 4, **options: Any) -> PreferenceGym:
        tokenizer = options.pop("tokenizer", None) or make_tokenizer()
        return PreferenceGym(
            make_rows(train), make_rows(test, first=1000), tokenizer, data_batch_size_per_gpu=batch, **options
        )

    return make


@pytest.fixture(scope="session")
def assert_same_batch() -> Callable[[PreferenceExperiences, PreferenceExperiences], None]:
    def check(first: PreferenceExperiences, second: PreferenceExperiences) -> None:
        assert first.keys() == second.keys()
        for key, value in first.items():
            other = second[key]  # type: ignore[literal-required]
            if isinstance(value, torch.Tensor):
                assert value.dtype == other.dtype
                assert torch.equal(value, other), key
            else:
                assert value == other, key

    return check
