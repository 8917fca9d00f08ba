"""Saving agents as PEFT adapters plus state."""

from agiledpo.checkpoint.save import save_agent

__all__ = ["save_agent"]
