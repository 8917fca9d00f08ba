"""The memory that one process needs, as a function of sizes, batch and processes.

Weights, adapters and moments are exact. Activations are a formula: that of Korthikanti et al. 2022, "Reducing
Activation Recomputation in Large Transformer Models" (https://arxiv.org/abs/2205.05198, section 4), term by term for
what is kept here, which differs from theirs: attention keeps no scores, keys may have fewer heads than queries, the
feed-forward layer has a gate, frozen weights need no inputs for derivatives of their own while LoRA's factors do, and
there are no logits (:mod:`agiledpo.scoring.head`). What generating takes, as GRPO does, is not in it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Literal

from agiledpo.distributed.model_sizes import ModelSizes

_FLOAT32 = 4
# What a process of CUDA holds before the first tensor: kernels, cuBLAS's workspace, NCCL's buffers.
_CUDA_CONTEXT = 2**30
# As in agiledpo.scoring.head: logits at a time on an accelerator and on a CPU, positions, and rows of float32 weights.
_BLOCK_LOGITS = {"cuda": 2**24, "cpu": 2**21}
_BLOCK_TOKENS = 2**13
_POSITIONS = 1024
# Buffers of the feed-forward layer's width that the gate's derivative has at once, in float32 beside the gradient.
_GATE_BUFFERS = 6


@dataclass(frozen=True)
class Workload:
    """What a process computes.

    Attributes:
        micro_batch_size: Rows in one forward pass.
        max_length: Most tokens of a prompt with one completion.
        prompt_length: Those of them that are the prompt; 0 is the worst case, in which nothing is shared.
        completions: Completions of a row: 2 for DPO, 1 for SFT, the size of a group for GRPO.
        shared_prompts: Whether the completions of a row go through the model with one prompt.
        gradient_checkpointing: Whether decoder layers are computed again in backward.
        device: Kind of device.
    """

    micro_batch_size: int
    max_length: int
    prompt_length: int = 0
    completions: int = 2
    shared_prompts: bool = True
    gradient_checkpointing: bool = True
    device: Literal["cpu", "cuda"] = "cuda"

    def __post_init__(self) -> None:
        for name in ("micro_batch_size", "max_length", "completions"):
            if vars(self)[name] < 1:
                raise ValueError(f"{name}={vars(self)[name]}; it must be at least 1.")
        if not 0 <= self.prompt_length < self.max_length:
            raise ValueError(
                f"prompt_length={self.prompt_length}; it must be at least 0 and below max_length={self.max_length}, "
                "which counts the prompt with its completion."
            )

    @property
    def tokens(self) -> int:
        """Tokens of a forward pass."""
        prompts = 1 if self.shared_prompts else self.completions
        completions = self.completions * (self.max_length - self.prompt_length)
        return self.micro_batch_size * (prompts * self.prompt_length + completions)

    @property
    def scored(self) -> int:
        """Tokens among them whose log-probabilities are computed."""
        return self.micro_batch_size * self.completions * (self.max_length - self.prompt_length)


@dataclass(frozen=True)
class Processes:
    """How a population is spread.

    Attributes:
        ranks: Processes.
        zero_stage: DeepSpeed's stage; 0 also for plain data-parallel processes.
        parallel: ``"data"``: every agent on all ranks; ``"population"``: agents are spread over the ranks.
        agents: Agents of the population.
        references: Reference adapters: 1 while all agents' are equal (one is held then), 0 if the bare base is the
            reference, as many as agents once references move.
        max_live_parameters: DeepSpeed's ``stage3_max_live_parameters``: elements that stay gathered under stage 3.
        persistence_threshold: DeepSpeed's ``stage3_param_persistence_threshold``: smaller parameters are never sharded.
    """

    ranks: int = 1
    zero_stage: int = 0
    parallel: Literal["data", "population"] = "data"
    agents: int = 1
    references: int = 1
    max_live_parameters: int = 10**9
    persistence_threshold: int = 10**5

    def __post_init__(self) -> None:
        for name in ("ranks", "agents"):
            if vars(self)[name] < 1:
                raise ValueError(f"{name}={vars(self)[name]}; it must be at least 1.")
        if self.zero_stage not in (0, 1, 2, 3):
            raise ValueError(f"zero_stage={self.zero_stage}; DeepSpeed's stages are 0, 1, 2 and 3.")
        if self.parallel == "population" and self.zero_stage:
            raise ValueError(
                f"parallel='population' with zero_stage={self.zero_stage}: an agent that learns on one rank has nobody "
                "to share its state with. Use parallel='data' with ZeRO, or no ZeRO."
            )


@dataclass(frozen=True)
class MemoryEstimate:
    """The memory of one rank at its peak, bytes.

    Attributes:
        base: Base weights and buffers; this rank's share of them under ZeRO-3.
        gathered: Base weights of other ranks that are here for a time (ZeRO-3).
        adapters: Actors of all agents, float32.
        references: Reference adapters, float32.
        gradients: Those of the one agent that is learning, float32.
        moments: AdamW's two of each agent, float32; this rank's share of them under ZeRO.
        communication: Buffers that gradients are sent in, and ZeRO's copy of this rank's share of the adapter.
        activations: What backward needs of a micro-batch.
        workspace: What a formula between the products holds while it runs: a block of logits, or the gate's derivative.
        context: What the device's libraries hold.
    """

    base: int
    gathered: int
    adapters: int
    references: int
    gradients: int
    moments: int
    communication: int
    activations: int
    workspace: int
    context: int

    @property
    def parts(self) -> Mapping[str, int]:
        """Each part by name."""
        return {field.name: vars(self)[field.name] for field in fields(self)}

    @property
    def total(self) -> int:
        """The sum of the parts."""
        return sum(self.parts.values())


def estimate(sizes: ModelSizes, workload: Workload, processes: Processes) -> MemoryEstimate:
    """Estimate what one rank needs at its peak, in the backward pass of a micro-batch.

    Args:
        sizes: Of the model and the adapter.
        workload: What the rank computes.
        processes: How the population is spread.
    """
    share = processes.ranks if processes.zero_stage else 1
    part = sum(math.ceil(elements / share) for elements in sizes.adapter) * _FLOAT32
    learning_together = processes.ranks > 1 and processes.parallel == "data"
    return MemoryEstimate(
        base=base_share(sizes, processes),
        gathered=gathered(sizes, processes),
        adapters=processes.agents * sizes.adapter_bytes,
        references=processes.references * sizes.adapter_bytes,
        gradients=sizes.adapter_bytes,
        # Under ZeRO each rank keeps a float32 copy of its part beside the moments.
        moments=processes.agents * (2 * part + (part if processes.zero_stage else 0)),
        communication=sizes.adapter_bytes if learning_together else 0,
        activations=activations(sizes, workload),
        workspace=workspace(sizes, workload),
        context=_CUDA_CONTEXT if workload.device == "cuda" else 0,
    )


def base_share(sizes: ModelSizes, processes: Processes) -> int:
    """Bytes of the base that a rank holds always: all, or under ZeRO-3 ``ceil(elements / ranks)`` of each parameter.

    Args:
        sizes: Of the model.
        processes: How it is spread.
    """
    if processes.zero_stage < 3:
        return sizes.base_bytes
    held = sum(
        elements if elements <= processes.persistence_threshold else math.ceil(elements / processes.ranks)
        for elements in sizes.parameters
    )
    return held * sizes.dtype.itemsize + sizes.buffer_bytes


def gathered(sizes: ModelSizes, processes: Processes) -> int:
    """Most bytes of the base that are gathered beside a rank's share under ZeRO-3.

    DeepSpeed gathers a module at a time and prefetches the next, and it keeps what it will need again within
    ``stage3_max_reuse_distance``; ``stage3_max_live_parameters`` bounds all of that, as long as the largest layer is
    below it. The language-model head stays gathered for the whole step.

    Args:
        sizes: Of the model.
        processes: How it is spread.
    """
    if processes.zero_stage < 3 or processes.ranks == 1:
        return 0
    sharded = sum(elements for elements in sizes.parameters if elements > processes.persistence_threshold)
    head = sizes.head if sizes.head > processes.persistence_threshold else 0
    live = min(sharded - head, max(processes.max_live_parameters, sizes.largest_layer))
    return (head + live) * sizes.dtype.itemsize


def activations(sizes: ModelSizes, workload: Workload) -> int:
    """Bytes that backward needs of one micro-batch, at the moment when it needs most.

    With N tokens, L layers, s bytes for an element of the residual stream and H its width: without checkpointing
    ``L * layer + outside``; with it ``L * N * H * s``, the inputs of the layers, plus one ``layer`` that is computed
    again, plus ``outside`` (Korthikanti et al. 2022, section 5, full recomputation).

    Args:
        sizes: Of the model and the adapter.
        workload: The micro-batch.
    """
    layer = layer_activations(sizes, workload)
    entry = workload.tokens * sizes.hidden * sizes.stream
    kept = sizes.layers * entry + layer if workload.gradient_checkpointing else sizes.layers * layer
    return kept + outside_activations(sizes, workload)


def layer_activations(sizes: ModelSizes, workload: Workload) -> int:
    """Bytes that one decoder layer keeps for backward.

    For each token, with b bytes for an element of a product and a for one of attention: ``2 H s`` the inputs of two
    norms; ``(2 Q + 2 K) a + 4 heads`` queries, keys, values, what attention makes of them, and the softmax's
    normaliser; ``2 F b`` gate and product (``4 F b``, GELU's parts, without a gate); ``b`` times the width of each
    tensor that layers with LoRA read, and ``b r`` for each such layer. In training with dropout PEFT's own way runs,
    which keeps of each layer's input what was left of it, in float32, with a mask, and ``4 r``. Besides, for the layer
    as a whole, LoRA's factors in the products' precision.

    On an accelerator attention is FlexAttention, which computes in the products' precision. On a CPU it computes in
    float32, and keys and values of a prompt are copied for each completion, ``2 K a``.

    Args:
        sizes: Of the model and the adapter.
        workload: The micro-batch.
    """
    on_cpu = workload.device == "cpu"
    product = sizes.dtype.itemsize
    attention = _FLOAT32 if on_cpu else product
    token = 2 * sizes.hidden * sizes.stream
    token += (2 * sizes.query + (4 if on_cpu else 2) * sizes.key) * attention + 4 * sizes.heads
    token += (2 if sizes.gated else 4) * sizes.intermediate * product
    lora = 0
    for layer in sizes.adapted:
        if sizes.dropout > 0:
            mask = _FLOAT32 if on_cpu else 1
            lora += (_FLOAT32 + mask) * layer.inputs + _FLOAT32 * layer.rank
        else:
            lora += (0 if layer.shares_input else layer.inputs * product) + layer.rank * product
    token += lora // sizes.layers
    factors = 0 if sizes.dropout > 0 else sizes.adapter_elements * product // sizes.layers
    return workload.tokens * token + factors


def outside_activations(sizes: ModelSizes, workload: Workload) -> int:
    """Bytes that backward needs of what comes after the layers: the last norm's input, and the head's derivatives.

    Args:
        sizes: Of the model.
        workload: The micro-batch.
    """
    return (workload.tokens + workload.scored) * sizes.hidden * sizes.stream


def workspace(sizes: ModelSizes, workload: Workload) -> int:
    """Most bytes that a single formula takes while it runs.

    The head's, at the end of forward: a block of logits in float32 and twice in the weights' precision, states and
    sums of the positions in float32, and on a CPU the block's weights in float32. In backward the gate's derivative,
    which is a formula of float32 buffers as wide as the feed-forward layer, and the gradients that flow beside it.

    Args:
        sizes: Of the model.
        workload: The micro-batch.
    """
    product = sizes.dtype.itemsize
    positions = min(workload.scored, _POSITIONS)
    block = min(_BLOCK_LOGITS[workload.device], positions * sizes.vocabulary)
    weights = min(_BLOCK_TOKENS, sizes.vocabulary) * sizes.hidden * _FLOAT32 if workload.device == "cpu" else 0
    head = block * (_FLOAT32 + 2 * product) + 4 * positions * sizes.hidden * _FLOAT32 + weights
    gate = workload.tokens * sizes.intermediate * (product + _GATE_BUFFERS * _FLOAT32)
    flowing = 2 * workload.tokens * sizes.hidden * sizes.stream
    return max(head, gate + flowing if sizes.gated else 2 * workload.tokens * sizes.intermediate * product + flowing)


@dataclass(frozen=True)
class WayOut:
    """A change that makes a run fit.

    Attributes:
        change: What to change.
        total: What a rank needs then, bytes.
    """

    change: str
    total: int


def ways_out(sizes: ModelSizes, workload: Workload, processes: Processes, available: int) -> list[WayOut]:
    """Single changes with which a run would fit, and all of them together if none is enough.

    Args:
        sizes: Of the model and the adapter.
        workload: What does not fit.
        processes: How it is spread.
        available: Memory that a rank has, bytes.

    Returns:
        What fits, each with what it needs; empty if nothing does.
    """
    checkpointed = replace(workload, gradient_checkpointing=True)
    sharded = replace(processes, zero_stage=3, parallel="data")
    candidates: list[tuple[str, Workload, Processes]] = []
    if not workload.gradient_checkpointing:
        candidates.append(("gradient checkpointing", checkpointed, processes))
    smaller = _largest_micro_batch(sizes, workload, processes, available)
    if smaller is not None:
        candidates.append(
            (f"micro_batch_size_per_gpu={smaller}", replace(workload, micro_batch_size=smaller), processes)
        )
    fewer = _most_agents(sizes, workload, processes, available)
    if fewer is not None:
        candidates.append((f"a population of {fewer}", workload, replace(processes, agents=fewer)))
    if processes.ranks > 1 and processes.zero_stage < 3:
        candidates.append(("ZeRO-3", workload, sharded))
    fitting = _fitting(sizes, candidates, available)
    if fitting:
        return fitting
    together = replace(checkpointed, micro_batch_size=1)
    candidates = [("gradient checkpointing and micro_batch_size_per_gpu=1", together, processes)]
    if processes.ranks > 1:
        name = "ZeRO-3, gradient checkpointing and micro_batch_size_per_gpu=1"
        candidates.append((name, together, sharded))
    ranks = 2 * processes.ranks
    while not _fitting(sizes, candidates, available) and ranks <= 4096:
        more = replace(sharded, ranks=ranks)
        candidates.append(
            (f"ZeRO-3 on {ranks} ranks, gradient checkpointing and micro_batch_size_per_gpu=1", together, more)
        )
        ranks *= 2
    return _fitting(sizes, candidates, available)


def _fitting(sizes: ModelSizes, candidates: list[tuple[str, Workload, Processes]], available: int) -> list[WayOut]:
    tried = [WayOut(name, estimate(sizes, work, spread).total) for name, work, spread in candidates]
    return [way for way in tried if way.total <= available]


def _largest_micro_batch(sizes: ModelSizes, workload: Workload, processes: Processes, available: int) -> int | None:
    for rows in range(workload.micro_batch_size - 1, 0, -1):
        if estimate(sizes, replace(workload, micro_batch_size=rows), processes).total <= available:
            return rows
    return None


def _most_agents(sizes: ModelSizes, workload: Workload, processes: Processes, available: int) -> int | None:
    for agents in range(processes.agents - 1, 0, -1):
        fewer = replace(processes, agents=agents, references=min(processes.references, agents))
        if estimate(sizes, workload, fewer).total <= available:
            return agents
    return None
