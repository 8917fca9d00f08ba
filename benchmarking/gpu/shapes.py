"""Models of real shapes with random weights: speed and memory do not depend on what the weights are."""

from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2Config

LORA_RANK = 16


@dataclass(frozen=True)
class Shape:
    """Dimensions of a Qwen2 model.

    Attributes:
        name: The model that has this shape.
        hidden: Width of the residual stream.
        layers: Number of decoder layers.
        heads: Query heads; each is ``hidden / heads`` wide.
        key_heads: Key and value heads.
        intermediate: Width of the gated feed-forward layer.
        vocabulary: Tokens.
        tied: Whether the head is the input embedding.
    """

    name: str
    hidden: int
    layers: int
    heads: int
    key_heads: int
    intermediate: int
    vocabulary: int
    tied: bool


# The dimensions of the models' published config.json files.
SHAPES = {
    shape.name: shape
    for shape in (
        Shape("tiny", 64, 2, 4, 2, 128, 500, tied=True),
        Shape("Qwen2.5-0.5B", 896, 24, 14, 2, 4864, 151936, tied=True),
        Shape("Qwen2.5-3B", 2048, 36, 16, 2, 11008, 151936, tied=True),
        Shape("Qwen2.5-7B", 3584, 28, 28, 4, 18944, 152064, tied=False),
    )
}


def make_config(shape: Shape) -> Qwen2Config:
    """The Transformers configuration of a shape."""
    return Qwen2Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads,
        max_position_embeddings=32768,
        rms_norm_eps=1e-6,
        tie_word_embeddings=shape.tied,
        use_cache=False,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )


def make_model(shape: Shape, device: torch.device, dtype: torch.dtype, seed: int = 0) -> PreTrainedModel:
    """A model with random weights, made where it will run; the same weights for the same seed and device.

    Args:
        shape: Its dimensions.
        device: Where its weights are.
        dtype: Their dtype.
        seed: Seed of the weights.
    """
    with torch.random.fork_rng(), device:
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            make_config(shape), dtype=dtype, attn_implementation="sdpa"
        )
    return model.eval()
