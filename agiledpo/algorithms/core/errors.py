"""Errors of training."""

from agiledpo.losses.errors import NonFiniteLossError

__all__ = ["NoModelError", "NonFiniteLossError", "PopulationDivergedError"]


class PopulationDivergedError(ArithmeticError):
    """No agent of a population is left that could be copied; what was saved before is intact."""


class NoModelError(ValueError):
    """An agent was to be made without a base model. What can be checked without one has been, and was right."""
