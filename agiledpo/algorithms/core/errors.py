"""Errors of training."""


class NonFiniteLossError(ArithmeticError):
    """A loss or gradient is NaN or infinite; no weight was changed by the step that found it."""


class PopulationDivergedError(ArithmeticError):
    """No agent of a population is left that could be copied; what was saved before is intact."""
