"""A model with one LoRA adapter of random weights."""

from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model


@pytest.fixture
def lora_model(tiny_model) -> Callable[..., PeftModel]:
    """Make it: ``lora_model("llama", dtype=torch.float32, layers=2, **arguments of LoraConfig)``."""

    def make(
        architecture: str = "llama", *, dtype: torch.dtype = torch.float32, layers: int = 2, **config: object
    ) -> PeftModel:
        settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **config}
        depth = {} if architecture == "gpt2" else {"num_hidden_layers": layers}
        model = get_peft_model(tiny_model(architecture, dtype=dtype, **depth), LoraConfig(**settings))
        generator = torch.Generator().manual_seed(5)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
        return model.eval()

    return make
