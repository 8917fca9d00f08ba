"""What freshly sampled answers are measured by: the rule they should satisfy, and what tells learning from collapse."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from agiledpo.algorithms import DPO
from agiledpo.algorithms.core.randomness import TorchRandomStream
from agiledpo.embedded.rule import count_words, judge
from agiledpo.embedded.sampling import Answer, sample_answers
from agiledpo.evaluation.kl import kl_of

MAX_NEW_TOKENS = 160
_TEMPERATURE = 0.7
# The KL is a mean over thousands of tokens already; more answers would only cost time.
_KL_ANSWERS = 24


@dataclass(frozen=True)
class Measurement:
    """Figures over sampled answers to held-out prompts.

    Attributes:
        satisfied: Share of answers that satisfy the rule.
        names_topic: Share of answers that name their prompt's topic.
        distinct: Share of answers that no other answer repeats.
        words: Mean length of an answer, words.
        kl_per_token: Mean over the tokens of some of the answers of KL(policy || base), nats.
        answers: The answers, in the order of the prompts.
    """

    satisfied: float
    names_topic: float
    distinct: float
    words: float
    kl_per_token: float
    answers: Sequence[Answer]


def measure(
    agent: DPO, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Mapping[str, Any]], seed: int
) -> Measurement:
    """Let an agent's actor answer prompts and measure the answers.

    Args:
        agent: The agent.
        tokenizer: The model's tokenizer.
        prompts: Held-out prompts, each with ``prompt`` (chat messages) and ``topic`` (words).
        seed: Seed of the sampling.
    """
    with agent.select_adapter("actor"):
        agent.base.model.eval()
        answers = sample_answers(
            agent.lm,
            tokenizer,
            [row["prompt"] for row in prompts],
            max_new_tokens=MAX_NEW_TOKENS,
            temperature=_TEMPERATURE,
            stream=TorchRandomStream(seed, agent.device),
        )
    verdicts = [judge(row["topic"], a.text, a.finished) for row, a in zip(prompts, answers, strict=True)]
    texts = [answer.text for answer in answers]
    return Measurement(
        satisfied=_share(verdict.satisfied for verdict in verdicts),
        names_topic=_share(verdict.names_topic for verdict in verdicts),
        distinct=_share(texts.count(text) == 1 for text in texts),
        words=sum(map(count_words, texts)) / len(texts),
        kl_per_token=_mean_kl(agent, tokenizer, [row["prompt"] for row in prompts[:_KL_ANSWERS]], texts[:_KL_ANSWERS]),
        answers=answers,
    )


def _mean_kl(
    agent: DPO,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[dict[str, str]]],
    answers: Sequence[str],
) -> float:
    """Mean KL(policy || base) per token of given answers, nats."""
    before, after = [], []
    for prompt, answer in zip(prompts, answers, strict=True):
        start = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
        before.append(torch.tensor(tokenizer.encode(str(start), add_special_tokens=False)))
        after.append(torch.tensor([*tokenizer.encode(answer, add_special_tokens=False), tokenizer.eos_token_id]))
    return float(kl_of(agent, before, after).sum()) / max(sum(map(len, after)), 1)


def _share(flags: Any) -> float:
    values = [bool(flag) for flag in flags]
    return sum(values) / len(values)
