"""One line of a file of rollouts: the prompt, what was answered, the reward."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from agiledpo.data.rollouts.errors import UnusableRolloutError
from agiledpo.data.rollouts.items import (
    Message,
    chat_tools,
    item_type,
    message_of,
    prompt_messages,
    reasoning_text,
)
from agiledpo.data.rollouts.ranking import LARGEST_REWARD

PARAMETERS = "responses_create_params"
MULTI_STEP = "multi_step"
EMPTY_RESPONSE = "empty_response"


class MultiStep(StrEnum):
    """What becomes of a rollout whose output is more than one answer: tool calls and their results, several turns."""

    SKIP = "skip"
    FINAL = "final"


@dataclass(frozen=True, slots=True)
class Prompt:
    """What was asked.

    Attributes:
        messages: All messages, the request's instructions first, as a system message.
        tools: The tools on offer, as chat templates take them; empty for none.
    """

    messages: list[Message]
    tools: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Answer:
    """What was answered.

    Attributes:
        completion: One assistant message, or nothing if the rollout has no answer that is used.
        left_out: Why nothing is used: "multi_step" or "empty_response"; None if something is.
        final_only: More came before the completion, and was left away because `MultiStep.FINAL` asked for it.
    """

    completion: list[Message]
    left_out: str | None = None
    final_only: bool = False


def read_record(line: bytes) -> dict[str, Any]:
    """Parse a line.

    Args:
        line: With or without its line feed.

    Raises:
        UnusableRolloutError: It is not a JSON object in UTF-8.
    """
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UnusableRolloutError(
            "not_utf8",
            None,
            f"byte {error.start + 1} is not UTF-8",
            "Convert the file: iconv -f ENCODING -t UTF-8 FILE, with the encoding it was written in.",
        ) from None
    except (ValueError, RecursionError) as error:
        if not line.endswith(b"\n"):
            problem = "the last line is cut off: it is not complete JSON and has no line feed"
            remedy = "Its writer was interrupted or is still at work: wait for it, or delete that line."
        else:
            problem = f"it is not JSON ({error})"
            remedy = "Write one JSON object per line; `jq -c . FILE` does so for objects that span lines."
        raise UnusableRolloutError("not_json", None, problem, remedy) from None
    if not isinstance(record, dict):
        remedy = "Write one rollout per line"
        remedy += "; `jq -c '.[]' FILE` does so for a list of them." if isinstance(record, list) else "."
        raise UnusableRolloutError(
            "not_an_object", None, f"expected a JSON object, got {type(record).__name__}", remedy
        )
    return record


def read_parameters(record: Mapping[str, Any]) -> dict[str, Any]:
    """The request.

    Raises:
        UnusableRolloutError: There is none.
    """
    parameters = record.get(PARAMETERS)
    if not isinstance(parameters, dict) or "input" not in parameters:
        missing = PARAMETERS if not isinstance(parameters, dict) else f"{PARAMETERS}.input"
        raise UnusableRolloutError(
            "input",
            missing,
            "it is missing" if missing not in record else "it is not an object",
            "Use the file of rollouts that NeMo Gym wrote, where every line repeats the request.",
        )
    return parameters


def read_prompt(parameters: Mapping[str, Any]) -> Prompt:
    """What the request asked: all of its messages, its instructions and its tools.

    Raises:
        UnusableRolloutError: See :func:`~agiledpo.data.rollouts.items.prompt_messages`.
    """
    messages = prompt_messages(parameters["input"], field=f"{PARAMETERS}.input")
    instructions = parameters.get("instructions")
    if instructions:
        if not isinstance(instructions, str):
            raise UnusableRolloutError(
                "input",
                f"{PARAMETERS}.instructions",
                f"expected a text, got {type(instructions).__name__}",
                "Write the instructions as one text.",
            )
        messages.insert(0, {"role": "system", "content": instructions})
    return Prompt(messages, chat_tools(parameters.get("tools"), field=f"{PARAMETERS}.tools"))


def read_answer(record: Mapping[str, Any], multi_step: MultiStep) -> Answer:
    """What was answered: `output`, or `response.output` where the whole response is kept.

    A single step is one assistant message with text, and the reasoning before it; messages without text do not count.
    With `MultiStep.FINAL` it is the last such message of any output, and the reasoning between it and what came before.

    Args:
        record: A line.
        multi_step: What becomes of more than a single step.

    Raises:
        UnusableRolloutError: There is no output, or an item is malformed.
    """
    field, output = "output", record.get("output")
    if output is None and isinstance(record.get("response"), dict):
        field, output = "response.output", record["response"].get("output")
    if not isinstance(output, list):
        raise UnusableRolloutError(
            "output",
            field,
            "it is missing" if output is None else f"expected a list of items, got {type(output).__name__}",
            "Every rollout needs its list of output items; drop rollouts that failed, or use on_invalid='skip'.",
        )
    answer: Message | None = None
    steps = 0
    reasoning = ""
    for number, item in enumerate(output):
        where = f"{field}[{number}]"
        kind = item_type(item, field=where, reason="output")
        if kind == "reasoning":
            reasoning += reasoning_text(item, field=where, reason="output")
            continue
        if kind == "message":
            message = message_of(item, field=where, reason="output")
            if message["role"] == "assistant" and not message.get("tool_calls"):
                if not message["content"].strip():
                    continue
                answer = message
                if reasoning:
                    answer["reasoning_content"] = reasoning
        steps += 1
        reasoning = ""
    if multi_step is MultiStep.SKIP and steps > (answer is not None):
        return Answer([], left_out=MULTI_STEP)
    if answer is None:
        return Answer([], left_out=EMPTY_RESPONSE)
    return Answer([answer], final_only=steps > 1)


def read_reward(record: Mapping[str, Any]) -> float:
    """The reward. A missing one is not 0: that would make a bad answer of one that nobody judged.

    Raises:
        UnusableRolloutError: It is missing, not a finite number, or so large that gaps would not be finite.
    """
    reward = record.get("reward")
    if type(reward) is float and abs(reward) <= LARGEST_REWARD:
        return reward
    if type(reward) is int and abs(reward) < 2**63:
        return float(reward)
    if "reward" not in record or reward is None:
        problem = "it is missing" if "reward" not in record else "it is null"
    elif isinstance(reward, float) and math.isfinite(reward):
        problem = f"it is {reward}, beyond {LARGEST_REWARD:g}, so that gaps of rewards would not be finite"
    elif isinstance(reward, (int, float)) and not isinstance(reward, bool):
        problem = "it is not a finite number" if isinstance(reward, int) else f"it is {reward}, not a finite number"
    else:
        problem = f"expected a number, got {reward!r:.40}"
    raise UnusableRolloutError(
        "reward", "reward", problem, "Give every rollout the number its verifier gave; drop those that were not judged."
    )
