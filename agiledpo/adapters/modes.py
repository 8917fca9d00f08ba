"""Which modules behave as in training: LoRA dropout and checkpointed layers, never the frozen base."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from peft.tuners.lora import LoraLayer
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from agiledpo.adapters.shared_base import SharedBaseModel
from agiledpo.layers.forwards import replaced_forwards


def set_modes(base: SharedBaseModel, adapter: str | None, *, training: bool) -> None:
    """Put the whole model into evaluation mode, but for one adapter's LoRA dropout in training.

    The frozen base always evaluates: its own dropout would make the policy differ from the reference where the weights
    do not, so the loss would not start at ln 2.

    Args:
        base: The shared model.
        adapter: The adapter whose dropout is switched; None for none.
        training: Whether it is on.
    """
    base.peft.eval()
    if not training or adapter is None:
        return
    for module in base.model.modules():
        if isinstance(module, LoraLayer) and adapter in module.lora_dropout:
            module.lora_dropout[adapter].train()


@contextmanager
def modes(base: SharedBaseModel, adapter: str | None, *, training: bool, checkpointing: bool) -> Iterator[None]:
    """Set the modes of one scoring pass; afterwards everything evaluates, so that the model can generate.

    Args:
        base: The shared model.
        adapter: The adapter that is scored.
        training: Whether gradients will be taken.
        checkpointing: Recompute each decoder layer in backward instead of keeping its activations. Keep the context
            open until after ``backward``.
    """
    set_modes(base, adapter, training=training)
    # Transformers checkpoints layers in training mode, in which some of them drop out activations of the base.
    layers = [m for m in base.model.modules() if isinstance(m, GradientCheckpointingLayer)]
    replaced = layers if training and checkpointing else []
    try:
        with replaced_forwards([(x, partial(checkpoint, x.forward, use_reentrant=False)) for x in replaced]):
            yield
    finally:
        set_modes(base, None, training=False)
