"""The memory estimate against real tensors: exact where it counts, near where it is a formula."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig
from transformers import AutoConfig, AutoModelForCausalLM

from agiledpo.algorithms import DPO
from agiledpo.distributed.memory import (
    Processes,
    Workload,
    activations,
    estimate,
    layer_activations,
    ways_out,
    workspace,
)
from agiledpo.distributed.model_sizes import count
from agiledpo.scoring import PreferenceBatch
from benchmarking.live_tensors import PeakOfTensors

CONFIGS = {
    "llama": AutoConfig.for_model(
        "llama",
        vocab_size=512,
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
    ),
    "qwen3": AutoConfig.for_model(
        "qwen3",
        vocab_size=512,
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=16,
        tie_word_embeddings=True,
    ),
    "gpt2": AutoConfig.for_model(
        "gpt2", vocab_size=512, n_embd=128, n_layer=4, n_head=8, bos_token_id=1, eos_token_id=2, pad_token_id=0
    ),
}
SEVEN_BILLION = AutoConfig.for_model("llama", vocab_size=32000)


def lora(dropout: float = 0.0, **arguments: object) -> LoraConfig:
    return LoraConfig(
        **{"r": 8, "target_modules": "all-linear", "lora_dropout": dropout, "task_type": "CAUSAL_LM", **arguments}
    )


def pairs(rows: int, prompt: int, completion: int) -> PreferenceBatch:
    generator = torch.Generator().manual_seed(0)

    def draw(length: int) -> list[torch.Tensor]:
        return [torch.randint(3, 512, (length,), generator=generator) for _ in range(rows)]

    labels = [f"pair {row}" for row in range(rows)]
    return PreferenceBatch(draw(prompt), draw(completion), draw(completion), labels)


def nbytes(tensors) -> int:
    return sum(tensor.numel() * tensor.itemsize for tensor in tensors)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_weights_adapters_and_moments_are_exact(architecture):
    config, dtype = CONFIGS[architecture], torch.bfloat16
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    base_bytes = nbytes(model.parameters()) + nbytes(model.buffers())
    # Said beforehand, as PEFT corrects it in the first adapter only, whose reference the others then do not share.
    config_of_lora = lora(fan_in_fan_out=architecture == "gpt2")
    agents = DPO.population(3, actor_network=model, lora_config=config_of_lora, batch_size=2)
    for agent in agents:
        agent.learn(pairs(2, 3, 4))

    found = estimate(count(config, config_of_lora, dtype), Workload(2, 7, device="cpu"), Processes(agents=3))

    adapters = [p for name, p in model.named_parameters() if "lora_" in name]
    moments = [
        state[name]
        for agent in agents
        for state in agent.optimizer.state.values()
        for name in ("exp_avg", "exp_avg_sq")
    ]
    assert found.base == base_bytes
    assert found.adapters + found.references == nbytes(adapters)  # three actors and the reference that they share
    assert found.references == found.gradients == nbytes(adapters) // 4
    assert found.moments == nbytes(moments)
    assert (found.gathered, found.communication, found.context) == (0, 0, 0)


def saved_bytes(agent: DPO, batch: PreferenceBatch) -> int:
    """Bytes of what autograd saves in a step, each storage once; not of the model's parameters."""
    staying = {parameter.untyped_storage().data_ptr() for parameter in agent.base.model.parameters()}
    kept = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in staying:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # the tensor, so that its place is not used again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        agent.learn(batch)
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("architecture", "dtype", "dropout"),
    [
        ("llama", torch.float32, 0.0),
        ("llama", torch.bfloat16, 0.0),
        ("llama", torch.bfloat16, 0.1),
        ("qwen3", torch.bfloat16, 0.0),
        ("gpt2", torch.float32, 0.1),
    ],
)
def test_activations_are_near_what_autograd_saves_and_the_peak_near_that_of_all_tensors(
    architecture, dtype, dropout, checkpointing
):
    config, batch = CONFIGS[architecture], pairs(4, 40, 80)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    agent = DPO(
        actor_network=model, lora_config=lora(dropout), batch_size=4, gradient_checkpointing=checkpointing, lr=1e-3
    )
    agent.learn(batch)  # the reference's scores are known from here on, and the moments are there
    sizes = count(config, lora(dropout), dtype)
    workload = Workload(4, 120, prompt_length=40, gradient_checkpointing=checkpointing, device="cpu")

    expected = activations(sizes, workload)
    # What checkpointing computes again it keeps in its own way, which the hooks do not see.
    again = layer_activations(sizes, workload) if checkpointing else 0
    assert 0.8 < (expected - again) / saved_bytes(agent, batch) < 1.25

    peak = PeakOfTensors()
    with peak:
        agent.learn(batch)
    assert 0.8 < (expected + workspace(sizes, workload) + sizes.adapter_bytes) / peak.peak < 1.25


def test_layers_that_read_one_tensor_keep_it_once():
    sizes = count(CONFIGS["llama"], lora(), torch.float32)
    layer = [(adapted.inputs, adapted.shares_input) for adapted in sizes.adapted[:7]]
    # q, k, v; o; gate, up; down
    assert layer == [(128, False), (128, True), (128, True), (128, False), (128, False), (128, True), (320, False)]
    assert len(sizes.adapted) == 4 * 7


def test_sizes_of_a_model_that_is_never_made():
    sizes = count(SEVEN_BILLION, lora(r=16), torch.bfloat16)
    assert sizes.base_elements == 6_738_415_616
    attention, feed_forward = 4 * (4096 + 4096), 3 * (4096 + 11008)
    assert sizes.adapter_elements == 32 * 16 * (attention + feed_forward)
    assert sizes.adapter_bytes == 4 * sizes.adapter_elements
    assert sizes.largest_layer == 4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096
    assert sizes.head == 32000 * 4096


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_stage_3_divides_the_base_and_gathers_the_head_and_a_layer(ranks):
    sizes = count(CONFIGS["llama"], lora(), torch.bfloat16)
    model = AutoModelForCausalLM.from_config(CONFIGS["llama"], dtype=torch.bfloat16)
    processes = Processes(ranks, zero_stage=3, max_live_parameters=1, persistence_threshold=1000)
    found = estimate(sizes, Workload(1, 8), processes)

    parts = [len(p.flatten().tensor_split(1)[0]) for p in model.parameters()]
    small = sum(p.numel() for p in model.parameters() if p.numel() <= 1000)
    large = sum(-(-elements // ranks) for elements in parts if elements > 1000)
    assert found.base == 2 * (small + large) + nbytes(model.buffers())
    layer = sum(p.numel() for p in model.model.layers[0].parameters())
    assert found.gathered == 2 * (512 * 128 + layer)
    # Two moments and a copy of the part: AdamW's share.
    assert found.moments == 3 * 4 * sum(-(-elements // ranks) for elements in sizes.adapter)


@given(
    rows=st.integers(1, 8),
    length=st.integers(2, 4096),
    prompt=st.integers(0, 4095),
    ranks=st.integers(1, 64),
    agents=st.integers(1, 8),
    stage=st.integers(0, 3),
)
def test_more_of_anything_needs_no_less(rows, length, prompt, ranks, agents, stage):
    workload = Workload(rows, length, prompt_length=min(prompt, length - 1))
    processes = Processes(ranks, zero_stage=stage, agents=agents)
    found = estimate(SIZES, workload, processes)
    assert found.total == sum(found.parts.values())
    assert workload.tokens <= rows * 2 * length
    assert estimate(SIZES, Workload(rows + 1, length), processes).total >= found.total
    assert estimate(SIZES, workload, Processes(ranks, zero_stage=stage, agents=agents + 1)).total > found.total
    assert ranks * found.base >= SIZES.base_bytes
    unshared = Workload(rows, length, prompt_length=workload.prompt_length, shared_prompts=False)
    assert unshared.tokens == rows * 2 * length


SIZES = count(CONFIGS["llama"], lora(), torch.bfloat16)


def test_ways_out_fit():
    sizes = count(SEVEN_BILLION, lora(r=16), torch.bfloat16)
    workload, processes = Workload(8, 2048, gradient_checkpointing=False), Processes(8, agents=4)
    needed = estimate(sizes, workload, processes).total
    assert needed > 80 * 2**30
    ways = ways_out(sizes, workload, processes, 80 * 2**30)
    assert [way.change.split("=")[0] for way in ways] == ["gradient checkpointing", "micro_batch_size_per_gpu"]
    assert all(way.total <= 80 * 2**30 for way in ways)
    rows = int(ways[1].change.split("=")[1])
    bigger = Workload(rows + 1, 2048, gradient_checkpointing=False)
    assert estimate(sizes, bigger, processes).total > 80 * 2**30

    (together,) = ways_out(sizes, workload, processes, 12 * 2**30)  # less than the weights
    assert together.change == "ZeRO-3, gradient checkpointing and micro_batch_size_per_gpu=1"
    assert not ways_out(sizes, workload, Processes(), 2**30)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Workload(0, 8), "micro_batch_size=0"),
        (lambda: Workload(1, 8, prompt_length=8), "prompt_length=8"),
        (lambda: Processes(zero_stage=4), "zero_stage=4"),
        (lambda: Processes(2, zero_stage=2, parallel="population"), "parallel='population' with zero_stage=2"),
        (lambda: count(CONFIGS["llama"], lora(target_modules=["nothing"]), torch.float32), "nothing"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
