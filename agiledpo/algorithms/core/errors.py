"""Errors of training."""

from agiledpo.losses.errors import NonFiniteLossError

__all__ = ["NonFiniteLossError", "PopulationDivergedError"]


class PopulationDivergedError(ArithmeticError):
    """No agent of a population is left that could be copied; what was saved before is intact."""
