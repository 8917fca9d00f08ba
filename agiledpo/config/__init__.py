"""Configurations: YAML files and overrides, checked against the signatures of what they configure."""

from agiledpo.config.config import Config, load_config
from agiledpo.config.errors import ConfigError

__all__ = ["Config", "ConfigError", "load_config"]
