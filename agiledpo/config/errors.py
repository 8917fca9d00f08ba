"""What is wrong with a configuration."""


class ConfigError(ValueError):
    """A configuration cannot be used; the message names the parameter, where it was set, and what to do."""
