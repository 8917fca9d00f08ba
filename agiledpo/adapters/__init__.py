"""The shared base model and the LoRA adapters that agents own on it."""

from agiledpo.adapters.roles import ROLES, AgentAdapters, Role
from agiledpo.adapters.shared_base import SharedBaseModel

__all__ = ["ROLES", "AgentAdapters", "Role", "SharedBaseModel"]
