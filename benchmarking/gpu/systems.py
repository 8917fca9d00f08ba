"""The systems that are compared, each trained on the same batches from the same weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from peft import LoraConfig
from transformers import PreTrainedModel

from agiledpo.scoring import PreferenceBatch
from benchmarking.gpu.shapes import LORA_RANK, Shape
from benchmarking.gpu.synthetic import PAD
from benchmarking.gpu.timing import Run, Stopwatch


@dataclass(frozen=True)
class Training:
    """What is the same for every system.

    Attributes:
        batch_size: Pairs per step, all in one forward pass.
        checkpointing: Recompute decoder layers in backward.
        beta: DPO's beta.
        lr: Learning rate of AdamW.
        max_grad_norm: Largest gradient norm of a step.
        warm_up: Steps before the clock starts.
        seed: Seed of the adapter's initialisation.
    """

    batch_size: int
    checkpointing: bool
    beta: float = 0.1
    lr: float = 1e-4
    max_grad_norm: float = 1.0
    warm_up: int = 2
    seed: int = 0


System = Callable[[PreTrainedModel, Sequence[PreferenceBatch], Training], Run]


def lora_config() -> LoraConfig:
    """LoRA of rank 16 on all linear layers, without dropout."""
    return LoraConfig(
        r=LORA_RANK, lora_alpha=2 * LORA_RANK, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )


def train_agiledpo(model: PreTrainedModel, batches: Sequence[PreferenceBatch], training: Training) -> Run:
    """Train an agiledpo agent, the reference computed in each step."""
    return _train_agent(model, batches, training, "auto")


def train_agiledpo_separate(model: PreTrainedModel, batches: Sequence[PreferenceBatch], training: Training) -> Run:
    """The same with the prompt computed once for each completion, which shows what sharing it brings."""
    return _train_agent(model, batches, training, False)


def train_plain(model: PreTrainedModel, batches: Sequence[PreferenceBatch], training: Training) -> Run:
    """Train with nothing but Transformers and PEFT."""
    from benchmarking.gpu.plain import PlainDPO

    trainer = PlainDPO(model, lora_config(), training)
    return _run(trainer.step, batches, model.device, training.warm_up)


def train_trl(model: PreTrainedModel, batches: Sequence[PreferenceBatch], training: Training) -> Run:
    """Train with TRL's ``DPOTrainer``, the reference computed in each step."""
    from benchmarking.gpu.trl_peer import train

    return train(model, batches, training, lora_config())


SYSTEMS: dict[str, System] = {
    "agiledpo": train_agiledpo,
    "agiledpo-separate": train_agiledpo_separate,
    "plain": train_plain,
    "trl": train_trl,
}


def attention_of_agiledpo(shape: Shape, tokens: int, device: torch.device, dtype: torch.dtype) -> str:
    """Which attention a batch of so many packed tokens takes: flex, rows or tiles."""
    from agiledpo.scoring.attention import attention_path

    one = torch.empty((), device=device, dtype=dtype)
    query, value = (one.expand(1, n, tokens, shape.hidden // shape.heads) for n in (shape.heads, shape.key_heads))
    return attention_path(query, value, softcap=None)


def _train_agent(
    model: PreTrainedModel, batches: Sequence[PreferenceBatch], training: Training, prefix_sharing: str | bool
) -> Run:
    from agiledpo.algorithms import DPO

    agent = DPO(
        actor_network=model,
        pad_token_id=PAD,
        lora_config=lora_config(),
        batch_size=training.batch_size,
        lr=training.lr,
        beta=training.beta,
        nll_alpha=0.0,
        max_grad_norm=training.max_grad_norm,
        gradient_checkpointing=training.checkpointing,
        prefix_sharing=prefix_sharing,  # type: ignore[arg-type]
        seed=training.seed,
    )
    run = _run(lambda batch: agent.learn(batch)["mean_loss"], batches, model.device, training.warm_up)
    agent.clean_up()
    return run


def _run(
    step: Callable[[PreferenceBatch], float], batches: Sequence[PreferenceBatch], device: torch.device, warm_up: int
) -> Run:
    watch, losses = Stopwatch(device, warm_up), []
    watch.start()
    for batch in batches:
        losses.append(step(batch))
        watch.step()
    return Run(watch.seconds(), losses)
