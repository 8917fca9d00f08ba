"""Saved adapters of random weights, really written by PEFT."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

IDS = torch.arange(3, 12)[None]


@pytest.fixture
def save_with_peft(tiny_model, tmp_path) -> Callable[..., tuple[Path, Tensor]]:
    """Save a LoRA adapter with PEFT: ``save_with_peft(name="saved", r=8, ...)`` gives its directory and PEFT's logits.

    ``base`` holds arguments of ``tiny_model``, ``pickled`` writes ``adapter_model.bin``.
    """

    def make(
        name: str = "saved", *, base: dict[str, object] | None = None, pickled: bool = False, **config: object
    ) -> tuple[Path, Tensor]:
        model = get_peft_model(tiny_model(**(base or {})), LoraConfig(task_type="CAUSAL_LM", **config))
        generator = torch.Generator().manual_seed(5)
        for key, parameter in model.named_parameters():
            if parameter.requires_grad and "magnitude" not in key:
                noise = torch.randn(parameter.shape, generator=generator) * 0.2
                parameter.data.copy_(noise if "lora_" in key else parameter.data + noise)
        model.eval().save_pretrained(tmp_path / name, safe_serialization=not pickled)
        with torch.no_grad():
            return tmp_path / name, model(IDS).logits

    return make
