"""DPO and its siblings: one file each that reads like the paper."""

from agiledpo.algorithms.dpo import DPO
from agiledpo.algorithms.grpo import GRPO
from agiledpo.algorithms.sft import SFT

__all__ = ["DPO", "GRPO", "SFT"]
