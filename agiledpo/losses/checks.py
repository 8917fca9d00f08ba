"""Checks of settings. Each raises a ValueError that names the parameter, its value, and what to do."""

import difflib
import math
from collections.abc import Sequence


def check_number(parameter: str, value: float, *, minimum: float | None = None, exclusive: bool = False) -> None:
    """Require a finite number, optionally at least (or, if exclusive, above) `minimum`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{parameter}={value!r} must be a finite number.")
    if minimum is not None and (value < minimum or (exclusive and value == minimum)):
        relation = "greater than" if exclusive else "at least"
        raise ValueError(f"{parameter}={value} must be {relation} {minimum:g}.")


def check_whole_number(parameter: str, value: int, *, minimum: int = 1) -> None:
    """Require a whole number of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ValueError(f"{parameter}={value!r} must be a whole number of at least {minimum}.")


def check_name(parameter: str, value: str, valid: Sequence[str]) -> None:
    """Require one of the `valid` names."""
    if value not in valid:
        nearest = difflib.get_close_matches(str(value), valid, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"{parameter}: {value!r} is unknown; did you mean {nearest!r}? Valid names: {', '.join(valid)}."
        )


def refuse(setting: str, offenders: Sequence[str], valid: Sequence[str], way_out: str) -> None:
    """Require that no loss stands in `offenders`, the losses which do not allow `setting`."""
    if offenders:
        raise ValueError(
            f"{setting} does not work with loss_type {', '.join(offenders)}; set {way_out} or use only losses out of "
            f"{', '.join(valid)}."
        )
