"""What scoring needs to know of a Transformers causal language model: its body, its head and its limits."""

import inspect
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from agiledpo.scoring.head import LMHead


@dataclass(frozen=True)
class CausalLM:
    """A causal language model taken apart for scoring.

    Attributes:
        model: The whole model.
        body: The part that ends in the final hidden states.
        head: The way from there to logits; None if it could not be reproduced, then the model's own logits are used.
        max_positions: Longest sequence the model's configuration allows, tokens; None if it names no limit.
        takes_positions: Whether the body accepts ``position_ids``.
        vocabulary: Number of tokens that the model embeds.
    """

    model: PreTrainedModel
    body: nn.Module
    head: LMHead | None
    max_positions: int | None
    takes_positions: bool
    vocabulary: int

    @staticmethod
    def of(model: PreTrainedModel) -> "CausalLM":
        """Take ``model`` apart and check, on a few tokens, that body and head give the model's own logits."""
        config = model.config.get_text_config().to_dict()
        body = model.base_model
        head: LMHead | None = _head(model, config)
        if head is None or not _reproduces_logits(model, body, head):
            warnings.warn(
                f"{type(model).__name__} computes its logits in a way agiledpo does not know, so its own forward pass "
                "is used for them. Results are the same; memory grows with sequence length x vocabulary.",
                stacklevel=2,
            )
            head = None
        return CausalLM(
            model=model,
            body=body,
            head=head,
            max_positions=config.get("max_position_embeddings") or config.get("n_positions"),
            takes_positions="position_ids" in inspect.signature(body.forward).parameters,
            vocabulary=embedding_rows(model),
        )

    def hidden_states(self, input_ids: Tensor, position_ids: Tensor | None) -> Tensor:
        """Final hidden states, (rows, T, H)."""
        return self.body(input_ids=input_ids, **self._call(position_ids)).last_hidden_state

    def logits(self, input_ids: Tensor, position_ids: Tensor | None) -> Tensor:
        """The model's own logits, (rows, T, V)."""
        return self.model(input_ids=input_ids, **self._call(position_ids)).logits

    def _call(self, position_ids: Tensor | None) -> dict[str, Any]:
        # Attention caches would only hold memory here.
        positions = {"position_ids": position_ids} if self.takes_positions and position_ids is not None else {}
        return {"use_cache": False, **positions}


def embedding_rows(model: PreTrainedModel) -> int:
    """Number of tokens that a model embeds."""
    return cast(nn.Embedding, model.get_input_embeddings()).weight.shape[0]


def _head(model: PreTrainedModel, config: Mapping[str, Any]) -> LMHead | None:
    scale = config.get("logit_scale") or 1.0
    if config.get("logits_scaling"):
        scale /= config["logits_scaling"]
    return LMHead(model.get_output_embeddings(), scale=scale, softcap=config.get("final_logit_softcapping"))


@torch.no_grad()
def _reproduces_logits(model: PreTrainedModel, body: nn.Module, head: LMHead) -> bool:
    was_training = model.training
    model.eval()
    try:
        ids = torch.arange(1, 5, device=model.device)[None] % embedding_rows(model)
        expected = model(input_ids=ids, use_cache=False).logits.double()
        actual = head.logits(body(input_ids=ids, use_cache=False).last_hidden_state).double()
    finally:
        model.train(was_training)
    scale = expected.abs().max().clamp_min(1.0)
    tolerance = 1e-4 if model.dtype in (torch.float32, torch.float64) else 3e-2
    return expected.shape == actual.shape and bool((expected - actual).abs().max() <= tolerance * scale)
