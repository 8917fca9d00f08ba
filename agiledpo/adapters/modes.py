"""Which modules behave as in training: LoRA dropout and checkpointed layers, never the frozen base."""

from peft.tuners.lora import LoraLayer
from transformers.modeling_layers import GradientCheckpointingLayer

from agiledpo.adapters.shared_base import SharedBaseModel


def set_modes(base: SharedBaseModel, adapter: str | None, *, training: bool, checkpointing: bool) -> None:
    """Put the model into evaluation mode, or one adapter on it into training mode.

    The frozen base always evaluates: its own dropout would make the policy differ from the reference where the weights
    do not, so the loss would not start at ln 2.

    Args:
        base: The shared model.
        adapter: The adapter whose LoRA dropout is switched on in training; None for none.
        training: Training mode, otherwise everything evaluates.
        checkpointing: Recompute each decoder layer in backward instead of keeping its activations.
    """
    base.peft.eval()
    if not training:
        return
    if checkpointing:
        base.enable_checkpointing()
    for module in base.model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            # Set on the layer alone: .train() would switch on the dropout of the base inside it too.
            module.training = checkpointing
        elif adapter is not None and isinstance(module, LoraLayer) and adapter in module.lora_dropout:
            module.lora_dropout[adapter].train()
