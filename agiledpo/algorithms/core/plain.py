"""Values that ``torch.load(weights_only=True)`` reads back: what would not is found when it is written, not later."""

from collections.abc import Mapping
from os import PathLike, fspath
from typing import Any

import numpy as np
import torch
from torch import Tensor


def plain(value: Any, where: str = "value") -> Any:
    """A value in tensors and Python's own types.

    Args:
        value: Tensors, numbers (NumPy's become Python's, its arrays tensors), text, None, paths (become text), and
            dictionaries, lists and tuples of them.
        where: What it is called, for the message.

    Raises:
        TypeError: It is or holds something else, which is named.
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
        # Subclasses would be pickled as what they are.
        case int():
            return int(value)
        case float():
            return float(value)
        case str():
            return str.__str__(value)
        case PathLike():
            return fspath(value)
        case Mapping():
            return {plain(key, f"a key of {where}"): plain(entry, f"{where}[{key!r}]") for key, entry in value.items()}
        case list():
            return [plain(entry, f"{where}[{number}]") for number, entry in enumerate(value)]
        case tuple():
            return tuple(plain(entry, f"{where}[{number}]") for number, entry in enumerate(value))
    raise TypeError(f"{where}: a {type(value).__name__} cannot be saved as plain data: {value!r}.")
