"""A tiny random model with synthetic preferences that it can learn, so that a study of many seeds takes minutes."""

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
WORDS = 60


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Words ``w0`` ... and four special tokens."""
    words = [*SPECIAL, *(f"w{number}" for number in range(WORDS))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def make_tiny_model() -> PreTrainedModel:
    """A random Llama of two layers."""
    config = LlamaConfig(
        vocab_size=len(SPECIAL) + WORDS,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():
        if parameter.dim() > 1:  # as initialised, all words would be equally likely whatever stands before them
            parameter.data.mul_(6)
    return model.eval()


def make_pairs(count: int) -> list[dict[str, str]]:
    """Pairs of completions of equal length; the same for the same count.

    Half of the words are good: of chosen completions 5 of 6 words, of rejected ones 1 of 6. So there is something to
    learn, word by word, and nobody is always right.

    Args:
        count: How many.
    """
    rng = np.random.default_rng(0)
    good, bad = np.split(rng.permutation(WORDS), 2)

    def words(length: int, share: float) -> np.ndarray:
        return np.where(rng.random(length) < share, rng.choice(good, length), rng.choice(bad, length))

    pairs = []
    for _ in range(count):
        prompt, length = rng.integers(WORDS, size=4), int(rng.integers(1, 6))
        chosen, rejected = words(length, 5 / 6), words(length, 1 / 6)
        pairs.append({"prompt": _text(prompt) + " ", "chosen": _text(chosen), "rejected": _text(rejected)})
    return [pair for pair in pairs if pair["chosen"] != pair["rejected"]]


def _text(words: np.ndarray) -> str:
    return " ".join(f"w{word}" for word in words)
