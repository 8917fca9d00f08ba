"""The adapters of agents that a vLLM server has loaded, as files and under names of their own."""

import shutil
import tempfile
import uuid
import warnings
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.version import Version
from peft import LoraConfig

from agiledpo.adapters.files import SavedAdapter, write_adapter
from agiledpo.generation.vllm_server import VLLMError, VLLMServer

if TYPE_CHECKING:
    from agiledpo.algorithms.core.llm import LLMAlgorithm

# What PEFT's layers compute and vLLM's do not (vllm/lora/peft_helper.py, 2026); some of it is read over in silence.
_REFUSED = (
    "modules_to_save",
    "use_dora",
    "lora_bias",
    "alora_invocation_tokens",
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
    "use_bdlora",
    "use_qalora",
)

# Settings that differ between modules, and the first version of vLLM that heeds them instead of reading over them.
_PATTERNS = ("rank_pattern", "alpha_pattern")
_HEEDS_PATTERNS = "0.32"


@dataclass(frozen=True)
class _Loaded:
    content: str
    name: str
    directory: Path


class ServedAdapters:
    """Actors of agents on one vLLM server: each is saved and loaded when it has changed, the one before unloaded.

    Every version has a name and a directory of its own, because vLLM keeps what it has computed of a prompt by the
    adapter's name.

    Args:
        server: The server.
        directory: Where the files go: a fresh directory inside, which is removed at the end. None takes the system's
            place for temporary files.
        most: Agents whose adapters are loaded at a time; the one that has not sampled for the longest time goes first.
    """

    def __init__(self, server: VLLMServer, directory: str | Path | None, *, most: int) -> None:
        self._server = server
        self._most = most
        if directory is not None:
            Path(directory).mkdir(parents=True, exist_ok=True)
        self._files = tempfile.TemporaryDirectory(prefix="agiledpo-adapters-", dir=directory)
        if directory is not None:
            Path(self._files.name).chmod(0o755)  # the server may run as somebody else
        self._run = uuid.uuid4().hex[:8]
        self._versions = 0
        self._loaded: OrderedDict[int, _Loaded] = OrderedDict()

    def name_of(self, agent: "LLMAlgorithm") -> str:
        """The name under which the server has the agent's actor as it is now.

        Args:
            agent: The agent.

        Raises:
            ValueError: vLLM has no such adapters.
            VLLMError: The server does not load it.
        """
        # Two agents may have one index, and an agent's weights may be overwritten by another's: only content tells. The
        # count of steps is for an optimizer whose writes neither torch counts nor the samples of the content show.
        content = f"{agent.optimizer_steps} {agent.adapters.content('actor', portable=False)}"
        held = self._loaded.get(agent.index)
        if held is None or held.content != content:
            loaded = self._load(agent, content)  # first, so that a failure leaves everything as it was
            self._drop(agent.index)
            self._loaded[agent.index] = loaded
        self._loaded.move_to_end(agent.index)
        while len(self._loaded) > self._most:
            self._drop(next(iter(self._loaded)))
        return self._loaded[agent.index].name

    def close(self) -> None:
        """Unload and delete all of them."""
        for index in list(self._loaded):
            self._drop(index)
        self._files.cleanup()

    def _load(self, agent: "LLMAlgorithm", content: str) -> _Loaded:
        actor = agent.adapters.owned["actor"]
        config = agent.base.saved_config(actor)
        self._check(config)
        self._versions += 1
        name = f"agiledpo-{self._run}-agent{agent.index}-{self._versions}"
        directory = Path(self._files.name) / name
        try:
            directory.mkdir()
            write_adapter(SavedAdapter(config, agent.base.state(actor), directory))
            self._server.load_adapter(name, directory, rank=max([config.r, *(config.rank_pattern or {}).values()]))
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        return _Loaded(content, name, directory)

    def _drop(self, index: int) -> None:
        held = self._loaded.pop(index, None)
        if held is None:
            return
        try:
            self._server.unload_adapter(held.name)
        except VLLMError as error:  # the work does not depend on it, and often it is the error that ended the work
            warnings.warn(f"The adapter {held.name} may still be loaded. {error}", stacklevel=3)
        shutil.rmtree(held.directory, ignore_errors=True)

    def _check(self, config: LoraConfig) -> None:
        settings = config.to_dict()
        refused = [f"{name}={settings[name]!r}" for name in _REFUSED if settings.get(name)]
        if settings["bias"] != "none":
            refused.append(f"bias={settings['bias']!r}")
        patterns = [f"{name}={settings[name]!r}" for name in _PATTERNS if settings.get(name)]
        if patterns and self._server.version() < Version(_HEEDS_PATTERNS):
            refused += patterns
        if refused:
            needed = f" (vLLM {_HEEDS_PATTERNS} heeds {' and '.join(_PATTERNS)})" if patterns else ""
            raise ValueError(
                f"The vLLM server does not serve adapters with {', '.join(refused)}{needed}. Sample with "
                "TransformersGenerator, or make the agent with a LoraConfig without."
            )
