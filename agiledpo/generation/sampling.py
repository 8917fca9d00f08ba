"""How completions are sampled, and what comes of it."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from agiledpo.losses.checks import check_number, check_whole_number

if TYPE_CHECKING:
    from agiledpo.algorithms.core.llm import LLMAlgorithm


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """How tokens are drawn, and when a completion ends.

    Attributes:
        max_new_tokens: Most tokens of a completion, its end-of-sequence token included.
        max_model_len: Most tokens of a prompt with its completion; None for what the model allows.
        min_new_tokens: No end-of-sequence token before as many, and no stop text either.
        temperature: What logits are divided by; 0 takes the most likely token each time.
        top_p: Only the most likely tokens that together have this probability, in (0, 1].
        top_k: Only the k most likely tokens; 0 for all.
        min_p: Only tokens at least this many times as likely as the most likely one, in [0, 1].
        repetition_penalty: What logits of tokens that were there before are divided by (positive) or multiplied with
            (negative); 1 for none.
        stop: Texts behind which a completion ends; it keeps them.

    Raises:
        ValueError: A number is none or out of range, or a stop text is empty.
    """

    max_new_tokens: int
    max_model_len: int | None = None
    min_new_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_whole_number("max_new_tokens", self.max_new_tokens)
        check_whole_number("min_new_tokens", self.min_new_tokens, minimum=0)
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(f"min_new_tokens={self.min_new_tokens} is above max_new_tokens={self.max_new_tokens}.")
        if self.max_model_len is not None:
            check_whole_number("max_model_len", self.max_model_len, minimum=2)
        check_number("temperature", self.temperature, minimum=0.0)
        check_number("top_p", self.top_p, minimum=0.0, exclusive=True)
        check_whole_number("top_k", self.top_k, minimum=0)
        check_number("min_p", self.min_p, minimum=0.0)
        check_number("repetition_penalty", self.repetition_penalty, minimum=0.0, exclusive=True)
        for name, value in (("top_p", self.top_p), ("min_p", self.min_p)):
            if value > 1:
                raise ValueError(f"{name}={value} must be at most 1.")
        if isinstance(self.stop, str) or not all(isinstance(text, str) and text for text in self.stop):
            raise ValueError(f"stop={self.stop!r}; a tuple of texts that are not empty is needed.")


@dataclass(frozen=True, eq=False)
class Completions:
    """What was sampled for P prompts, G completions each.

    Attributes:
        tokens: For each prompt, for each completion its tokens, int64 (tokens,) on the CPU, at least one; the
            end-of-sequence token is among them where one was sampled.
        logps: Log-probability of each of these tokens, float32 (tokens,) on the CPU: of the softmax of the logits
            divided by the temperature (by 1 if that is 0), before top-p and the like leave tokens out. None for a
            prompt where whoever sampled does not tell.
        finished: Whether each completion ended itself, by an end-of-sequence token or a stop text.
    """

    tokens: Sequence[Sequence[Tensor]]
    logps: Sequence[Sequence[Tensor] | None]
    finished: Sequence[Sequence[bool]]


class Generator(Protocol):
    """What samples completions from an agent's actor."""

    def generate(
        self,
        agent: "LLMAlgorithm",
        prompts: Sequence[Tensor],
        *,
        group_size: int,
        settings: SamplingSettings,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> Completions:
        """Sample ``group_size`` completions for each prompt.

        Args:
            agent: Whose actor answers, as it is now; it draws from ``agent.sampling_stream`` and nothing else of the
                agent changes.
            prompts: P prompts, int64 (prompt tokens,), of any lengths.
            group_size: G.
            settings: How.
            tokenizer: Its end-of-sequence token ends completions beside the model's own; stop texts need it.

        Raises:
            ValueError: A prompt leaves no room within the model's longest sequence, or stop texts lack a tokenizer.
        """
        ...


class PreparedGenerator(ABC):
    """A generator whose processes have to agree on something first, such as who gives a server the weights."""

    @abstractmethod
    def prepare(self, agent: "LLMAlgorithm") -> None:
        """Called in all processes of ``agent.team`` before each of them samples its share.

        Args:
            agent: Whose actor is going to answer, as it is now.
        """
