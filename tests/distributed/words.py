"""Text for the ranks of a test: words that tiny models know, with something to learn from them."""

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.distributed import work


def tokenizer() -> PreTrainedTokenizerFast:
    """Words ``w4`` ... and four special tokens."""
    words = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{i}" for i in range(4, work.VOCABULARY))]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def rows(count: int, seed: int) -> Dataset:
    """Pairs with something to learn, which are prompts with an answer too."""
    generator = torch.Generator().manual_seed(seed)

    def words(low: int, high: int) -> str:
        length = int(torch.randint(1, 7, (), generator=generator))
        return " ".join(f"w{i}" for i in torch.randint(low, high, (length,), generator=generator).tolist())

    return Dataset.from_list(
        [{"prompt": words(4, 97) + " ", "chosen": words(4, 50), "rejected": words(50, 97)} for _ in range(count)]
    )


def low_words(completion: str, answer: str, question: str) -> float:
    """Reward: which part of a completion is words below ``w50``."""
    words = [word for word in completion.split() if word.startswith("w")]
    return sum(int(word[1:]) < 50 for word in words) / len(words) if words else 0.0
