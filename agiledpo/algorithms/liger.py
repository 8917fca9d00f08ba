"""Whether Liger's fused loss can be used."""

import importlib.util
import warnings


def resolve_liger(wanted: bool) -> bool:
    """Return whether to use Liger's loss.

    Args:
        wanted: What the user asked for.

    Returns:
        ``wanted`` if the package is there; otherwise False, with a warning.
    """
    if not wanted:
        return False
    if importlib.util.find_spec("liger_kernel") is None:
        warnings.warn(
            "use_liger_loss=True, but liger-kernel is not installed; using agiledpo's own chunked loss. "
            "Install it with pip install 'agiledpo[liger]'.",
            stacklevel=3,
        )
        return False
    raise ValueError(
        "use_liger_loss=True is not supported by this version; agiledpo's own loss already runs the head in chunks and "
        "holds no full logits. Leave it at False."
    )
