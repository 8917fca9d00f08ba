"""DPO and its siblings: one file each that reads like the paper."""

from agiledpo.algorithms.dpo import DPO

__all__ = ["DPO"]
