"""What scoring needs to know of a Transformers causal language model: its body, its head and its limits."""

import inspect
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, cast

from torch import Tensor, nn
from transformers import PreTrainedModel

from agiledpo.distributed.sharded import Shards, shape_of, whole
from agiledpo.layers import PLAIN, Elementwise, FastLayers, compiled
from agiledpo.layers.replace import can_stream_float32
from agiledpo.scoring import flex, probe
from agiledpo.scoring.attention import packed_attention
from agiledpo.scoring.head import LMHead
from agiledpo.scoring.layout import Layout


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
        packs: Whether packed rows give the hidden states of separate ones, so that a pair can share its prompt.
        layers: Faster forward passes for its layers; None leaves them alone.
        torch_compiler: Mode of ``torch.compile`` for the formulas between the matrix products; None for none.
    """

    model: PreTrainedModel
    body: nn.Module
    head: LMHead | None
    max_positions: int | None
    takes_positions: bool
    vocabulary: int
    packs: bool
    layers: FastLayers | None = None
    torch_compiler: str | None = None

    @staticmethod
    def of(model: PreTrainedModel, *, fast_layers: bool = False, torch_compiler: str | None = None) -> "CausalLM":
        """Take ``model`` apart and check on a few tokens that the parts do what the whole does.

        Args:
            model: The model, with its PEFT layers if it has any.
            fast_layers: Replace the forward passes of known layers, see :class:`agiledpo.layers.FastLayers`.
            torch_compiler: Mode of ``torch.compile`` for the formulas between the matrix products; None runs them as
                they are.
        """
        elementwise = PLAIN if torch_compiler is None else compiled(torch_compiler)
        config = model.config.get_text_config().to_dict()
        lm = CausalLM(
            model=model,
            body=model.base_model,
            head=_head(model, config, elementwise),
            max_positions=config.get("max_position_embeddings") or config.get("n_positions"),
            takes_positions="position_ids" in inspect.signature(model.base_model.forward).parameters,
            vocabulary=embedding_rows(model),
            packs=False,
            torch_compiler=torch_compiler,
        )
        if not probe.reproduces_logits(lm):
            warnings.warn(
                f"{type(model).__name__} computes its logits in a way agiledpo does not know, so its own forward pass "
                "is used for them. Results are the same; memory grows with sequence length x vocabulary.",
                stacklevel=2,
            )
            lm = replace(lm, head=None)
        # Attention in chunks is a matter of masks, which packed rows bring themselves.
        elif config.get("attention_chunk_size") is None:
            lm = replace(lm, packs=probe.packs(lm, window=_sliding_window(config)))
            flex.prepare(model.device, model.dtype)
        return lm._with_layers(elementwise) if fast_layers else lm

    def _with_layers(self, elementwise: Elementwise) -> "CausalLM":
        """The same with faster layers; with a float32 residual stream where the model allows it."""
        # Without a head of ours the stream would end in the model's own low-precision head.
        for stream in (True, False) if self.head is not None and can_stream_float32(self.model) else (False,):
            faster = replace(self, layers=FastLayers(self.model, elementwise=elementwise, float32_stream=stream))
            if probe.agrees(faster, self):
                return faster
        return self

    def at_temperature(self, temperature: float) -> "CausalLM":
        """The same with a head whose logits are divided by a temperature; the model's own logits never are.

        Args:
            temperature: Larger than 0.
        """
        return self if self.head is None else replace(self, head=replace(self.head, temperature=temperature))

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Put packed attention and faster layers in place; keep it open until after ``backward``."""
        shards = Shards.of(self.model)
        with (
            self.whole_head(),
            packed_attention(self.model) if self.packs else nullcontext(),
            nullcontext() if self.layers is None else self.layers.installed(),
        ):
            yield
        if shards is not None:
            shards.rest()

    @contextmanager
    def whole_head(self) -> Iterator[None]:
        """Have the head's weights in this process; inside, sessions of a sharded model do not gather them anew."""
        with whole(self.model, [] if self.head is None else self.head.module.parameters()):
            yield

    def hidden_states(self, layout: Layout, *, positions: bool = True) -> Tensor:
        """Final hidden states, (rows, T, H).

        Args:
            layout: What goes through the model; packed rows need :func:`packed_attention`.
            positions: Hand over position ids; padded rows can do without.
        """
        if (shards := Shards.of(self.model)) is not None:
            shards.begin_pass()
        return self.body(**self._inputs(layout, positions)).last_hidden_state

    def logits(self, layout: Layout, *, positions: bool = True) -> Tensor:
        """The model's own logits, (rows, T, V)."""
        return self.model(**self._inputs(layout, positions)).logits

    def _inputs(self, layout: Layout, positions: bool) -> dict[str, Any]:
        # Attention caches would only hold memory here.
        inputs: dict[str, Any] = {"input_ids": layout.input_ids, "use_cache": False}
        if self.takes_positions and (positions or layout.packed is not None):
            inputs["position_ids"] = layout.position_ids
        if layout.packed is not None:
            inputs["packed_rows"] = layout.packed
        return inputs


def _sliding_window(config: Mapping[str, Any]) -> int | None:
    """The window that some layer attends within; None if every layer sees everything."""
    if config.get("use_sliding_window") is False:
        return None
    layers = config.get("layer_types")
    return (config.get("sliding_window") or None) if layers is None or "sliding_attention" in layers else None


def embedding_rows(model: PreTrainedModel) -> int:
    """Number of tokens that a model embeds."""
    return shape_of(cast(nn.Embedding, model.get_input_embeddings()).weight)[0]


def _head(model: PreTrainedModel, config: Mapping[str, Any], elementwise: Elementwise) -> LMHead:
    scale = config.get("logit_scale") or 1.0
    if config.get("logits_scaling"):
        scale /= config["logits_scaling"]
    return LMHead(
        model.get_output_embeddings(),
        scale=scale,
        softcap=config.get("final_logit_softcapping"),
        elementwise=elementwise,
    )
