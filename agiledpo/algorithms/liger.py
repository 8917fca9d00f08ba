"""Whether Liger's fused loss can be used."""

import importlib.util
import warnings


def resolve_liger(wanted: bool) -> bool:
    """Return whether to use Liger's loss.

    Args:
        wanted: What the user asked for.

    Returns:
        False in this version, with a warning if Liger was asked for.
    """
    if wanted:
        reason = (
            "liger-kernel is not installed"
            if importlib.util.find_spec("liger_kernel") is None
            else "this version does not call liger-kernel yet"
        )
        warnings.warn(
            f"use_liger_loss=True, but {reason}; using agiledpo's own loss, which gives the same numbers and holds no "
            "full logits either.",
            stacklevel=3,
        )
    return False
