"""Saving agents as PEFT adapters plus state, and loading them again."""

from agiledpo.checkpoint.directory import check_destination, check_writable, settle, written_atomically
from agiledpo.checkpoint.errors import CheckpointError
from agiledpo.checkpoint.load import load_into
from agiledpo.checkpoint.manifest import Manifest
from agiledpo.checkpoint.merging import merge
from agiledpo.checkpoint.restoring import load_agent, restore
from agiledpo.checkpoint.save import save_agent, write_agent

__all__ = [
    "CheckpointError",
    "Manifest",
    "check_destination",
    "check_writable",
    "load_agent",
    "load_into",
    "merge",
    "restore",
    "save_agent",
    "settle",
    "write_agent",
    "written_atomically",
]
