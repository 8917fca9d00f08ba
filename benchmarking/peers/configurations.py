"""The configurations that are compared."""

from dataclasses import dataclass, field
from typing import Any

PEERS = ("trl", "agilerl")

# What runs of the matrix rate are filed under.
MATRIX = "matrix rate"


@dataclass(frozen=True)
class Configuration:
    """A way to run a system.

    Attributes:
        system: The system, a key of `REQUIREMENTS`.
        label: What the table says.
        options: Arguments that only this configuration has.
        dtypes: Where it applies.
        default: Whether it is run without being asked for.
    """

    system: str
    label: str
    options: dict[str, Any] = field(default_factory=dict)
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    default: bool = True


CONFIGURATIONS: dict[str, Configuration] = {
    "agiledpo": Configuration("agiledpo", "AgileDPO"),
    "agiledpo:compiled": Configuration("agiledpo", "AgileDPO, `torch_compiler`", {"torch_compiler": "default"}),
    "agiledpo:plain-layers": Configuration(
        "agiledpo", "AgileDPO, `fast_layers=False`", {"fast_layers": False}, default=False
    ),
    "agiledpo:separate-rows": Configuration(
        "agiledpo", "AgileDPO, `prefix_sharing=False`", {"prefix_sharing": False}, default=False
    ),
    "trl": Configuration("trl", "TRL, reference in each step"),
    "trl:precompute": Configuration("trl", "TRL, `precompute_ref_log_probs`", {"precompute_ref_log_probs": True}),
    "trl:padding-free": Configuration("trl", "TRL, `padding_free` (which 1.16 switches off)", {"padding_free": True}),
    "trl:autocast": Configuration("trl", "TRL, `bf16=True` (autocast)", {"bf16": True}, dtypes=("bfloat16",)),
    "agilerl": Configuration("agilerl", "AgileRL", {"gradient_checkpointing": False}),
    "agilerl:checkpointing": Configuration(
        "agilerl", "AgileRL, gradient checkpointing", {"gradient_checkpointing": True}
    ),
}
