"""Which layers of a model get a faster forward pass, and for how long."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from agiledpo.layers import gating, lora, norms
from agiledpo.layers.elementwise import PLAIN, Elementwise
from agiledpo.layers.forwards import replaced_forwards

Forward = Callable[..., Any]


class FastLayers:
    """Faster forward passes for a model's LoRA layers, norms and gated feed-forward blocks.

    A layer is replaced by its class, and only if its new forward pass gives, on a few random rows, what its own gives.
    Nothing but the attribute ``forward`` of these modules changes, and only inside :meth:`installed`.

    Args:
        model: The model.
        elementwise: How to run the formulas between the matrix products.
        float32_stream: Carry the residual stream of a bfloat16 or float16 model in float32: the embedding's output is
            widened, norms read float32 and give the products their own precision. Every branch is then rounded once,
            and its sum with the stream not at all.
    """

    def __init__(
        self, model: PreTrainedModel, *, elementwise: Elementwise = PLAIN, float32_stream: bool = False
    ) -> None:
        self.model = model
        self.elementwise = elementwise
        self.float32_stream = float32_stream
        self._equal: dict[type[nn.Module], bool] = {}

    @property
    def numerics(self) -> str:
        """How the layers compute, as far as it shows in the last digits of their results."""
        return "fast, float32 stream" if self.float32_stream else "fast"

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Replace the forward passes; keep it open until after ``backward``, which may run them again."""
        with replaced_forwards(self._replacements()):
            yield

    def _replacements(self) -> list[tuple[nn.Module, Forward]]:
        pairs: list[tuple[nn.Module, Forward]] = []
        outside_layers = _modules_outside_layers(self.model)
        for module in self.model.modules():
            if "forward" in vars(module):
                continue  # somebody else, Accelerate's hooks for one, has put a forward pass there
            if lora.fits(module):
                candidate = partial(lora.forward, cast(LoraLinear, module))
            elif gating.fits(module):
                candidate = partial(gating.forward, module, elementwise=self.elementwise)
            elif norms.fits(module):
                candidate = partial(norms.forward, module, elementwise=self.elementwise)
            else:
                continue
            if not self._gives_the_same(module, candidate):
                continue
            if self.float32_stream and norms.fits(module) and module in outside_layers:
                # The last norm feeds the head, which takes float32.
                candidate = partial(norms.forward, module, elementwise=self.elementwise, dtype=torch.float32)
            pairs.append((module, candidate))
        if self.float32_stream:
            embedding = self.model.get_input_embeddings()
            pairs.append((embedding, partial(_widened, embedding.forward)))
        return pairs

    @torch.no_grad()
    def _gives_the_same(self, module: nn.Module, candidate: Forward) -> bool:
        kind = type(module)
        if kind not in self._equal:
            parameter = next(module.parameters())
            generator = torch.Generator().manual_seed(0)
            rows = torch.randn(1, 3, _width(module), generator=generator).to(parameter.device, self.model.dtype)
            expected, actual = module(rows).double(), candidate(rows).double()
            tolerance = 1e-4 if self.model.dtype in (torch.float32, torch.float64) else 0.03
            self._equal[kind] = bool((actual - expected).norm() <= tolerance * expected.norm())
        return self._equal[kind]


def can_stream_float32(model: PreTrainedModel) -> bool:
    """Whether a model is of low precision and all its norms are known here, so that its stream can be float32."""
    if model.dtype not in (torch.bfloat16, torch.float16):
        return False
    if type(model.get_input_embeddings()).__module__.startswith("peft."):
        return False
    names = [module for module in model.modules() if "norm" in type(module).__name__.lower()]
    return bool(names) and all(norms.fits(module) for module in names)


def _widened(forward: Callable[[Tensor], Tensor], ids: Tensor) -> Tensor:
    return forward(ids).float()


def _width(module: nn.Module) -> int:
    """Channels that a layer reads."""
    if norms.fits(module):
        return len(cast(Tensor, module.weight))
    layer = module.gate_proj if gating.fits(module) else module
    return cast(nn.Linear, layer).in_features


def _modules_outside_layers(model: nn.Module) -> set[nn.Module]:
    inside = {
        module
        for layer in model.modules()
        if isinstance(layer, GradientCheckpointingLayer)
        for module in layer.modules()
    }
    return set(model.modules()) - inside
