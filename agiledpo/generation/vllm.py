"""Completions from a vLLM server that is given the agent's actor as a LoRA adapter."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from agiledpo.generation.limits import eos_tokens, rooms
from agiledpo.generation.sampling import Completions, PreparedGenerator, SamplingSettings
from agiledpo.generation.vllm_adapters import ServedAdapters
from agiledpo.generation.vllm_server import Choice, ServedModel, VLLMError, VLLMServer
from agiledpo.losses.checks import check_number, check_whole_number

if TYPE_CHECKING:
    from agiledpo.algorithms.core.llm import LLMAlgorithm

# vLLM raises lower temperatures to this one, but for 0.
_LOWEST_TEMPERATURE = 0.01

# Seeds of requests are below; every completion of a prompt takes the next one.
_SEEDS = 2**48


class VLLMGenerator(PreparedGenerator):
    """Samples from agents' actors on a running vLLM server.

    The server is of vLLM 0.10.2 or newer, and started with::

        VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve BASE_MODEL --enable-lora --max-lora-rank 16

    An actor that has changed is saved and loaded before it samples; its last version is unloaded. All agents of a
    population may share one generator. Use it as a context manager, or call :meth:`close` at the end.

    Several processes make a generator each, for one server or for several. In ``roll_out`` and the training loops one
    process for each server loads an adapter, and the others sample from it too.

    Log-probabilities are handed on where they are known to be those that :class:`Completions` speaks of. vLLM returns
    them without temperature and truncation (``--logprobs-mode raw_logprobs``, its default) or with both
    (``processed_logprobs``); a temperature that is neither 0 nor 1 together with a truncation has them in neither mode.
    The mode is found out with three requests for a token.

    Args:
        base_url: Where the server listens.
        adapter_directory: Where adapters are written: a directory that the server sees under the same path. None takes
            the system's place for temporary files, which suits a server on the same machine.
        base_model: Name of the served model that is the agents' base. None takes the one whose name or path ends as the
            base model's does.
        api_key: What the server was started with as ``--api-key``.
        timeout: Seconds that all completions of one prompt may take.
        concurrency: Prompts that are sent at a time, each a request; vLLM batches them.
        adapters_kept: Agents whose adapters the server holds at a time; at least as many as a population has agents
            spare loading the same version again.

    Raises:
        ImportError: httpx2 is not installed.
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        base_url: str = "http://localhost:8000",
        *,
        adapter_directory: str | Path | None = None,
        base_model: str | None = None,
        api_key: str | None = None,
        timeout: float = 600.0,
        concurrency: int = 64,
        adapters_kept: int = 16,
    ) -> None:
        check_number("timeout", timeout, minimum=0.0, exclusive=True)
        check_whole_number("concurrency", concurrency)
        check_whole_number("adapters_kept", adapters_kept)
        self.base_model = base_model
        self.concurrency = concurrency
        self._server = VLLMServer(base_url, api_key=api_key, timeout=timeout)
        self._adapters = ServedAdapters(self._server, adapter_directory, most=adapters_kept)
        self._models: list[ServedModel] | None = None
        self._modes: dict[str, str | None] = {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._server.url!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Unload the adapters, delete their files and close the connections."""
        self._adapters.close()
        self._server.close()

    def prepare(self, agent: "LLMAlgorithm") -> None:
        """Let one process for each server load the agent's actor as it is now.

        Args:
            agent: Whose actor is going to answer.

        Raises:
            ValueError: vLLM does not serve such adapters.
            VLLMError: A server cannot be used.
        """
        self._adapters.share(agent)

    def generate(
        self,
        agent: "LLMAlgorithm",
        prompts: Sequence[Tensor],
        *,
        group_size: int,
        settings: SamplingSettings,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> Completions:
        """Sample ``group_size`` completions for each prompt; see :class:`agiledpo.generation.Generator`.

        Each prompt has a seed from ``agent.sampling_stream``, so runs are as reproducible as the server is.

        Args:
            agent: Whose actor answers.
            prompts: P prompts, int64 (prompt tokens,).
            group_size: G. At temperature 0 one completion is made, and repeated.
            settings: How. vLLM takes a temperature of 0, or from 0.01 to 2.
            tokenizer: Its end-of-sequence token ends completions beside the model's own.

        Raises:
            ValueError: A prompt leaves no room within the longest sequence, ``group_size`` is below 1, vLLM would
                silently change the temperature, or it does not serve such adapters.
            VLLMError: The server cannot be used, or is of another base model.
        """
        if 0 < settings.temperature < _LOWEST_TEMPERATURE:
            raise ValueError(
                f"temperature={settings.temperature}; vLLM would take {_LOWEST_TEMPERATURE} instead. Take that, or 0."
            )
        check_whole_number("group_size", group_size)
        model = self._serving(agent)
        limits = [limit for limit in (model.longest, agent.lm.max_positions) if limit is not None]
        room = rooms(prompts, settings, min(limits))
        scored = self._knows_logps(settings, model, prompts)
        body = {
            "model": self._adapters.name_of(agent),
            "n": group_size if settings.temperature else 1,
            "logprobs": 0 if scored else None,
            "return_tokens_as_token_ids": scored,
            **_sampling(settings),
            "stop_token_ids": eos_tokens(agent.base.model, tokenizer),
        }
        seeds = _seeds(agent, len(prompts)) if settings.temperature else [None] * len(prompts)
        requests: list[dict[str, Any]] = [
            {
                **body,
                "prompt": prompt.tolist(),
                "seed": seed,
                "max_tokens": most,
                "min_tokens": min(settings.min_new_tokens, most),
            }
            for prompt, most, seed in zip(prompts, room, seeds, strict=True)
        ]
        pool = ThreadPoolExecutor(self.concurrency)
        try:
            groups = list(pool.map(self._server.complete, requests))
        finally:
            pool.shutdown(cancel_futures=True)  # after a failure nothing more is asked for
        if not settings.temperature:
            groups = [group * group_size for group in groups]
        return Completions(
            tokens=[[torch.tensor(choice.tokens) for choice in group] for group in groups],
            logps=[_logps(group) if scored else None for group in groups],
            finished=[[choice.finished for choice in group] for group in groups],
        )

    def _serving(self, agent: "LLMAlgorithm") -> ServedModel:
        """The served model that is the agent's base, as far as names tell."""
        if self._models is None:
            self._models = self._server.models()
        wanted = self.base_model or _last_part(agent.base.model.name_or_path or "")
        for model in self._models:
            known = (model.name,) if self.base_model else (_last_part(model.name), _last_part(model.path))
            if not wanted or wanted in known:
                return model
        served = ", ".join(model.name for model in self._models)
        name = self.base_model or agent.base.model.name_or_path
        raise VLLMError(
            f"The vLLM server at {self._server.url} serves {served}, not {name}. Start it with the agents' base model, "
            "or pass base_model with the name of the one that is the same."
        )

    def _knows_logps(self, settings: SamplingSettings, model: ServedModel, prompts: Sequence[Tensor]) -> bool:
        scaled = settings.temperature not in (0.0, 1.0)
        truncated = settings.top_p < 1 or settings.top_k > 0 or settings.min_p > 0
        altered = truncated or settings.repetition_penalty != 1 or settings.min_new_tokens > 0
        if not prompts or (scaled and altered):
            return False
        if model.name not in self._modes:
            self._modes[model.name] = self._server.logprobs_mode(model.name, prompts[0].tolist())
        mode = self._modes[model.name]
        return mode is not None and not (scaled and mode == "raw") and not (altered and mode == "processed")


def _sampling(settings: SamplingSettings) -> dict[str, Any]:
    """Everything that decides how tokens are drawn: what is not said would come from the model's generation config."""
    return {
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "top_k": settings.top_k,
        "min_p": settings.min_p,
        "repetition_penalty": settings.repetition_penalty,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stop": list(settings.stop),
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,  # or stop texts would not find them
    }


def _seeds(agent: "LLMAlgorithm", count: int) -> list[int]:
    with agent.sampling_stream.active():
        return torch.randint(_SEEDS, (count,)).tolist()


def _logps(group: Sequence[Choice]) -> list[Tensor]:
    return [torch.tensor(choice.logps, dtype=torch.float32) for choice in group]


def _last_part(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2]
