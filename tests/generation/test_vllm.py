"""Completions from a server that speaks vLLM's API over HTTP, with a real model and real PEFT adapters behind it.

The server here answers as vLLM 0.32 and 0.33 do: fields, errors, seeds, order of processing, log-probabilities. It is
stricter in one point: vLLM ignores fields that it does not know.
"""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from agiledpo.algorithms import DPO, GRPO
from agiledpo.algorithms.actions import action_result
from agiledpo.generation import Completions, SamplingSettings, TransformersGenerator, VLLMError, VLLMGenerator
from agiledpo.scoring import RolloutBatch, Scorer
from tests.distributed import rollout_work
from tests.distributed.ranks import run_ranks

EOS = 2

# What vLLM takes for fields that are not said, beside the model's generation config: here that config is a nasty one.
DEFAULTS = {
    "temperature": 0.3,
    "top_p": 0.5,
    "top_k": 2,
    "min_p": 0.1,
    "repetition_penalty": 1.5,
    "presence_penalty": 1.0,
    "frequency_penalty": 1.0,
}
REQUIRED = {"model", "prompt", "n", "max_tokens", "return_token_ids"}
OPTIONAL = {
    "allowed_token_ids",
    "ignore_eos",
    "include_stop_str_in_output",
    "logprobs",
    "min_tokens",
    "return_tokens_as_token_ids",
    "seed",
    "skip_special_tokens",
    "stop",
    "stop_token_ids",
}


class RefusedError(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Choice:
    """A completion that is under way."""

    def __init__(self, index: int, told: Mapping[str, Any]) -> None:
        self.index = index
        self.tokens: list[int] = []
        self.logps: list[float] = []
        self.reason: str | None = None
        self.noise = torch.Generator()
        if told.get("seed") is None:
            self.noise.seed()
        else:
            self.noise.manual_seed(told["seed"] + index)

    def answer(self, told: Mapping[str, Any]) -> dict[str, Any]:
        names = [f"token_id:{token}" for token in self.tokens]
        tops = [{name: logp} for name, logp in zip(names, self.logps, strict=True)]
        scores = {"token_logprobs": self.logps, "tokens": names, "top_logprobs": tops}
        return {
            "index": self.index,
            "logprobs": None if told.get("logprobs") is None else scores,
            "finish_reason": self.reason,
            "token_ids": self.tokens if told["return_token_ids"] else None,
        }


@dataclass
class FakeVLLM:
    """One server: its settings, and what it was asked."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str = "base"
    root: str = "/models/base"
    version: str = "0.32.0"
    max_model_len: int = 40
    max_lora_rank: int = 8
    enable_lora: bool = True
    runtime_updating: bool = True
    logprobs_mode: str = "raw_logprobs"
    api_key: str | None = None
    tamper: Callable[[dict[str, Any]], object] | None = None
    loaded: dict[str, Path] = field(default_factory=dict)
    loads: list[str] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    peft: PeftModel | None = None
    gone: bool = False
    lock: Any = field(default_factory=threading.Lock)

    def answer(self, method: str, path: str, body: dict[str, Any]) -> object:
        if (method, path) == ("GET", "/v1/models"):
            return {"object": "list", "data": [self._card(self.name, self.root, None), *self._adapters()]}
        if (method, path) == ("GET", "/version"):
            return {"version": self.version}
        if (method, path) == ("POST", "/v1/completions"):
            self.requests.append(body)
            answer = self._complete(body)
            return answer if self.tamper is None else self.tamper(answer)
        if self.runtime_updating and (method, path) == ("POST", "/v1/load_lora_adapter"):
            return self._load(**body)
        if self.runtime_updating and (method, path) == ("POST", "/v1/unload_lora_adapter"):
            return self._unload(**body)
        raise LookupError

    def _card(self, name: str, root: str, parent: str | None) -> dict[str, Any]:
        longest = self.max_model_len if parent is None else None
        return {"id": name, "object": "model", "root": root, "parent": parent, "max_model_len": longest}

    def _adapters(self) -> list[dict[str, Any]]:
        return [self._card(name, str(path), self.name) for name, path in self.loaded.items()]

    # Adapters ---------------------------------------------------------------------------------------------------------

    def _load(self, *, lora_name: str, lora_path: str) -> str:
        if lora_name in self.loaded:
            raise RefusedError(400, f"The lora adapter '{lora_name}' has already been loaded.")
        if not (Path(lora_path) / "adapter_config.json").is_file():
            raise RefusedError(404, f"Loading lora {lora_name} failed: No adapter found for {lora_path}")
        config = json.loads((Path(lora_path) / "adapter_config.json").read_text())
        rank = max([config["r"], *(config["rank_pattern"] or {}).values()])
        failed = "Call to add_lora method failed: Worker failed with error"
        if not self.enable_lora:
            raise RefusedError(500, f"{failed} 'LoRA is not enabled. Use --enable-lora to enable LoRA.'")
        if rank > self.max_lora_rank:
            raise RefusedError(500, f"{failed} 'LoRA rank {rank} is greater than max_lora_rank {self.max_lora_rank}.'")
        if self.peft is None:
            self.peft = PeftModel.from_pretrained(self.model, lora_path, adapter_name=lora_name)
        else:
            self.peft.load_adapter(lora_path, adapter_name=lora_name)
        self.loaded[lora_name] = Path(lora_path)
        self.loads.append(lora_name)
        return f"Success: LoRA adapter '{lora_name}' added successfully."

    def _unload(self, *, lora_name: str) -> str:
        if lora_name not in self.loaded:
            raise RefusedError(404, f"The lora adapter '{lora_name}' cannot be found.")
        del self.loaded[lora_name]  # vLLM, too, forgets the name only
        return f"Success: LoRA adapter '{lora_name}' removed successfully."

    # Completions ------------------------------------------------------------------------------------------------------

    def _complete(self, body: dict[str, Any]) -> dict[str, Any]:
        unknown = body.keys() - REQUIRED - OPTIONAL - DEFAULTS.keys()
        if unknown or REQUIRED - body.keys():
            raise RefusedError(400, f"unknown fields {unknown}, missing fields {REQUIRED - body.keys()}")
        if body["model"] != self.name and body["model"] not in self.loaded:
            raise RefusedError(404, f"The model `{body['model']}` does not exist. Valid aliases: {self.name}.")
        told = {**DEFAULTS, **{name: value for name, value in body.items() if value is not None}}
        if not 0 <= told["temperature"] <= 2:
            raise RefusedError(400, f"temperature must be in [0, 2], got {told['temperature']}.")
        if told["temperature"] == 0 and told["n"] > 1:
            raise RefusedError(400, f"n must be 1 when using greedy sampling, got {told['n']}.")
        if len(told.get("stop", [])) > 4:
            raise RefusedError(400, "List should have at most 4 items after validation")
        assert not told["presence_penalty"]
        assert not told["frequency_penalty"]
        assert all(type(token) is int for token in told["prompt"])
        with self.lock, torch.no_grad():
            choices = self._choices(told)
        return {"id": "cmpl-0", "object": "text_completion", "model": body["model"], "choices": choices}

    def _choices(self, told: Mapping[str, Any]) -> list[dict[str, Any]]:
        ends = set() if told.get("ignore_eos") else {EOS, *told.get("stop_token_ids", [])}
        most = min(told["max_tokens"], self.max_model_len - len(told["prompt"]))
        choices = [Choice(index, told) for index in range(told["n"])]
        while going := [choice for choice in choices if choice.reason is None]:
            rows = self._logits(torch.tensor([[*told["prompt"], *choice.tokens] for choice in going]), told["model"])
            for choice, raw in zip(going, rows, strict=True):
                self._draw(choice, raw, ends, told)
                text = self.tokenizer.decode(choice.tokens, skip_special_tokens=told.get("skip_special_tokens", True))
                late = len(choice.tokens) > told.get("min_tokens", 0)
                stops = [stop for stop in told.get("stop", []) if stop in text and late]
                if choice.tokens[-1] in ends or stops:
                    choice.reason = "stop"
                elif len(choice.tokens) == most:
                    choice.reason = "length"
        return [choice.answer(told) for choice in choices]

    def _logits(self, ids: Tensor, name: str) -> Tensor:
        """Of the next token of each row, float32 (rows, vocabulary)."""
        if self.peft is None:
            return self.model(input_ids=ids).logits[:, -1].float()
        if name == self.name:
            with self.peft.disable_adapter():
                return self.peft(input_ids=ids).logits[:, -1].float()
        self.peft.set_adapter(name)
        return self.peft(input_ids=ids).logits[:, -1].float()

    def _draw(self, choice: "Choice", raw: Tensor, ends: set[int], told: Mapping[str, Any]) -> None:
        """Take the next token, in the order of vLLM's sampler."""
        logits = raw.clone()
        if "allowed_token_ids" in told:
            logits[[token for token in range(len(logits)) if token not in told["allowed_token_ids"]]] = -torch.inf
        if len(choice.tokens) < told.get("min_tokens", 0):
            logits[sorted(ends)] = -torch.inf
        seen = torch.tensor(sorted({*told["prompt"], *choice.tokens}))
        penalty = told["repetition_penalty"]
        logits[seen] = torch.where(logits[seen] > 0, logits[seen] / penalty, logits[seen] * penalty)
        if told["temperature"] == 0:
            token = int(logits.argmax())
        else:
            logits = self._truncated(logits / told["temperature"], told)
            draws = torch.empty_like(logits).exponential_(generator=choice.noise)
            token = int((logits.softmax(-1) / draws).argmax())
        kind, _, scale = self.logprobs_mode.partition("_")
        scores = raw if kind == "raw" else logits
        scores = scores.log_softmax(-1) if scale == "logprobs" else scores
        choice.tokens.append(token)
        choice.logps.append(max(float(scores[token]), -9999.0))

    def _truncated(self, logits: Tensor, told: Mapping[str, Any]) -> Tensor:
        probs = logits.softmax(-1)
        logits = logits.masked_fill(probs < told["min_p"] * probs.max(), -torch.inf)
        if told["top_k"] > 0:
            logits = logits.masked_fill(logits < logits.topk(told["top_k"]).values[-1], -torch.inf)
        ordered, places = logits.softmax(-1).sort(descending=True)
        return logits.masked_fill(
            torch.zeros_like(logits, dtype=torch.bool).scatter(0, places, ordered.cumsum(0) - ordered >= told["top_p"]),
            -torch.inf,
        )


@contextmanager
def serving(fake: FakeVLLM) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def _handle(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
            key = self.headers.get("Authorization")
            try:
                if fake.gone:
                    raise ConnectionAbortedError
                if fake.api_key is not None and key != f"Bearer {fake.api_key}":
                    raise RefusedError(401, "Unauthorized")
                status, answer = 200, fake.answer(self.command, self.path, body)
            except ConnectionAbortedError:
                self.close_connection = True
                return
            except LookupError:
                status, answer = 404, {"detail": "Not Found"}
            except RefusedError as error:
                status, answer = error.status, {"error": {"message": str(error), "type": "x", "code": error.status}}
            sent = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        do_GET = do_POST = _handle  # noqa: N815

        def log_message(self, *args: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_port}"
    finally:
        fake.gone = True
        http.shutdown()
        thread.join()
        http.server_close()


@pytest.fixture
def fake(tiny_model, tiny_tokenizer) -> FakeVLLM:
    return FakeVLLM(tiny_model().eval(), tiny_tokenizer)


@pytest.fixture
def address(fake) -> Iterator[str]:
    with serving(fake) as url:
        yield url


@pytest.fixture
def files(tmp_path) -> Path:
    """Where adapters are written."""
    return tmp_path / "adapters"


@pytest.fixture
def generator(address, files) -> Iterator[VLLMGenerator]:
    with VLLMGenerator(address, adapter_directory=files) as generator:
        yield generator


def sample(generator: Any, agent: DPO, prompts: Sequence[Tensor], group_size: int = 3, **settings: Any) -> Completions:
    return generator.generate(
        agent, prompts, group_size=group_size, settings=SamplingSettings(**{"max_new_tokens": 6, **settings})
    )


def rollout(prompts: Sequence[Tensor], completions: Completions) -> RolloutBatch:
    return RolloutBatch(
        prompts=prompts,
        completions=completions.tokens,
        rewards=[[0.0] * len(group) for group in completions.tokens],
        advantages=[None] * len(prompts),
        sampling_logps=completions.logps,
        finished=completions.finished,
        labels=[f"row {place}" for place in range(len(prompts))],
    )


def assert_logps_are_the_actors(agent: DPO, prompts: Sequence[Tensor], completions: Completions, at: float) -> None:
    scorer = Scorer(agent.lm, pad_token_id=0, temperature=at)
    with torch.no_grad(), agent.select_adapter("actor"), scorer.session():
        expected = scorer.score_completions(rollout(prompts, completions))
    given = [logps for group in completions.logps for logps in group or ()]
    for row, logps in enumerate(given):
        torch.testing.assert_close(logps, expected.logps[row][expected.mask[row]], atol=2e-5, rtol=1e-5)
    assert len(given) == len(expected.mask)


def tokens_of(completions: Completions) -> list[list[int]]:
    return [tokens.tolist() for group in completions.tokens for tokens in group]


# The current actor --------------------------------------------------------------------------------------------------


def test_completions_are_the_current_actors(fake, generator, make_agent, prompts, make_experiences) -> None:
    agent = make_agent(lr=0.1)
    before = sample(generator, agent, prompts)
    assert_logps_are_the_actors(agent, prompts, before, 1.0)
    agent.learn(make_experiences([(3, 4, 5), (2, 3, 3)]))
    after = sample(generator, agent, prompts)
    assert_logps_are_the_actors(agent, prompts, after, 1.0)
    with pytest.raises(AssertionError):  # the step was large enough to be told
        assert_logps_are_the_actors(agent, prompts, before, 1.0)
    assert len(fake.loads) == 2
    second = fake.loads[1]
    assert list(fake.loaded) == [second]
    assert second.endswith("agent0-2")
    assert {request["model"] for request in fake.requests[-len(prompts) :]} == {second}


def test_greedy_completions_are_those_of_this_process(generator, make_agent, prompts) -> None:
    agent = make_agent()
    stream = agent.sampling_stream.state_dict()
    theirs = sample(generator, agent, prompts, temperature=0.0, max_new_tokens=12)
    ours = sample(TransformersGenerator(), agent, prompts, temperature=0.0, max_new_tokens=12)
    assert tokens_of(theirs) == tokens_of(ours)
    assert theirs.finished == ours.finished
    assert_logps_are_the_actors(agent, prompts, theirs, 1.0)
    assert all(map(torch.equal, agent.sampling_stream.state_dict()["states"], stream["states"]))  # nothing was drawn


def test_an_unchanged_actor_is_loaded_once(fake, generator, make_agent, prompts) -> None:
    agent = make_agent()
    for _ in range(3):
        sample(generator, agent, prompts[:1])
    assert len(fake.loads) == 1


def test_agents_share_a_generator(fake, generator, tiny_model, make_agent, prompts) -> None:
    model = tiny_model()
    agents = [make_agent(actor_network=model, seed=seed, index=seed) for seed in (1, 2)]
    for agent in [*agents, *agents]:
        assert_logps_are_the_actors(agent, prompts, sample(generator, agent, prompts), 1.0)
    assert len(fake.loads) == len(fake.loaded) == 2


def test_an_agent_that_is_overwritten_in_place_is_loaded_again(generator, tiny_model, make_agent, prompts) -> None:
    model = tiny_model()
    agent, other = (make_agent(actor_network=model, seed=seed, index=seed) for seed in (1, 2))
    sample(generator, agent, prompts)
    agent.inherit(other)
    assert_logps_are_the_actors(agent, prompts, sample(generator, agent, prompts), 1.0)
    clone = other.clone(index=agent.index)  # another agent of the same index
    with torch.no_grad():
        clone.adapters.own_parameters("actor")[0].mul_(-3)
    assert_logps_are_the_actors(clone, prompts, sample(generator, clone, prompts), 1.0)


def test_the_server_holds_no_more_adapters_than_were_asked_for(
    fake, address, files, tiny_model, make_agent, prompts
) -> None:
    model = tiny_model()
    agents = [make_agent(actor_network=model, seed=seed, index=seed) for seed in range(3)]
    with VLLMGenerator(address, adapter_directory=files, adapters_kept=2) as generator:
        for agent in (agents[0], agents[1], agents[0], agents[2]):
            sample(generator, agent, prompts[:1])
        assert [name.split("agent")[-1] for name in fake.loaded] == ["0-1", "2-3"]
        assert sorted(path.name for path in next(files.iterdir()).iterdir()) == sorted(fake.loaded)


def test_nothing_is_left(fake, address, files, make_agent, prompts) -> None:
    with VLLMGenerator(address, adapter_directory=files) as generator:
        sample(generator, make_agent(), prompts)
        assert [path.parent.parent for path in fake.loaded.values()] == [files]
    assert not fake.loaded
    assert not list(files.iterdir())


def test_nothing_is_left_when_it_fails(fake, address, files, make_agent, prompts) -> None:
    with VLLMGenerator(address, adapter_directory=files) as generator:
        agent = make_agent(lora_config=LoraConfig(r=32, target_modules="all-linear"))
        with pytest.raises(VLLMError, match="max_lora_rank 8"):
            sample(generator, agent, prompts)
        assert not list(next(files.iterdir()).iterdir())
        fake.tamper = lambda answer: {}
        with pytest.raises(VLLMError):
            sample(generator, make_agent(), prompts, temperature=0.5)
        assert len(fake.loaded) == 1
    assert not fake.loaded
    assert not list(files.iterdir())


def test_a_server_that_goes_first_is_warned_of(fake, files, make_agent, prompts) -> None:
    with serving(fake) as url:
        generator = VLLMGenerator(url, adapter_directory=files)
        sample(generator, make_agent(), prompts[:1])
    with pytest.warns(UserWarning, match="may still be loaded"):
        generator.close()
    assert not list(files.iterdir())


# Sampling -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "known"),
    [
        ({}, ("raw_logprobs", "processed_logprobs")),
        ({"temperature": 0.0}, ("raw_logprobs", "processed_logprobs")),
        ({"temperature": 0.7}, ("processed_logprobs",)),
        ({"top_p": 0.7}, ("raw_logprobs",)),
        ({"top_k": 5}, ("raw_logprobs",)),
        ({"min_p": 0.1}, ("raw_logprobs",)),
        ({"repetition_penalty": 1.3}, ("raw_logprobs",)),
        ({"min_new_tokens": 4}, ("raw_logprobs",)),
        ({"temperature": 0.7, "top_p": 0.7}, ()),
    ],
    ids=str,
)
def test_logps_are_given_where_they_are_those_of_the_contract(
    fake, address, make_agent, prompts, settings, known
) -> None:
    agent = make_agent()
    for fake.logprobs_mode in ("raw_logprobs", "processed_logprobs", "raw_logits", "processed_logits"):
        with VLLMGenerator(address) as generator:
            completions = sample(generator, agent, prompts[:3], 2, **settings)
        if fake.logprobs_mode in known:
            assert_logps_are_the_actors(agent, prompts[:3], completions, settings.get("temperature") or 1.0)
        else:
            assert completions.logps == [None] * 3
        assert rollout(prompts[:3], completions).completion_count == 6


def test_sampling_follows_the_agents_stream(generator, make_agent, prompts) -> None:
    agent = make_agent()
    twins = [prompts[0], prompts[0], *prompts]
    state = agent.sampling_stream.state_dict()
    first = tokens_of(sample(generator, agent, twins))
    assert first[:3] != first[3:6]  # seeds are per prompt
    assert len(set(map(tuple, first[:3]))) == 3
    assert tokens_of(sample(generator, agent, twins)) != first
    agent.sampling_stream.load_state_dict(state)
    assert tokens_of(sample(generator, agent, twins)) == first


def test_every_setting_is_said(fake, generator, make_agent, prompts) -> None:
    settings = SamplingSettings(
        max_new_tokens=5, min_new_tokens=2, temperature=0.9, top_p=0.8, top_k=7, min_p=0.05, repetition_penalty=1.1
    )
    generator.generate(make_agent(), prompts[:1], group_size=4, settings=settings)
    request = fake.requests[-1]
    expected = {**DEFAULTS, "temperature": 0.9, "top_p": 0.8, "top_k": 7, "min_p": 0.05, "repetition_penalty": 1.1}
    expected |= {"presence_penalty": 0.0, "frequency_penalty": 0.0, "max_tokens": 5, "min_tokens": 2, "n": 4}
    assert {name: request[name] for name in expected} == expected
    assert request["prompt"] == prompts[0].tolist()


def test_completions_end_with_their_end(generator, make_agent, tiny_tokenizer, prompts) -> None:
    tiny_tokenizer.eos_token = "w7"  # beside the model's own
    completions = generator.generate(
        make_agent(),
        prompts,
        group_size=12,
        settings=SamplingSettings(max_new_tokens=20, temperature=1.5, stop=("w9", "<s>")),
        tokenizer=tiny_tokenizer,
    )
    ends = {EOS, 7, 9, 1, *range(90, 97)}  # w9 is in w90 as well
    groups = zip(completions.tokens, completions.finished, strict=True)
    flat = [pair for tokens, finished in groups for pair in zip(tokens, finished, strict=True)]
    for tokens, finished in flat:
        assert finished is (int(tokens[-1]) in ends)
        assert ends.isdisjoint(tokens[:-1].tolist())
        assert finished or len(tokens) == 20
    assert {EOS, 7, 9, 1} <= {int(tokens[-1]) for tokens, finished in flat if finished}
    assert not all(finished for _, finished in flat)


def test_the_server_may_allow_less_room_than_the_model(fake, generator, make_agent) -> None:
    prompt = torch.arange(3, 38)
    completions = sample(generator, make_agent(), [prompt, prompt[:5]], 2, min_new_tokens=6, max_new_tokens=9)
    assert list(map(len, completions.tokens[0])) == [5, 5]
    assert max(request["max_tokens"] for request in fake.requests) == 9
    with pytest.raises(ValueError, match="Prompt 1 has 40 tokens and leaves no room"):
        sample(generator, make_agent(), [prompt, torch.arange(3, 43)])


# What goes wrong ----------------------------------------------------------------------------------------------------


def test_no_server(files, make_agent, prompts) -> None:
    with (
        VLLMGenerator("http://127.0.0.1:9/v1", adapter_directory=files) as generator,
        pytest.raises(VLLMError, match=r"There is no vLLM server at http://127.0.0.1:9 .*vllm serve"),
    ):
        sample(generator, make_agent(), prompts)
    assert not list(files.iterdir())


def test_a_server_that_takes_too_long_or_breaks_off(fake, address, files, make_agent, prompts) -> None:
    agent = make_agent()
    with VLLMGenerator(address, adapter_directory=files, timeout=0.2) as generator:
        sample(generator, agent, prompts[:1], 1, max_new_tokens=1)
        fake.tamper = lambda answer: time.sleep(0.5) or answer
        with pytest.raises(VLLMError, match=r"did not answer /v1/completions within 0.2 s; pass a larger timeout"):
            sample(generator, agent, prompts[:1], 1, max_new_tokens=1)
        fake.gone = True
        with pytest.raises(VLLMError, match=r"broke off at /v1/completions"):
            sample(generator, agent, prompts[:1], 1, max_new_tokens=1)
        fake.gone = False


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"runtime_updating": False}, r"does not load adapters while it runs.*VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"),
        ({"enable_lora": False}, r"LoRA is not enabled.*--enable-lora --max-lora-rank 8"),
        ({"max_lora_rank": 1}, r"LoRA rank 4 is greater than max_lora_rank 1.*--max-lora-rank 8"),
        ({"api_key": "secret"}, "401: Unauthorized"),
    ],
    ids=str,
)
def test_servers_that_cannot_be_used(fake, generator, make_agent, prompts, settings, message) -> None:
    for name, value in settings.items():
        setattr(fake, name, value)
    with pytest.raises(VLLMError, match=message):
        sample(generator, make_agent(), prompts)
    assert not fake.loaded


def test_an_api_key_is_sent(fake, address, make_agent, prompts) -> None:
    fake.api_key = "secret"
    with VLLMGenerator(address, api_key="secret") as generator:
        sample(generator, make_agent(), prompts[:1])


def test_files_that_the_server_does_not_see(fake, generator, make_agent, prompts) -> None:
    load = fake._load
    fake._load = lambda *, lora_name, lora_path: load(lora_name=lora_name, lora_path=f"/elsewhere{lora_path}")
    with pytest.raises(VLLMError, match="pass an adapter_directory"):
        sample(generator, make_agent(), prompts)


def test_another_base_model(fake, address, generator, tiny_model, make_agent, prompts) -> None:
    model = tiny_model()
    model.name_or_path = "someone/Other-1B"
    agent = make_agent(actor_network=model)
    with pytest.raises(VLLMError, match="serves base, not someone/Other-1B"):
        sample(generator, agent, prompts)
    generator.base_model = "base"
    sample(generator, agent, prompts[:1])
    fake.root = "/disk/Other-1B/"
    with VLLMGenerator(address) as other:
        sample(other, agent, prompts[:1])


def test_malformed_answers(fake, generator, make_agent, prompts) -> None:
    def change(**values: object) -> Callable[[dict[str, Any]], object]:
        return lambda answer: {"choices": [*answer["choices"][:-1], {**answer["choices"][-1], **values}]}

    agent = make_agent()
    sample(generator, agent, prompts[:1])
    for fake.tamper, message in (
        (lambda answer: {}, "does not answer as vLLM does"),
        (lambda answer: "no JSON", "does not answer in JSON"),
        (lambda answer: [], "does not answer as vLLM does"),
        (lambda answer: {"choices": answer["choices"][:-1]}, "2 completions came for n=3"),
        (change(index=0), "3 completions came for n=3"),
        (change(token_ids=None), "from version 0.10.2 on"),
        (change(token_ids=[]), "a completion of 0 tokens"),
        (change(finish_reason="abort"), "finish_reason='abort'"),
        (change(logprobs={"token_logprobs": []}), "0 log-probabilities came"),
        (change(logprobs=None), "does not answer as vLLM does"),
    ):
        with pytest.raises(VLLMError, match=message):
            sample(generator, agent, prompts[:1])


def test_choices_are_put_into_order(fake, generator, make_agent, prompts) -> None:
    agent = make_agent()
    state = agent.sampling_stream.state_dict()
    straight = sample(generator, agent, prompts)
    fake.tamper = lambda answer: {**answer, "choices": answer["choices"][::-1]}
    agent.sampling_stream.load_state_dict(state)
    assert tokens_of(sample(generator, agent, prompts)) == tokens_of(straight)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"use_dora": True}, "use_dora=True"),
        ({"trainable_token_indices": [4, 5]}, "trainable_token_indices"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern.*0.32 heeds"),
    ],
    ids=str,
)
def test_adapters_that_vllm_would_serve_otherwise(fake, generator, make_agent, prompts, settings, named) -> None:
    fake.version = "0.31.0"
    config = LoraConfig(**{"r": 4, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM", **settings})
    with pytest.raises(ValueError, match=named):
        sample(generator, make_agent(lora_config=config), prompts)
    assert not fake.loads


def test_patterns_are_served_by_versions_that_heed_them(generator, make_agent, prompts) -> None:
    config = LoraConfig(r=4, target_modules="all-linear", rank_pattern={"q_proj": 8}, alpha_pattern={"v_proj": 32})
    agent = make_agent(lora_config=config)
    assert_logps_are_the_actors(agent, prompts, sample(generator, agent, prompts), 1.0)


@pytest.mark.parametrize("temperature", [0.001, 3.0])
def test_temperatures_that_vllm_does_not_take(generator, make_agent, prompts, temperature) -> None:
    with pytest.raises((ValueError, VLLMError), match=f"temperature.*{temperature}"):
        sample(generator, make_agent(), prompts, temperature=temperature)


@pytest.mark.parametrize(
    "arguments", [{"timeout": 0.0}, {"concurrency": 0}, {"adapters_kept": 0}, {"base_url": "localhost:8000"}], ids=str
)
def test_arguments_are_checked(arguments) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        VLLMGenerator(**arguments)


def test_after_a_failure_nothing_more_is_asked_for(fake, address, make_agent, prompts) -> None:
    fake.tamper = lambda answer: {"choices": []}
    with VLLMGenerator(address, concurrency=1) as generator, pytest.raises(VLLMError, match="0 completions came"):
        sample(generator, make_agent(), [prompts[0]] * 60, temperature=0.7, top_p=0.7)
    assert len(fake.requests) < 30


# What learns from it ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_grpo_learns_from_it_whether_or_not_log_probabilities_come_along(
    fake, generator, tiny_model, lora, prompts, temperature
) -> None:
    agent = GRPO(
        actor_network=tiny_model(), lora_config=lora, generator=generator, temperature=temperature, group_size=3, lr=0.1
    )
    for loads in (1, 2):
        completions = sample(generator, agent, prompts, temperature=temperature)
        assert (completions.logps[0] is None) is (temperature != 1)
        rewards = [[float(len(ids)) + place for place, ids in enumerate(group)] for group in completions.tokens]
        warned = temperature != 1 and loads == 1  # it does not know how likely its completions are
        with pytest.warns(UserWarning, match="correction does nothing") if warned else nullcontext():
            assert agent.learn(replace(rollout(prompts, completions), rewards=rewards))["grad_norm"] > 0
        assert len(fake.loads) == loads
    result = action_result(prompts, completions, pad_token_id=0)
    assert (result.sampling_logps is None) is (temperature != 1)
    assert [len(ids) for ids in result.completion_ids] == [3] * len(prompts)


def test_of_several_processes_one_loads_an_adapter_for_all(fake, address, files) -> None:
    first, second = run_ranks(rollout_work.served, address, files)
    assert first == second
    assert [len(rollout["completions"]) for rollout in first] == [6, 6, 1]
    assert len(fake.loads) == 3  # one for each version of the actor
    assert len({name.rpartition("-")[0] for name in fake.loads}) == 1  # by one of the processes
    assert not fake.loaded
    asked = [request for request in fake.requests if request["model"] != fake.name]
    prompts = [prompt for rollout in first for prompt in rollout["prompts"]]
    assert Counter(tuple(request["prompt"]) for request in asked) == Counter(map(tuple, prompts))
    assert list(files.iterdir()) == []
