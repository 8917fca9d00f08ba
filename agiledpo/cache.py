"""Where AgileDPO keeps what it derives and can derive again."""

import os
from pathlib import Path


def cache_directory(kind: str) -> Path:
    """The directory for one kind of derived data, below ``$AGILEDPO_CACHE`` or ``~/.cache/agiledpo``.

    Args:
        kind: Name of the kind, such as ``"tokenized"``.
    """
    root = os.environ.get("AGILEDPO_CACHE")
    return (Path(root).expanduser() if root else Path.home() / ".cache" / "agiledpo") / kind
