"""State in a file that loads without unpickling: whatever would not is found when it is written, not years later."""

from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agiledpo.disk import disk_errors


def write_state(state: dict[str, Any], file: Path) -> None:
    """Write a state that ``torch.load(weights_only=True)`` reads.

    Args:
        state: Tensors, numbers (NumPy's become Python's), text, None, paths (become text), and containers of them.
        file: Where.

    Raises:
        OSError: It could not be written.
        TypeError: Something else is in it; it is named.
    """
    plain = plain_state(state, "state")
    with disk_errors(file), file.open("wb") as handle:
        torch.save(plain, handle)


def plain_state(value: Any, where: str) -> Any:
    """A value in tensors and Python's own types.

    Args:
        value: The value.
        where: What it is called, for the message.

    Raises:
        TypeError: It holds something else.
    """
    match value:
        case Tensor():
            return value.detach()
        case np.ndarray():
            return torch.from_numpy(value)
        case np.generic():
            return value.item()
        case None | bool():
            return value
        case int() | float() | str():  # subclasses would be pickled as what they are
            return next(kind(value) for kind in (int, float, str) if isinstance(value, kind))
        case dict():
            return {
                plain_state(key, f"a key of {where}"): plain_state(entry, f"{where}[{key!r}]")
                for key, entry in value.items()
            }
        case list():
            return [plain_state(entry, f"{where}[{number}]") for number, entry in enumerate(value)]
        case tuple():
            return tuple(plain_state(entry, f"{where}[{number}]") for number, entry in enumerate(value))
        case PathLike():
            return fspath(value)
    raise TypeError(f"{where} is a {type(value).__name__}, which could not be read back without unpickling it.")
