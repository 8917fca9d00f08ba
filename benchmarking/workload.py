"""Useful floating-point operations of a preference pair: the work that cannot be left out.

A product of (n, in) with (in, out) is 2 n in out operations. LoRA needs the gradient of a frozen layer's input but not
of its weight, so a layer costs 4 in out per token to train (one product forward, one backward) and 2 in the reference
pass. The decoder's layers run over every token, with the prompt that both completions share counted once; the
language-model head only over completion tokens. Attention, adapters, norms and anything computed twice are not counted.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

Shape = tuple[int, int]

TRAINING = 4
REFERENCE = 2


@dataclass(frozen=True)
class MatrixWork:
    """The frozen matrices of a model.

    Attributes:
        decoder: How many linear layers of each (in, out) the decoder has.
        head: (hidden size, vocabulary) of the language-model head.
    """

    decoder: Mapping[Shape, int]
    head: Shape

    @property
    def decoder_parameters(self) -> int:
        """Weights of the decoder's linear layers."""
        return sum(rows * columns * count for (rows, columns), count in self.decoder.items())

    @property
    def shapes(self) -> list[Shape]:
        """All shapes that occur."""
        return [*self.decoder, self.head]

    def operations(self, tokens: float, completion_tokens: float, factor: int = TRAINING + REFERENCE) -> float:
        """Floating-point operations.

        Args:
            tokens: All tokens, the prompt of a pair counted once.
            completion_tokens: Those of them that belong to completions.
            factor: Operations per weight and token: `TRAINING`, `REFERENCE` or both.
        """
        head = self.head[0] * self.head[1]
        return factor * (self.decoder_parameters * tokens + head * completion_tokens)

    def floor_seconds(
        self,
        tokens: float,
        completion_tokens: float,
        rates: Mapping[Shape, float],
        factor: int = TRAINING + REFERENCE,
    ) -> float:
        """Seconds that the products alone take at the measured rate of each shape.

        Args:
            tokens: As for `operations`.
            completion_tokens: As for `operations`.
            rates: Operations per second of each of `shapes`.
            factor: As for `operations`.
        """
        decoder = sum(
            factor * tokens * rows * columns * count / rates[rows, columns]
            for (rows, columns), count in self.decoder.items()
        )
        return decoder + factor * completion_tokens * self.head[0] * self.head[1] / rates[self.head]


def matrix_work(model: PreTrainedModel) -> MatrixWork:
    """Read the matrices off a causal language model.

    Raises:
        ValueError: The model has no head, or no linear layers beside it.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise ValueError(f"{type(model).__name__} has no linear language-model head.")
    decoder = Counter(_linear_shapes(module for module in model.modules() if module is not head))
    if not decoder:
        raise ValueError(f"{type(model).__name__} has no linear layers beside its head.")
    return MatrixWork(dict(decoder), (head.in_features, head.out_features))


def matrix_work_of(model: str | Path | PreTrainedConfig) -> MatrixWork:
    """The same from a name, directory or config, without loading weights."""
    config = model if isinstance(model, PreTrainedConfig) else AutoConfig.from_pretrained(model)
    with torch.device("meta"):
        return matrix_work(AutoModelForCausalLM.from_config(config))


def _linear_shapes(modules: Iterable[nn.Module]) -> Iterable[Shape]:
    for module in modules:
        if isinstance(module, nn.Linear):
            yield module.in_features, module.out_features
        elif isinstance(module, Conv1D):  # GPT-2's linear layer, stored transposed
            yield module.weight.shape[0], module.weight.shape[1]
