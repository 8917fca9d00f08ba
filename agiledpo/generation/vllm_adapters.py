"""The adapters of agents that a vLLM server has loaded, as files and under names of their own."""

import shutil
import socket
import tempfile
import uuid
import warnings
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

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

# Hosts by which every machine calls itself.
_HERE = ("localhost", "127.0.0.1", "::1", "0.0.0.0")


@dataclass(frozen=True)
class _Loaded:
    content: str
    name: str
    directory: Path | None  # None where another process has loaded it


class ServedAdapters:
    """Actors of agents on one vLLM server: each is saved and loaded when it has changed, the one before unloaded.

    Every version has a name and a directory of its own, because vLLM keeps what it has computed of a prompt by the
    adapter's name. Where several processes use one server for an agent, one of them does that and the others use the
    name: a server puts as many adapters into a batch as it was started for (``--max-loras``, 1 by default), and would
    serve adapters of their own one process after the other.

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
        content = _content(agent)
        held = self._loaded.get(agent.index)
        if held is None or held.content != content:
            loaded = self._load(agent, content)  # first, so that a failure leaves everything as it was
            self._drop(agent.index)
            self._loaded[agent.index] = loaded
        self._loaded.move_to_end(agent.index)
        while len(self._loaded) > self._most:
            self._drop(next(iter(self._loaded)))
        return self._loaded[agent.index].name

    def share(self, agent: "LLMAlgorithm") -> None:
        """Let one process for each server load an agent's actor as it is now, for all of them.

        What it replaces is unloaded, so none of the processes may be sampling.

        Args:
            agent: The agent, in all processes of its team.

        Raises:
            ValueError: vLLM has no such adapters.
            VLLMError: A server does not load it.
        """
        team = agent.team
        loader = team.gather(self._place()).index(self._place())
        names = team.all_do(lambda: self.name_of(agent) if team.rank == loader else None)
        name = names[loader]
        if team.rank != loader and name is not None:
            self._drop(agent.index)
            self._loaded[agent.index] = _Loaded(_content(agent), name, None)

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
        if held is None or held.directory is None:
            return
        try:
            self._server.unload_adapter(held.name)
        except VLLMError as error:  # the work does not depend on it, and often it is the error that ended the work
            warnings.warn(f"The adapter {held.name} may still be loaded. {error}", stacklevel=3)
        shutil.rmtree(held.directory, ignore_errors=True)

    def _place(self) -> tuple[str, str]:
        """What is the same for two processes that speak to one server."""
        url = self._server.url
        return url, socket.gethostname() if urlsplit(url).hostname in _HERE else ""

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


def _content(agent: "LLMAlgorithm") -> str:
    """Changes whenever the agent's actor does."""
    # Two agents may have one index, and an agent's weights may be overwritten by another's: only content tells. The
    # count of steps is for an optimizer whose writes neither torch counts nor the samples of the content show.
    return f"{agent.optimizer_steps} {agent.adapters.content('actor', portable=False)}"
