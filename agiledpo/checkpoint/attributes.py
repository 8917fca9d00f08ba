"""Reading ``attributes.pt`` without running anything that a stranger put into it."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from agiledpo.checkpoint.directory import ATTRIBUTES
from agiledpo.checkpoint.errors import CheckpointError


def read_attributes(path: Path, *, required: Collection[str] = ()) -> dict[str, Any]:
    """Read the state of an agent; tensors are on the CPU, mapped from the file until they are used.

    Args:
        path: The file, or the checkpoint's directory.
        required: Names that must be there.

    Raises:
        CheckpointError: It cannot be read without unpickling objects, is damaged, or lacks something.
    """
    file = path / ATTRIBUTES if path.is_dir() else path
    try:
        attributes = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise CheckpointError(f"{file} is missing. Take another checkpoint.") from None
    except Exception as error:  # torch promises no particular kind
        reason = str(error).strip().split("\n")[0][:200]
        raise CheckpointError(
            f"{file} cannot be read as tensors and plain values ({type(error).__name__}: {reason}). It is damaged, or "
            "holds objects that would run code; take another checkpoint."
        ) from error
    if not isinstance(attributes, dict):
        raise CheckpointError(f"{file} holds a {type(attributes).__name__} instead of a dictionary; it is not ours.")
    missing = [name for name in required if name not in attributes]
    if missing:
        raise CheckpointError(
            f"{file} lacks {', '.join(missing)}. Load the checkpoint with the version of agiledpo that wrote it."
        )
    return attributes
