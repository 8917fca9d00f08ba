"""Find out what a chat template makes of messages that it does not render as they are, and what can be done."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import markupsafe

from agiledpo.data.chat_template import REFUSALS, ChatTemplate, RenderedChat
from agiledpo.data.examples import Message
from agiledpo.data.prefixes import common_prefix_length
from agiledpo.data.template_kwargs import mentions

# Reasoning beside the content, under the names that templates read it by.
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
_THINKING = re.compile(r"<think>.*?</think>|\[THINK\].*?\[/THINK\]|<\|channel>thought.*?<channel\|>", re.DOTALL)
_BLANK_THINKING = re.compile(r"<think>\s*</think>|\[THINK\]\s*\[/THINK\]|<\|channel>thought\s*<channel\|>")
_MARKER = re.compile(r"</?think>|\[/?THINK\]|<\|channel>thought")
# Variables that real templates have for what becomes of reasoning.
_SWITCHES = (
    "enable_thinking",
    "thinking",
    "preserve_thinking",
    "keep_thinking",
    "clear_thinking",
    "truncate_history_thinking",
)
_EXCERPT = 40
_WORD = re.compile(r"\w+")
# What JSON or HTML would write differently.
_ESCAPABLE = re.compile(r"[\"'\\<>&]")


def explain_rewritten_prompt(
    template: ChatTemplate, rendered: RenderedChat, prompt: list[Message], completions: Sequence[list[Message]]
) -> tuple[str, str]:
    """Say where the rendering of a prompt changes once a completion follows it.

    Args:
        template: The template.
        rendered: What it made of the messages; does not keep the prompt.
        prompt: The messages of the prompt.
        completions: The messages of its completions.

    Returns:
        The problem, and a remedy, which has been tried.
    """
    sequence = next(text for text in rendered.sequences if not text.startswith(rendered.dialogue))
    place = common_prefix_length(rendered.dialogue, sequence)
    before, after = _around(rendered.dialogue, place), _around(sequence, place)
    where, number = _message_at(prompt, rendered.dialogue, place)
    problem = (
        f"the chat template renders the prompt differently once a completion follows it: {where}, "
        f"{before!r} becomes {after!r}"
    )
    if _MARKER.search(before) or _MARKER.search(after) or _thinks(prompt[number]):
        problem += " (it rewrites the thinking of earlier turns)"

    def helps(template: ChatTemplate, prompt: list[Message]) -> bool:
        return template.render(prompt, completions).keeps_prompt

    for switch, value in _switches(template):
        if _tried(lambda: helps(template.told(**{switch: value}), prompt)):  # noqa: B023
            return problem, f"Pass chat_template_kwargs={{{switch!r}: {value}}}, with which it does not."
    if any(map(_thinks, prompt)) and _tried(lambda: helps(template, [without_thinking(each) for each in prompt])):
        return problem, "Remove the thinking from the prompt's earlier turns with dataset.map, which suffices here."
    folded = _fold_system(prompt)
    if folded is not None and _tried(lambda: helps(template, folded)):
        return problem, (
            "Write the system message's text at the beginning of the first user message with dataset.map, "
            "which suffices here."
        )
    return problem, (
        "Set tokenizer.chat_template to one that leaves earlier turns as they are, or render the rows to text yourself."
    )


def explain_uneven_header(
    template: ChatTemplate, rendered: RenderedChat, prompt: list[Message], sources: Sequence[str]
) -> tuple[str, str] | None:
    """Say which completions leave the assistant's header where others do not; None if it is the same for all.

    Args:
        template: The template.
        rendered: What it made of the messages; keeps the prompt.
        prompt: The messages of the prompt.
        sources: Column of each completion.

    Returns:
        The problem, and a remedy.
    """
    places = rendered.kept_of_prompt
    place, whole = min(places), len(rendered.prompt)
    if len(set(places)) == 1:
        return None
    if whole not in places and _leaves_header_at(template, rendered, prompt, place):
        return None  # the template leaves it there whatever is said; that an answer begins like the rest is chance
    first = places.index(place)
    column, sequence = sources[first], rendered.sequences[first]
    others = [source for source, kept in zip(sources, places, strict=True) if kept != place]
    return (
        f"an answer is asked for with {_before(rendered.prompt, whole)!r}, but {column} is written after "
        f"{_before(rendered.prompt, place)!r} as {_around(sequence[place:], 0)!r} and {', '.join(others)} is not: one "
        "prompt for all completions would end within the header",
        "Write the completions alike with dataset.map, all with thinking or all without it, or pass "
        "chat_template_kwargs with which the template begins all of them as it asks for them.",
    )


def header_switch(template: ChatTemplate, prompt: list[Message], completions: Sequence[list[Message]]) -> str | None:
    """The `chat_template_kwargs` with which the header stays as it is where an answer follows; None if none do."""

    def helps(told: ChatTemplate) -> bool:
        rendered = told.render(prompt, completions)
        return rendered.keeps_prompt and not rendered.lost_header

    for switch, value in _switches(template):
        if _tried(lambda: helps(template.told(**{switch: value}))):  # noqa: B023
            return f"{{{switch!r}: {value}}}"
    return None


def explain_lost_completion(
    template: ChatTemplate, rendered: RenderedChat, sequence: str, prompt: list[Message], completion: list[Message]
) -> tuple[str, str] | None:
    """Say what of a completion is not in its rendering; None if all of it is.

    Whitespace does not count, nor how a tool call is written, nor characters that are escaped, nor the thinking of
    messages before the last.

    Args:
        template: The template.
        rendered: What it made of the messages; keeps the prompt.
        sequence: What it made of the prompt with this completion.
        prompt: The messages of the prompt.
        completion: The messages of the completion.

    Returns:
        The problem, and a remedy. Nothing is said of a completion that is not written at all.
    """
    answer = sequence[len(rendered.dialogue) :]
    found = _first_lost(completion, answer) if answer else None
    if found is None:
        return _explain_lone_marker(rendered, sequence, completion)
    message, lost = found
    kept = without_thinking(message)
    thinking = kept != message and (lost in REASONING_KEYS or _lost(kept, answer) is None)
    for switch, value in _switches(template):
        if _tried(lambda: _keeps(template.told(**{switch: value}), prompt, completion)):  # noqa: B023
            remedy = f"Pass chat_template_kwargs={{{switch!r}: {value}}}, with which it is kept."
            break
    else:
        remedy = (
            f"Set tokenizer.chat_template to one that writes it, or remove {'the thinking' if thinking else 'it'} "
            "with dataset.map if it is not to be learned."
        )
    written = _around(sequence[common_prefix_length(rendered.prompt, sequence) :], 0)
    if thinking:
        return f"the chat template drops the completion's thinking: of {lost!r} only {written!r} is left", remedy
    return f"the chat template does not write the completion's {lost} as it is, but {written!r}", remedy


def ignored_tool(template: ChatTemplate, prompt: list[Message], rendered: RenderedChat) -> str | None:
    """Name of a tool that the template does not write into a prompt; None if it writes all.

    Args:
        template: The template.
        prompt: The messages of the prompt.
        rendered: What the template made of them.
    """
    if not template.tools:
        return None
    names = []
    for tool in template.tools:
        function = tool.get("function", tool)
        name = function.get("name") if isinstance(function, Mapping) else None
        if isinstance(name, str):
            names.append(name)
    dense = _dense(rendered.prompt)
    ignored = next((name for name in names if not _is_in(name, dense)), None)
    # A message may have the same word.
    if (
        ignored is None
        and names
        and _tried(lambda: template.told_tools(None).render(prompt, []) == replace(rendered, sequences=()))
    ):
        return names[0]
    return ignored


def ignored_message(prompt: Sequence[Message], rendered: str) -> int | None:
    """Number of a message that is not in the rendering of a prompt; None if all are.

    Templates change messages in many ways, and a row is not to be refused for one that this does not know: what is
    told to the model counts as missing only if most of its words are, and if characters may be escaped all of them.

    Args:
        prompt: Messages; the assistant's may lose their thinking and are not looked at.
        rendered: The prompt.
    """
    for number, message in enumerate(prompt):
        content = message.get("content")
        if message["role"] == "assistant" or not isinstance(content, str) or content.strip() in rendered:
            continue
        if _is_in(content, _dense(rendered)):
            continue
        words = set(_WORD.findall(content))
        there = sum(word in rendered for word in words)
        if there == 0 or (2 * there < len(words) and not _ESCAPABLE.search(content)):
            return number
    return None


def without_thinking(message: Message) -> Message:
    """A message without its thinking, be it in the content or beside it."""
    kept = {key: value for key, value in message.items() if key not in REASONING_KEYS}
    if isinstance(kept.get("content"), str):
        kept["content"] = (
            _THINKING.sub("", kept["content"]).strip() if _THINKING.search(kept["content"]) else kept["content"]
        )
    return kept


def _leaves_header_at(template: ChatTemplate, rendered: RenderedChat, prompt: list[Message], place: int) -> bool:
    """Whether an answer of one letter leaves the header there."""
    places = (
        common_prefix_length(rendered.prompt, sequence)
        for sequence in template.render(
            prompt, [[{"role": "assistant", "content": letter}] for letter in "ab"]
        ).sequences
    )
    return min(places) == place


def _thinks(message: Message) -> bool:
    return without_thinking(message) != message


def _keeps(template: ChatTemplate, prompt: list[Message], completion: list[Message]) -> bool:
    rendered = template.render(prompt, [completion])
    (sequence,) = rendered.sequences
    return rendered.keeps_prompt and _first_lost(completion, sequence[len(rendered.dialogue) :]) is None


def _first_lost(completion: list[Message], answer: str) -> tuple[Message, str] | None:
    """The first message of a completion that its rendering lacks a part of, and that part."""
    *earlier, last = completion
    # What is thought before a call or another answer is what templates leave out, also when the model is asked.
    for message in (*map(without_thinking, earlier), last):
        lost = _lost(message, answer)
        if lost is not None:
            return message, lost
    calls = Counter(name for message in completion for name in _called(message.get("tool_calls")))
    if max(calls.values(), default=0) > 1:
        dense = _dense(answer)
        for name, times in calls.items():
            if dense.count(_dense(name)) < times:
                return last, f"call of {name} ({times} calls)"
    return None


def _explain_lone_marker(rendered: RenderedChat, sequence: str, completion: list[Message]) -> tuple[str, str] | None:
    """Say that a template took for thinking what stands before a mention of its end; None if it did not."""
    content = completion[-1].get("content")
    if not isinstance(content, str) or "</think>" not in content or "<think>" in content.split("</think>")[0]:
        return None
    # A header that begins the thinking is what such an answer goes on from.
    if "<think>" + _dense(content) not in _dense(sequence[common_prefix_length(rendered.prompt, sequence) :]):
        return None
    return (
        "the chat template takes what the completion says before '</think>' for thinking, for it has no '<think>'",
        "Write '<think>' before it if it is thinking, otherwise write the word differently or drop the row.",
    )


def _lost(message: Message, rendered: str) -> str | None:
    """The first part of a message that is not in its rendering: its key, or the name of a function."""
    content = (message.get("content") or "").strip()
    reasoning = {key: message[key] for key in REASONING_KEYS if isinstance(message.get(key), str)}
    calls = list(_called(message.get("tool_calls")))
    if not reasoning and not calls and content in rendered:  # nearly always
        return None
    dense = _dense(rendered)
    for key, text in (("content", content), *reasoning.items()):
        if not _is_in(text, dense) and not _is_in(_BLANK_THINKING.sub("", text), dense):
            return key
    return next((f"call of {name}" for name in calls if _dense(name) not in dense), None)


def _called(calls: Any) -> Iterator[str]:
    for call in calls or ():
        function = call.get("function", call) if isinstance(call, Mapping) else None
        name = function.get("name") if isinstance(function, Mapping) else None
        if isinstance(name, str):
            yield name


def _is_in(text: str, dense: str) -> bool:
    """Whether a text without its whitespace is in another one, as it is or with characters escaped."""
    if _dense(text) in dense:
        return True
    text = text.strip()
    escaped = (json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1], str(markupsafe.escape(text)))
    return any(_dense(each) in dense for each in escaped)


def _dense(text: str) -> str:
    return "".join(text.split())


def _switches(template: ChatTemplate) -> Iterator[tuple[str, bool]]:
    for switch in _SWITCHES:
        if mentions(template.tokenizer, switch):
            for value in (False, True):
                yield switch, value


def _tried(attempt: Callable[[], bool]) -> bool:
    try:
        return attempt()
    except REFUSALS:
        return False


def _fold_system(prompt: list[Message]) -> list[Message] | None:
    """The prompt with the system message's text in the user message behind it; None if there are not both."""
    if len(prompt) < 2 or prompt[0]["role"] != "system" or prompt[1]["role"] != "user":
        return None
    first = {**prompt[1], "content": f"{prompt[0]['content']}\n\n{prompt[1]['content']}"}
    return [first, *prompt[2:]]


def _message_at(prompt: list[Message], rendered: str, place: int) -> tuple[str, int]:
    """Where in the dialogue a place in its rendering is, in words, and the number of the message."""
    end, last = 0, 0
    for number, message in enumerate(prompt):
        content = (message.get("content") or "").strip()
        start = rendered.find(content, end) if content else -1
        if start < 0:
            continue
        end, last = start + len(content), number
        if place < end:
            relation = "in" if place >= start else "before"
            return f"{relation} message {number} (role {message['role']!r})", number
    return f"after message {last} (role {prompt[last]['role']!r})", last


def _before(text: str, place: int) -> str:
    return f"{'…' if place > _EXCERPT else ''}{text[max(0, place - _EXCERPT) : place]}"


def _around(text: str, place: int) -> str:
    start, stop = max(0, place - _EXCERPT // 2), place + _EXCERPT
    return f"{'…' if start else ''}{text[start:stop]}{'…' if stop < len(text) else ''}"
