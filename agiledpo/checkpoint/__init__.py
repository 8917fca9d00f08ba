"""Saving agents as PEFT adapters plus state."""

from agiledpo.checkpoint.save import check_destination, save_agent

__all__ = ["check_destination", "save_agent"]
