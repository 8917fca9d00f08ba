"""What is saved of a trained policy, and what goes with it: its base model and its tokenizer."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from agiledpo.adapters.files import SavedAdapter, find_actor, read_adapter
from agiledpo.checkpoint.attributes import read_attributes
from agiledpo.checkpoint.directory import ATTRIBUTES, MANIFEST, TOKENIZER
from agiledpo.checkpoint.errors import CheckpointError
from agiledpo.checkpoint.manifest import Manifest
from agiledpo.checkpoint.stored_base import holds_base, loadable, make_base


@dataclass(frozen=True)
class SavedPolicy:
    """A trained policy in a directory, whoever wrote it.

    Attributes:
        path: The directory.
        adapter: The actor.
        manifest: Of a checkpoint of ours, which has been verified; None if another library wrote it.
    """

    path: Path
    adapter: SavedAdapter
    manifest: Manifest | None

    @staticmethod
    def read(path: Path) -> "SavedPolicy":
        """Read an agent's checkpoint, or an adapter that PEFT, TRL or AgileRL wrote.

        Args:
            path: The directory.

        Raises:
            CheckpointError: The checkpoint is damaged, or of a whole run.
            AdapterFileError: There is no adapter, or it is damaged.
        """
        if not (path / MANIFEST).exists():
            return SavedPolicy(path, read_adapter(find_actor(path)), None)
        manifest = Manifest.verify(path)
        if manifest.kind == "run":
            agents = ", ".join(str(path / nested) for nested in manifest.nested)
            raise CheckpointError(f"{path} is the checkpoint of a whole run; take one of its agents: {agents}.")
        return SavedPolicy(path, read_adapter(path / "actor"), manifest)

    def stored_base(self) -> dict[str, Any] | None:
        """Attributes that hold the base model; None if the checkpoint has adapters only."""
        if self.manifest is None or self.manifest.base_model is None:
            return None
        attributes = read_attributes(self.path)
        return attributes if holds_base(attributes) else None

    @property
    def base_name(self) -> str:
        """Name or path of the base model as the directory gives it; empty if it gives none."""
        recorded = self.manifest.base_model.name if self.manifest and self.manifest.base_model else ""
        return str(recorded or self.adapter.config.base_model_name_or_path or "")

    def load_base(self, stored: dict[str, Any] | None, name: str) -> PreTrainedModel:
        """Make the base model.

        Args:
            stored: What :meth:`stored_base` gave, which comes first.
            name: Its name or path otherwise.
        """
        if stored is not None and self.manifest is not None and self.manifest.base_model is not None:
            return make_base(stored, self.path / ATTRIBUTES, loadable(self.manifest.base_model.dtype))
        loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(name, dtype="auto")
        return loaded

    def load_tokenizer(self, base_name: str) -> PreTrainedTokenizerBase:
        """Load the tokenizer in the checkpoint, in the run that it is of, or else the base model's.

        Args:
            base_name: Name or path of the base model; empty if it has none.

        Raises:
            ValueError: There is none, or it cannot be loaded.
        """
        for directory in chain((self.path / TOKENIZER, self.path, self.adapter.source), self._of_the_run()):
            if (directory / "tokenizer_config.json").is_file():
                return load_tokenizer(os.fspath(directory), "path")
        if not base_name:
            raise ValueError(f"There is no tokenizer in {self.path} and the base model has no name; pass tokenizer.")
        return load_tokenizer(base_name, "base_model")

    def _of_the_run(self) -> Iterator[Path]:
        """The tokenizer that all agents of a run have, if this is one of them.

        An agent's manifest does not list it, so it is checked against the run's.
        """
        agents = self.path.resolve().parent
        directory = agents.parent / TOKENIZER
        if self.manifest is None or agents.name != "agents":
            return
        if directory.exists() or (agents.parent / MANIFEST).exists():
            Manifest.verify_part(agents.parent, directory.name)
            yield directory


def load_tokenizer(name: str, parameter: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer.

    Args:
        name: Its name or path.
        parameter: Where that is from, for the message.

    Raises:
        ValueError: It cannot be loaded.
    """
    try:
        loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(f"No tokenizer could be loaded from {parameter}={name!r}; pass tokenizer. {error}") from error
    return loaded
