"""Useful operations against numbers worked out by hand, and against torch's own counter."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig

from benchmarking.workload import REFERENCE, TRAINING, MatrixWork, matrix_work, matrix_work_of

# hidden 32, intermediate 48, 2 layers, 4 heads and 2 key-value heads of 8, vocabulary 97
LLAMA_LAYER = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 48


@pytest.mark.parametrize("tied", [True, False])
def test_a_tiny_llama_by_hand(tiny_model, tied):
    work = matrix_work(tiny_model("llama", tie_word_embeddings=tied))
    assert work.decoder == {(32, 32): 4, (32, 16): 4, (32, 48): 4, (48, 32): 2}
    assert work.decoder_parameters == 2 * LLAMA_LAYER
    assert work.head == (32, 97)


def test_gpt2_keeps_its_layers_transposed(tiny_model):
    work = matrix_work(tiny_model("gpt2"))
    assert work.decoder == {(32, 96): 2, (32, 32): 2, (32, 128): 2, (128, 32): 2}


def test_smollm2_from_its_config_alone():
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
    )
    work = matrix_work_of(config)
    assert work.decoder_parameters == 106_168_320
    assert work.head == (576, 49152)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen2"])
def test_one_forward_pass_is_what_torch_counts(tiny_model, architecture):
    model = tiny_model(architecture)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(input_ids=torch.arange(1, 12)[None], use_cache=False)
    counted = counter.get_flop_counts()["Global"]
    products = sum(flops for operation, flops in counted.items() if operation.__name__ in ("mm", "addmm"))
    assert products == matrix_work(model).operations(tokens=11, completion_tokens=11, factor=REFERENCE)


def test_training_a_pair_and_its_reference():
    work = MatrixWork({(3, 5): 2}, (3, 7))
    assert work.operations(10, 4) == 6 * (30 * 10 + 21 * 4)
    assert work.operations(10, 4, TRAINING) == 4 * (30 * 10 + 21 * 4)


def test_the_floor_takes_each_shape_at_its_own_rate():
    work = MatrixWork({(3, 5): 2, (5, 3): 1}, (3, 7))
    seconds = work.floor_seconds(10, 4, {(3, 5): 100.0, (5, 3): 10.0, (3, 7): 2.0}, REFERENCE)
    assert seconds == pytest.approx(2 * 10 * 30 / 100 + 2 * 10 * 15 / 10 + 2 * 4 * 21 / 2)
    even = work.floor_seconds(10, 4, dict.fromkeys(work.shapes, 50.0))
    assert even == pytest.approx(work.operations(10, 4) / 50)
