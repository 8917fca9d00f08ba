"""A running vLLM server, spoken to over its OpenAI-compatible HTTP interface."""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from packaging.version import InvalidVersion, Version

if TYPE_CHECKING:
    import httpx2

# How often a connection that could not be made is tried again; answers are never asked for twice.
_CONNECTIONS = 3

# vLLM closes connections that have been idle for 5 s; ours are given up before, or a request might meet that.
_IDLE = 2.0

# Ranks that vLLM takes as --max-lora-rank.
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)

LogprobsMode = Literal["raw", "processed"]


class VLLMError(RuntimeError):
    """A vLLM server cannot be used; the message says why, and how to start it."""


@dataclass(frozen=True)
class ServedModel:
    """A base model as the server lists it.

    Attributes:
        name: What requests call it.
        path: Where the server loaded it from.
        longest: Most tokens of prompt and completion together.
    """

    name: str
    path: str
    longest: int


@dataclass(frozen=True)
class Choice:
    """One completion of an answer.

    Attributes:
        tokens: Its token ids; the one that ended it is among them.
        logps: Log-probability of each as the server computes it; None if none were asked for.
        finished: Whether it ended itself.
    """

    tokens: Sequence[int]
    logps: Sequence[float] | None
    finished: bool


class VLLMServer:
    """Client of one server; its methods may be called from several threads.

    Args:
        base_url: Where the server listens, with or without ``/v1``.
        api_key: What it was started with as ``--api-key``.
        timeout: Seconds that one answer may take.

    Raises:
        ImportError: httpx2 is not installed.
        ValueError: ``base_url`` is not an address.
    """

    def __init__(self, base_url: str, *, api_key: str | None = None, timeout: float = 600.0) -> None:
        self._http = _httpx2()
        self.url = base_url.rstrip("/").removesuffix("/v1")
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"base_url={base_url!r} is not an address such as http://localhost:8000.")
        # How many requests are under way is for the caller to say.
        limits = self._http.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=_IDLE)
        self._client = self._http.Client(
            base_url=self.url,
            headers={} if api_key is None else {"Authorization": f"Bearer {api_key}"},
            timeout=timeout,
            transport=self._http.HTTPTransport(retries=_CONNECTIONS, limits=limits),
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def version(self) -> Version:
        """The server's version of vLLM.

        Raises:
            VLLMError: It does not say.
        """
        answer = self._json(self._send("GET", "/version"))
        try:
            return Version(answer["version"])
        except (KeyError, TypeError, InvalidVersion) as error:
            raise VLLMError(f"{self.url}/version does not say a version as vLLM does: {_short(answer)}") from error

    def models(self) -> list[ServedModel]:
        """The base models that the server answers for, without adapters.

        Raises:
            VLLMError: It does not answer, or is not vLLM.
        """
        answer = self._json(self._send("GET", "/v1/models"))
        try:
            cards = [card for card in answer["data"] if card.get("parent") is None]
            models = [ServedModel(str(c["id"]), str(c["root"]), int(c["max_model_len"])) for c in cards]
        except (KeyError, TypeError, ValueError, AttributeError):
            models = []
        if not models:
            raise VLLMError(f"{self.url}/v1/models does not list a base model as vLLM does: {_short(answer)}")
        return models

    def load_adapter(self, name: str, directory: Path, *, rank: int) -> None:
        """Load a LoRA adapter.

        Args:
            name: What requests call it from then on; it must be new.
            directory: A PEFT directory, by a path that the server can read.
            rank: Its largest rank, for the message.

        Raises:
            VLLMError: The server does not load adapters, or not this one.
        """
        reply = self._send("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(directory)})
        if reply.is_success:
            return
        start = f"Start the server with `{self.command(rank)}`."
        reason = _reason(reply)
        if reply.status_code == 404 and name not in reason:
            raise VLLMError(f"The vLLM server at {self.url} does not load adapters while it runs. {start}")
        if reply.status_code == 404:
            raise VLLMError(
                f"The vLLM server at {self.url} does not see {directory}: pass an adapter_directory that is on a disk "
                "which both machines mount under the same path."
            )
        raise VLLMError(f"The vLLM server at {self.url} did not load an adapter of rank {rank}: {reason}. {start}")

    def unload_adapter(self, name: str) -> None:
        """Make the server forget an adapter; that it did already is fine.

        Args:
            name: The adapter's name.

        Raises:
            VLLMError: It does not answer, or refuses.
        """
        reply = self._send("POST", "/v1/unload_lora_adapter", {"lora_name": name})
        if not reply.is_success and reply.status_code != 404:
            raise VLLMError(f"The vLLM server at {self.url} did not unload the adapter {name}: {_reason(reply)}.")

    def complete(self, request: Mapping[str, Any]) -> list[Choice]:
        """Complete one prompt.

        Args:
            request: Body for ``/v1/completions``; ``return_token_ids`` is added.

        Returns:
            ``request["n"]`` completions.

        Raises:
            VLLMError: The server refuses, or answers something else than was asked for.
        """
        reply = self._send("POST", "/v1/completions", {**request, "return_token_ids": True})
        if not reply.is_success:
            raise VLLMError(f"The vLLM server at {self.url} refused to complete a prompt: {_reason(reply)}.")
        answer = self._json(reply)
        try:
            choices = sorted(answer["choices"], key=lambda choice: choice["index"])
            if [choice["index"] for choice in choices] != list(range(request["n"])):
                numbers = ", ".join(str(choice["index"]) for choice in choices)
                raise ValueError(f"{len(choices)} completions came for n={request['n']}, numbered {numbers}")
            return [_choice(choice, scored=request.get("logprobs") is not None) for choice in choices]
        except (KeyError, TypeError, AttributeError) as error:
            raise VLLMError(
                f"{self.url} does not answer as vLLM does ({type(error).__name__}: {error}): {_short(answer)}"
            ) from error
        except ValueError as error:
            raise VLLMError(f"{self.url} does not answer what was asked for: {error}.") from error

    def logprobs_mode(self, model: str, prompt: Sequence[int]) -> LogprobsMode | None:
        """Find out which log-probabilities the server returns, which it does not tell.

        Each of two tokens is sampled while no other is allowed. What is returned is 0 for both if it is of the
        distribution that was sampled from (``--logprobs-mode processed_logprobs``); if it is of the model's own
        (``raw_logprobs``, vLLM's default) the two have at most the probability 1 together. Logits, which vLLM can
        return as well, are told by the most likely token's, which is above 0.

        Args:
            model: A base model that the server lists.
            prompt: Any prompt.

        Returns:
            None if they are neither.
        """

        def ask(**how: Any) -> float:
            one = {"model": model, "prompt": prompt, "n": 1, "max_tokens": 1, "logprobs": 0, "ignore_eos": True}
            plain = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
            body = {**one, **plain, "presence_penalty": 0.0, "frequency_penalty": 0.0, **how}
            logps = self.complete(body)[0].logps
            assert logps is not None
            return logps[0]

        likeliest = ask(temperature=0.0)
        forced = [ask(temperature=1.0, allowed_token_ids=[token]) for token in (0, 1)]
        if likeliest > 0:
            return None
        return "processed" if max(map(abs, forced)) < 1e-4 else "raw"

    def command(self, rank: int = 16) -> str:
        """How to start a server that can be used.

        Args:
            rank: Largest rank of an adapter.
        """
        fits = next((size for size in _RANKS if size >= rank), rank)
        return f"VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve BASE_MODEL --enable-lora --max-lora-rank {fits}"

    def _send(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> "httpx2.Response":
        http = self._http
        try:
            return self._client.request(method, path, json=body)
        except (http.ConnectError, http.ConnectTimeout) as error:
            raise VLLMError(
                f"There is no vLLM server at {self.url} ({error}). Start one with `{self.command()}`."
            ) from error
        except http.TimeoutException as error:
            raise VLLMError(
                f"The vLLM server at {self.url} did not answer {path} within {self._client.timeout.read:g} s; pass a "
                "larger timeout, or smaller groups."
            ) from error
        except http.HTTPError as error:
            raise VLLMError(
                f"The vLLM server at {self.url} broke off at {path} ({error}); its log says why."
            ) from error

    def _json(self, reply: "httpx2.Response") -> Any:
        if not reply.is_success:
            raise VLLMError(f"{reply.request.url} answers {reply.status_code}: {_reason(reply)}.")
        try:
            return reply.json()
        except ValueError as error:
            raise VLLMError(f"{reply.request.url} does not answer in JSON: {_short(reply.text)}") from error


def _choice(choice: Mapping[str, Any], *, scored: bool) -> Choice:
    tokens = choice.get("token_ids")
    if tokens is None:
        raise ValueError("there are no token_ids; vLLM returns them from version 0.10.2 on")
    reason = choice["finish_reason"]
    if reason not in ("stop", "length") or not tokens:
        raise ValueError(f"a completion of {len(tokens)} tokens came with finish_reason={reason!r}")
    logps = choice["logprobs"]["token_logprobs"] if scored else None
    if logps is not None and (len(logps) != len(tokens) or None in logps):
        raise ValueError(f"{len(logps)} log-probabilities came for {len(tokens)} tokens")
    return Choice(tokens=tokens, logps=logps, finished=reason == "stop")


def _reason(reply: "httpx2.Response") -> str:
    """What an error's body says, in vLLM's form, in FastAPI's, or in none."""
    try:
        body = reply.json()
        error = body.get("error", body)
        said = error.get("message") or error.get("detail") or body
    except (ValueError, AttributeError):
        said = reply.text or reply.reason_phrase
    return _short(said).rstrip(".")


def _short(said: object) -> str:
    text = " ".join(str(said).split())
    return text if len(text) <= 400 else f"{text[:400]} ..."


def _httpx2() -> Any:
    try:
        return importlib.import_module("httpx2")
    except ImportError as error:
        raise ImportError("Speaking to a vLLM server needs httpx2: pip install agiledpo[vllm].") from error
