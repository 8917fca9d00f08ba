"""Draw the picture of docs/monitoring.md: a run of four agents on a tiny random model, as it is two thirds through.

Usage: python scripts/make_live_view.py docs/images/live-view.svg
"""

import sys
from io import StringIO
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from rich.console import Console
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from typing_extensions import override

from agiledpo.algorithms import DPO
from agiledpo.algorithms.core.registry import HyperparameterConfig, RLParameter
from agiledpo.hpo import Mutations, TournamentSelection
from agiledpo.llm_envs import PreferenceGym
from agiledpo.training.display import LiveDisplay, Screen
from agiledpo.training.live_view import LiveView
from agiledpo.training.train_llm import finetune_llm_preference

WIDTH, HEIGHT = 100, 24
WORDS = 97


class Picture(Screen):
    """Draws the view of one moment.

    Args:
        path: The SVG file.
        share: When: the part of the run that is done.
    """

    def __init__(self, path: Path, share: float) -> None:
        self.path, self.share = path, share

    @override
    def show(self, view: LiveView) -> None:
        measured = all(standing.fitness is not None and standing.figures for standing in view.standings)
        if view.pace.share < self.share or not measured or self.path.exists():
            return
        console = Console(file=StringIO(), record=True, width=WIDTH, height=HEIGHT, force_terminal=True)
        console.print(view)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        console.save_svg(str(self.path), title="finetune_llm_preference")

    @override
    def say(self, text: str) -> None:
        print(text)

    @override
    def close(self) -> None:
        pass


def make_pairs(rows: int, seed: int) -> Dataset:
    """Pairs whose chosen completions have words of the first half of the vocabulary, three times in four."""
    generator = torch.Generator().manual_seed(seed)

    def words(low: int, high: int) -> str:
        length = int(torch.randint(2, 7, (), generator=generator))
        return " ".join(f"w{i}" for i in torch.randint(low, high, (length,), generator=generator).tolist())

    def pair() -> dict[str, str]:
        sides = [words(4, 50), words(50, WORDS)]
        turned = bool(torch.rand((), generator=generator) < 0.25)
        return {"prompt": words(4, WORDS) + " ", "chosen": sides[turned], "rejected": sides[not turned]}

    return Dataset.from_list([pair() for _ in range(rows)])


def main(path: Path) -> None:
    """Train, and draw on the way."""
    torch.manual_seed(0)
    vocabulary = {
        word: i for i, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *(f"w{i}" for i in range(4, WORDS))])
    }
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=WORDS, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        )
    )  # fmt: skip
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(6)
    agents = DPO.population(
        4, actor_network=model, lora_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
        lr=8e-3, batch_size=8, nll_alpha=0.0,
        hp_config=HyperparameterConfig(lr=RLParameter(min=1e-3, max=5e-2), beta=RLParameter(min=0.01, max=1.0)),
    )  # fmt: skip
    env = PreferenceGym(
        make_pairs(480, 0), make_pairs(128, 1), tokenizer, data_batch_size_per_gpu=16,
        validation_datasets={"other-words": make_pairs(48, 2)},
    )  # fmt: skip
    path.unlink(missing_ok=True)
    finetune_llm_preference(
        agents, env, evo_steps=5, evaluation_interval=2,
        tournament=TournamentSelection(2, True, 4, rand_seed=1),
        mutation=Mutations(no_mutation=0.2, rl_hp=0.8, rand_seed=1),
        observers=[LiveDisplay(Picture(path, share=0.6))], verbose=False,
    )  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]))
