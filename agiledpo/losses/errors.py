"""Errors of losses."""


class NonFiniteLossError(ArithmeticError):
    """A loss or gradient is NaN or infinite; no weight was changed by the step that found it."""
