"""Write an agent as a directory of PEFT adapters plus state.

A checkpoint is complete or absent: it is written beside its final place, flushed to disk and renamed.
"""

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

from agiledpo.disk import flush

if TYPE_CHECKING:
    from agiledpo.algorithms.core.llm import LLMAlgorithm

FORMAT_VERSION = 1


def save_agent(agent: "LLMAlgorithm", path: Path, *, lora_only: bool = True, save_optimizer: bool = True) -> None:
    """Save an agent.

    The directory holds ``actor/`` (and ``reference/`` if the agent has such an adapter), each an adapter that
    ``PeftModel.from_pretrained(base, path / "actor")`` loads, and ``attributes.pt``, which holds hyperparameters and
    state and loads with ``torch.load(..., weights_only=True)``.

    Args:
        agent: What to save.
        path: Directory to write. If a checkpoint is there it is replaced, once the new one is complete.
        lora_only: Adapters only; False also puts the weights of the base model into ``attributes.pt``.
        save_optimizer: Also save the optimizer's state.

    Raises:
        FileExistsError: ``path`` exists and is not a checkpoint.
    """
    path = Path(path)
    check_destination(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        draft.chmod(0o755)
        for role, name in agent.adapters.owned.items():
            _save_adapter(agent, name, draft / role)
        torch.save(_attributes(agent, lora_only, save_optimizer), draft / "attributes.pt")
        _flush(draft)
        _replace(draft, path)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def _save_adapter(agent: "LLMAlgorithm", name: str, directory: Path) -> None:
    directory.mkdir()
    state = {key: tensor.detach().cpu().contiguous() for key, tensor in agent.base.state(name).items()}
    save_file(state, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    config = agent.base.saved_config(name)
    config.save_pretrained(str(directory))


def _attributes(agent: "LLMAlgorithm", lora_only: bool, save_optimizer: bool) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "algorithm": type(agent).__name__,
        "seed": agent.seed,
        **agent.state_dict(),
    }
    del attributes["adapters"]  # they have directories of their own
    if not save_optimizer:
        del attributes["optimizer"]
    if not lora_only:
        attributes["base_model"] = agent.base.base_state()
    return attributes


def check_destination(path: Path) -> None:
    """Check that a checkpoint may be written to ``path``.

    Raises:
        FileExistsError: Something is there that is not a checkpoint.
    """
    if path.exists() and not _is_replaceable(path):
        raise FileExistsError(f"{path} exists and is not a checkpoint; choose another path or remove it.")


def _is_replaceable(path: Path) -> bool:
    return path.is_dir() and ((path / "attributes.pt").exists() or not any(path.iterdir()))


def _flush(directory: Path) -> None:
    for file in (*directory.rglob("*"), directory):
        flush(file)


def _replace(draft: Path, path: Path) -> None:
    if not path.exists():
        draft.rename(path)
        return
    # A directory cannot be renamed over a full one; the old checkpoint steps aside until the new one is in place.
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
    path.rename(aside / "checkpoint")
    try:
        draft.rename(path)
    except BaseException:
        (aside / "checkpoint").rename(path)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
