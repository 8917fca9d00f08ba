"""Saved LoRA adapters as PEFT, TRL, AgileRL and agiledpo write them."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from agiledpo.disk import disk_errors

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLED_WEIGHTS = "adapter_model.bin"


class AdapterFileError(ValueError):
    """A saved adapter cannot be used; the message names the file and the way out."""


@dataclass(frozen=True)
class SavedAdapter:
    """A LoRA adapter as it was read from a directory.

    Attributes:
        config: Its LoRA configuration.
        tensors: Its weights on the CPU, with the keys that PEFT gives them.
        source: The directory.
    """

    config: LoraConfig
    tensors: Mapping[str, Tensor]
    source: Path

    @property
    def config_file(self) -> Path:
        """The file that the configuration is from."""
        return self.source / CONFIG

    @property
    def weights_file(self) -> Path:
        """The file that the weights are from."""
        return _weights_file(self.source)


def read_adapter(directory: str | Path, *, finite: bool = True) -> SavedAdapter:
    """Read a LoRA adapter that PEFT's ``save_pretrained`` wrote, or anything of the same layout.

    Nothing is unpickled: ``adapter_model.bin`` may hold tensors and nothing else.

    Args:
        directory: Holds ``adapter_config.json`` and ``adapter_model.safetensors`` (or ``.bin``).
        finite: Refuse weights that are not finite. False is for an agent that diverged, in a run that goes on with it.

    Raises:
        AdapterFileError: A file is missing, damaged, or of something else than LoRA.
    """
    directory = Path(directory)
    saved = SavedAdapter(_read_config(directory / CONFIG), _read_weights(_weights_file(directory)), directory)
    if finite:
        check_finite(saved)
    return saved


def write_adapter(saved: SavedAdapter) -> None:
    """Write a LoRA adapter as PEFT's ``save_pretrained`` does.

    Args:
        saved: The adapter; its directory ``source`` exists.

    Raises:
        OSError: It could not be written.
    """
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in saved.tensors.items()}
    file = saved.source / WEIGHTS
    with disk_errors(file):
        save_file(tensors, file, metadata={"format": "pt"})
    write_config(saved)


def write_config(saved: SavedAdapter) -> None:
    """Write the configuration of a LoRA adapter alone, beside weights that are there already.

    Args:
        saved: The adapter; its directory ``source`` exists.
    """
    saved.config.save_pretrained(str(saved.source))


def check_finite(saved: SavedAdapter) -> None:
    """Refuse an adapter whose weights are not numbers, as those of a training that diverged.

    Args:
        saved: The adapter.

    Raises:
        AdapterFileError: A weight is infinite or undefined; its key is named.
    """
    for key, tensor in saved.tensors.items():
        # The extremes take no memory, and are undefined where anything is; float8 has none of its own.
        wide = tensor.float() if tensor.element_size() == 1 else tensor
        if wide.numel() and not torch.stack(wide.aminmax()).isfinite().all():
            raise AdapterFileError(
                f"{saved.weights_file} has infinite or undefined values in {key}: its training diverged, or the file "
                "is damaged. Take another one."
            )


def find_actor(path: str | Path) -> Path:
    """Find the directory of the trained policy in what a training library has written.

    PEFT and TRL write the adapter into the directory itself, AgileRL and agiledpo into ``actor/``.

    Args:
        path: A PEFT directory, TRL's ``output_dir`` or an agent's checkpoint.

    Raises:
        AdapterFileError: There is no adapter, or there are several of which none is the actor.
    """
    path = Path(path)
    if not path.is_dir():
        raise AdapterFileError(f"{path} is not a directory; pass the directory that holds {CONFIG}.")
    for candidate in (path, path / "actor", path / "actor" / "actor"):
        if (candidate / CONFIG).is_file():
            return candidate
    inside = sorted(file.parent for file in path.glob(f"*/{CONFIG}"))
    if len(inside) == 1:
        return inside[0]
    if inside:
        names = ", ".join(directory.name for directory in inside)
        raise AdapterFileError(f"{path} holds several adapters ({names}) and none is called actor; pass one of them.")
    raise AdapterFileError(f"There is no {CONFIG} in {path} or its directories. {_why_there_is_none(path)}")


def _why_there_is_none(path: Path) -> str:
    if any(path.glob("*.safetensors")) or any(path.glob("pytorch_model*.bin")):
        return "It looks like a whole model: load that as the base model."
    if (path / "attributes.pt").is_file():
        return "If AgileRL wrote it with lora_only=False, its weights are pickled: save with lora_only=True there."
    return "Pass what save_pretrained, a trainer or save_checkpoint wrote."


def _read_config(file: Path) -> LoraConfig:
    settings = _read_json(file)
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise AdapterFileError(f"{file} describes a PEFT adapter of type {kind!r}; only LORA can be loaded.")
    _check_settings(file, settings)
    settings.pop("runtime_config", None)  # for the process that wrote it
    if settings.get("init_lora_weights") == "eva":
        settings.update(init_lora_weights=True, eva_config=None)  # chose the initial weights and is done with
    try:
        return cast(LoraConfig, LoraConfig.from_peft_type(**settings))
    except (TypeError, ValueError, ImportError) as error:
        raise AdapterFileError(
            f"{file} is not a LoRA configuration that this version of PEFT reads: {error}"
        ) from error


def _read_json(file: Path) -> dict[str, Any]:
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AdapterFileError(f"{file} is missing; without it nobody knows the adapter's rank and targets.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterFileError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(settings, dict):
        raise AdapterFileError(f"{file} holds a JSON {type(settings).__name__}, not the fields of a configuration.")
    return settings


def _check_settings(file: Path, settings: Mapping[str, Any]) -> None:
    """Refuse values that PEFT would stumble over later, or that would make it import or read something."""

    def check(name: str, fits: bool, wanted: str) -> None:
        if not fits:
            raise AdapterFileError(f"{file} has {name}={settings.get(name)!r}; it must be {wanted}.")

    check("r", _is_whole(settings.get("r", 8)), "a whole number above 0")
    check("lora_alpha", _is_number(settings.get("lora_alpha", 8)), "a finite number")
    dropout = settings.get("lora_dropout", 0.0)
    check("lora_dropout", _is_number(dropout) and 0 <= dropout <= 1, "a number from 0 to 1")
    for name, fits in (("rank_pattern", _is_whole), ("alpha_pattern", _is_number)):
        pattern = settings.get(name) or {}
        check(
            name,
            isinstance(pattern, dict) and all(map(fits, pattern.values())) and all(map(_is_pattern, pattern)),
            "a table of finite numbers by regular expression of module names",
        )
    for name in ("target_modules", "exclude_modules"):
        value = settings.get(name)
        named = _is_pattern(value) if isinstance(value, str) else value is None or _is_listed(value, str)
        check(name, named, "module names, or a regular expression of them")
    for name in ("modules_to_save", "layers_pattern"):  # PEFT puts each of the names into a regular expression
        value = settings.get(name)
        names = [value] if isinstance(value, str) else value
        check(name, names is None or (_is_listed(names, str) and all(map(_is_pattern, names))), "module names")
    layers = settings.get("layers_to_transform")
    check(
        "layers_to_transform", layers is None or _is_listed([layers], int) or _is_listed(layers, int), "layer numbers"
    )
    # PEFT imports the module that megatron_core names.
    check("megatron_config", settings.get("megatron_config") is None, "null: Megatron's layers are not supported")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_number(value: object) -> bool:
    """Whether it is a number that a float can be: from JSON Python also reads NaN, infinity and huge whole numbers."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _is_listed(value: object, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(x, kind) and not isinstance(x, bool) for x in value)


def _is_pattern(text: str) -> bool:
    try:
        re.compile(text)
    except (re.error, RecursionError, OverflowError):
        return False
    return True


def _weights_file(directory: Path) -> Path:
    pickled = directory / PICKLED_WEIGHTS
    return pickled if pickled.is_file() and not (directory / WEIGHTS).is_file() else directory / WEIGHTS


def _read_weights(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise AdapterFileError(f"{file} is missing (and so is {PICKLED_WEIGHTS}); the configuration has no weights.")
    tensors = _read_pickled(file) if file.name == PICKLED_WEIGHTS else _read_safetensors(file)
    for key, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise AdapterFileError(f"{file} has {key} in {tensor.dtype}; an adapter's weights are floating-point.")
    # Trainers that compile the model leave the wrapper's name in the keys.
    return {key.replace("_orig_mod.", ""): tensor for key, tensor in tensors.items()}


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise AdapterFileError(f"{file} is damaged or not a safetensors file: {error}. Copy it again.") from error


def _read_pickled(file: Path) -> dict[str, Tensor]:
    try:
        tensors = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a stranger's file can make torch's reader raise almost anything
        raise AdapterFileError(
            f"{file} holds something else than tensors, or is damaged, and is not unpickled: {_first_line(error)} "
            f"Save the adapter as {WEIGHTS} (save_pretrained does by default)."
        ) from error
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise AdapterFileError(f"{file} does not hold tensors by name. Save the adapter as {WEIGHTS}.")
    return tensors


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
