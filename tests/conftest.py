"""Real tiny models and batches that every test folder uses."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from collections.abc import Callable, Iterator

import pytest
import torch
from datasets import Dataset
from hypothesis import settings
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from agiledpo.cache import cache_directory

# What a build says must not depend on luck, or on who else uses the machine: the examples of a property follow from its
# test, and none has a time limit. HYPOTHESIS_PROFILE=explore looks for new ones; what it finds becomes an @example.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("explore", derandomize=False, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

VOCABULARY = 97

_SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "max_position_embeddings": 64,
}
_OVERRIDES: dict[str, dict[str, object]] = {
    "gpt2": {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "mistral": {"sliding_window": 6},
    "gemma2": {"sliding_window": 6, "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 8},
    "cohere": {"logit_scale": 0.25},
    "granite": {"logits_scaling": 4.0},
    "phi3": {"num_key_value_heads": 4},
    "llama": {"tie_word_embeddings": False},
    "qwen2": {"tie_word_embeddings": True},
}


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what tests tokenise out of the user's cache, but use the converted embedded model that is there."""
    embedded = cache_directory("embedded")
    embedded.mkdir(parents=True, exist_ok=True)
    directory = tmp_path_factory.mktemp("cache")
    (directory / "embedded").symlink_to(embedded)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AGILEDPO_CACHE", str(directory))
        yield


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Tiny matrices gain nothing from threads, and results must not depend on their number."""
    torch.set_num_threads(1)


@pytest.fixture
def tiny_model() -> Callable[..., PreTrainedModel]:
    """Make a tiny random model: ``tiny_model("llama", dtype=torch.float32, seed=0, **config)``."""

    def make(
        architecture: str = "llama", *, dtype: torch.dtype = torch.float32, seed: int = 0, **config: object
    ) -> PreTrainedModel:
        small = {} if architecture == "gpt2" else _SMALL
        settings = AutoConfig.for_model(architecture, **{**small, **_OVERRIDES.get(architecture, {}), **config})
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(settings, dtype=torch.float32)
            # The default initialisation makes all tokens nearly equally likely: nothing to be wrong about.
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.data.mul_(6)
        return model.to(dtype)

    return make


@pytest.fixture
def lora() -> LoraConfig:
    """LoRA of rank 4 on all linear layers, without dropout."""
    return LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")


@pytest.fixture
def make_experiences() -> Callable[..., dict[str, Tensor]]:
    """Make AgileRL's padded dictionary from lengths: ``make_experiences([(prompt, chosen, rejected), ...])``."""

    def make(lengths: list[tuple[int, int, int]], *, seed: int = 0, left: bool = False) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)

        def draw(n: int) -> Tensor:
            return torch.randint(3, VOCABULARY, (n,), generator=generator)

        width = max(p + max(c, r) for p, c, r in lengths)
        rows: dict[str, list[Tensor]] = {"chosen": [], "rejected": []}
        for prompt_length, chosen_length, rejected_length in lengths:
            prompt = draw(prompt_length)
            rows["chosen"].append(torch.cat([prompt, draw(chosen_length)]))
            rows["rejected"].append(torch.cat([prompt, draw(rejected_length)]))

        def pad(ids: Tensor) -> Tensor:
            space = width - len(ids)
            return torch.nn.functional.pad(ids, (space, 0) if left else (0, space))

        experiences = {"prompt_lengths": torch.tensor([p for p, _, _ in lengths])}
        for side, sequences in rows.items():
            experiences[f"{side}_input_ids"] = torch.stack([pad(ids) for ids in sequences])
            experiences[f"{side}_attention_mask"] = torch.stack([pad(torch.ones_like(ids)) for ids in sequences])
        return experiences

    return make


@pytest.fixture
def demonstrations() -> Callable[..., dict[str, Tensor]]:
    """Make AgileRL's padded dictionary for SFT from lengths: ``demonstrations([(prompt, completion), ...])``."""

    def make(lengths: list[tuple[int, int]], *, seed: int = 0, left: bool = False) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        rows = [
            torch.randint(3, VOCABULARY, (prompt + completion,), generator=generator) for prompt, completion in lengths
        ]
        width = max(map(len, rows))

        def pad(ids: Tensor) -> Tensor:
            space = width - len(ids)
            return torch.nn.functional.pad(ids, (space, 0) if left else (0, space))

        return {
            "input_ids": torch.stack([pad(ids) for ids in rows]),
            "attention_mask": torch.stack([pad(torch.ones_like(ids)) for ids in rows]),
            "prompt_lengths": torch.tensor([prompt for prompt, _ in lengths]),
        }

    return make


@pytest.fixture
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A real tokenizer of the tiny models' vocabulary: words ``w4`` ... ``w96`` and four special tokens."""
    words = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{i}" for i in range(4, VOCABULARY))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


@pytest.fixture
def make_pairs() -> Callable[..., Dataset]:
    """Make a dataset of text pairs in the tiny tokenizer's words: ``make_pairs(rows, seed=0)``.

    There is something to learn: chosen completions are of words below ``w50``, rejected ones of words from there on.
    """

    def make(rows: int, *, seed: int = 0) -> Dataset:
        generator = torch.Generator().manual_seed(seed)

        def words(low: int, high: int) -> str:
            length = int(torch.randint(1, 7, (), generator=generator))
            return " ".join(f"w{i}" for i in torch.randint(low, high, (length,), generator=generator).tolist())

        return Dataset.from_list(
            [{"prompt": words(4, 97) + " ", "chosen": words(4, 50), "rejected": words(50, 97)} for _ in range(rows)]
        )

    return make


@pytest.fixture
def randomise() -> Callable[..., None]:
    """Give an agent's adapter weights that differ from its reference: ``randomise(agent, "actor")``."""

    def fill(agent: "object", role: str = "actor", *, seed: int = 7, scale: float = 0.1) -> None:
        generator = torch.Generator().manual_seed(seed)
        for parameter in agent.adapters.own_parameters(role):  # type: ignore[attr-defined]
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * scale)

    return fill


@pytest.fixture
def no_lora_warning() -> Iterator[None]:
    """Silence the notice about the default LoRA configuration."""
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="No lora_config given")
        yield


@pytest.fixture
def trl_one_step() -> dict[str, object]:
    """Arguments for a trainer of TRL's that makes one plain step on the CPU and writes nothing."""
    return {
        "max_steps": 1,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "logging_steps": 1,
        "optim": "adamw_torch",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": [],
        "save_strategy": "no",
        "max_length": None,
        "max_grad_norm": 0.1,
        "weight_decay": 0.0,
    }
