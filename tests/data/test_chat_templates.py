"""What chat templates of real models do, in short ones: what is learned then, and what is refused with which remedy."""

import json
import re
import warnings
from collections.abc import Callable
from datetime import datetime, tzinfo
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from transformers.utils import chat_template_utils

from agiledpo.data import DatasetError, PreparedRows, prepare_rows, template_kwargs
from agiledpo.data.template_kwargs import RESERVED

MakeTokenizer = Callable[..., PreTrainedTokenizerBase]
Message = dict[str, Any]

CHATML_USER = "{% if m.role != 'assistant' %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% else %}"
TEMPLATES = {
    # Thinking is written after the last user's turn only, and there always; a switch closes it in the header.
    "qwen3": (
        "{% set ns = namespace(last=0) %}"
        "{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
        "{% if tools %}<|im_start|>system\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
        "{% for m in messages %}" + CHATML_USER + "{% set parts = m.content.split('</think>') %}<|im_start|>assistant\n"
        "{% if loop.index0 > ns.last %}<think>\n{{ m.reasoning_content or parts[0].split('<think>')[-1].strip() "
        "if parts | length > 1 or m.reasoning_content }}\n</think>\n\n{% endif %}{{ parts[-1].lstrip('\n') }}"
        "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}<|im_end|>\n"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
        "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
    ),
    # No answer keeps its thinking, and the header begins one.
    "deepseek": (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<User>{{ m.content }}"
        "{% elif m.role == 'assistant' %}<Assistant>{{ m.content.split('</think>')[-1] }}</s>"
        "{% else %}{{ m.content }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<Assistant><think>\n{% endif %}"
    ),
    # Only the newest answer keeps its thinking, unless asked otherwise.
    "newest": (
        "{% set ns = namespace(last=0) %}"
        "{% for m in messages %}{% if m.role == 'assistant' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
        "{% for m in messages %}"
        + CHATML_USER
        + "<|im_start|>assistant\n{{ m.content if loop.index0 == ns.last SWITCH else m.content.split('</think>')[-1] }}"
        "<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    # The system's message goes with the last turn, if that is the user's.
    "mistral": (
        "{{ bos_token }}{% set ns = namespace(system='') %}{% for m in messages %}"
        "{% if m.role == 'system' %}{% set ns.system = m.content + '\n\n' %}"
        "{% elif m.role == 'user' %}[INST] {{ ns.system if loop.last }}{{ m.content }}[/INST]"
        "{% else %} {{ m.content | trim }}</s>{% endif %}{% endfor %}"
    ),
    # The system's message is the beginning of the first user's; roles alternate.
    "gemma": (
        "{{ bos_token }}{% set start = 1 if messages[0].role == 'system' else 0 %}{% for m in messages[start:] %}"
        "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
        "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
        "{{ messages[0].content + '\n\n' if loop.first and start }}{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
    ),
    # A date that may be told, tools in the first user's message, and a call instead of the content.
    "llama3": (
        "{{ bos_token }}<|start_header_id|>system<|end_header_id|>\n\n"
        "Today: {{ date_string if date_string is defined else strftime_now('%d %b %Y') }}<|eot_id|>"
        "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
        "{% if tools and loop.first %}{% for t in tools %}{{ t | tojson(indent=4) }}\n\n{% endfor %}{% endif %}"
        "{% if m.tool_calls is defined %}{{ m.tool_calls[0].function | tojson }}{% else %}{{ m.content | trim }}"
        "{% endif %}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
    ),
}
TEMPLATES["preserving"] = TEMPLATES["newest"].replace("SWITCH", "or preserve_thinking")
TEMPLATES["newest"] = TEMPLATES["newest"].replace("SWITCH", "")


@pytest.fixture
def tokenizer_of(make_tokenizer: MakeTokenizer) -> Callable[[str], PreTrainedTokenizerBase]:
    def make(template: str) -> PreTrainedTokenizerBase:
        tokenizer = make_tokenizer(bos=True)
        tokenizer.chat_template = TEMPLATES[template]
        return tokenizer

    return make


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def system(text: str) -> Message:
    return {"role": "system", "content": text}


def assistant(text: str, **more: Any) -> Message:
    return {"role": "assistant", "content": text, **more}


def row(*prompt: Message, chosen: Message | None = None, rejected: Message | None = None, **more: Any) -> Message:
    return {
        "prompt": [*prompt],
        "chosen": [chosen or assistant("yes")],
        "rejected": [rejected or assistant("no")],
        **more,
    }


def prepare(tokenizer: PreTrainedTokenizerBase, *rows: Message, **options: Any) -> PreparedRows:
    return prepare_rows(Dataset.from_list(list(rows)), tokenizer, name="train", **options)


def refusal(tokenizer: PreTrainedTokenizerBase, *rows: Message, **options: Any) -> DatasetError:
    with pytest.raises(DatasetError) as caught:
        prepare(tokenizer, *rows, **options)
    return caught.value


THOUGHT = "<think>\nhmm\n</think>\n\nyes"
Make = Callable[[str], PreTrainedTokenizerBase]

# Tokens in context ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        ("qwen3", [user("one"), assistant("<think>two</think>three"), user("four")]),
        ("gemma", [system("be brief"), user("one"), assistant("two"), user("three")]),
        ("llama3", [system("be brief"), user("one")]),
        ("mistral", [user("one"), assistant("two"), user("three")]),
        ("deepseek", [user("one"), assistant("<think>two</think>three"), user("four")]),
        ("newest", [user("one"), assistant("two"), user("three")]),
    ],
)
def test_prompt_and_answer_are_the_template_s_rendering_of_both(
    template: str, prompt: list[Message], tokenizer_of: Make
) -> None:
    tokenizer = tokenizer_of(template)
    (prepared,) = prepare(tokenizer, row(*prompt)).dataset.to_list()
    for side, answer in (("chosen", "yes"), ("rejected", "no")):
        together = tokenizer.apply_chat_template([*prompt, assistant(answer)], return_dict=False)
        assert prepared["prompt_ids"] + prepared[f"{side}_ids"] == together
        assert answer in prepared[side]
        assert answer in tokenizer.decode(prepared[f"{side}_ids"])
    assert prompt[-1]["content"] in prepared["prompt"]


def test_a_switch_moves_the_empty_thinking_into_the_prompt(tokenizer_of: Make) -> None:
    tokenizer = tokenizer_of("qwen3")
    (thinking,) = prepare(tokenizer, row(user("one"))).dataset.to_list()
    assert thinking["prompt"].endswith("assistant\n")
    assert thinking["chosen"] == "<think>\n\n</think>\n\nyes<|im_end|>\n"
    (without,) = prepare(tokenizer, row(user("one")), chat_template_kwargs={"enable_thinking": False}).dataset.to_list()
    assert without["prompt"].endswith("assistant\n<think>\n\n</think>\n\n")
    assert without["chosen"] == "yes<|im_end|>\n"
    for each in (thinking, without):
        assert tokenizer.decode(each["prompt_ids"]) == each["prompt"]
        assert tokenizer.decode(each["rejected_ids"]) == each["rejected"]
    assert thinking["prompt_ids"] + thinking["chosen_ids"] == without["prompt_ids"] + without["chosen_ids"]


def test_thinking_that_the_template_writes_is_learned(tokenizer_of: Make) -> None:
    rows = [
        row(user("one"), chosen=assistant(THOUGHT)),
        row(user("one"), chosen=assistant("yes", reasoning_content="hmm")),
        row(user("one"), chosen=assistant("<think>hmm</think>yes")),  # which the template spaces out
    ]
    prepared = prepare(tokenizer_of("qwen3"), *rows)
    assert list(prepared.dataset["chosen"]) == [THOUGHT + "<|im_end|>\n"] * 3
    # Of the earlier turns it does not, whether or not an answer follows.
    history = row(user("one"), assistant("<think>two</think>three"), user("four"))
    (prompt,) = prepare(tokenizer_of("qwen3"), history).dataset["prompt"]
    assert "two" not in prompt
    assert "three" in prompt


# What a template is told ----------------------------------------------------------------------------------------------


def test_a_row_is_told_what_it_says_and_otherwise_what_all_are(tokenizer_of: Make) -> None:
    tokenizer = tokenizer_of("llama3")
    rows = [row(user("one"), chat_template_kwargs={"date_string": "never"}), row(user("one"), chat_template_kwargs={})]
    prompts = prepare(tokenizer, *rows, chat_template_kwargs={"date_string": "always"}).dataset["prompt"]
    assert [re.findall("Today: (.*?)<", prompt) for prompt in prompts] == [["never"], ["always"]]
    as_json = [each | {"chat_template_kwargs": json.dumps(each["chat_template_kwargs"])} for each in rows]
    again = prepare(tokenizer, *as_json, chat_template_kwargs={"date_string": "always"}).dataset["prompt"]
    assert list(again) == list(prompts)


def test_what_all_are_told_is_part_of_the_names(
    tokenizer_of: Make, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGILEDPO_CACHE", str(tmp_path))
    tokenizer = tokenizer_of("llama3")
    tokenizer.chat_template += "{# enable_thinking #}"
    told = [
        {"date_string": "a"},
        {"date_string": "b"},
        {"date_string": "a", "enable_thinking": True},
        {"enable_thinking": True, "date_string": "a"},
    ]
    names = [prepare(tokenizer, row(user("one")), chat_template_kwargs=each).fingerprint for each in told]
    assert len(set(names)) == 3
    assert names[2] == names[3]
    assert len(list((tmp_path / "tokenized").iterdir())) == 3
    # Nothing is nothing, however it is written.
    assert (
        len({prepare(tokenizer, row(user("one")), chat_template_kwargs=each).fingerprint for each in (None, {})}) == 1
    )


@pytest.mark.parametrize(
    ("told", "error", "message"),
    [
        ({"add_generation_prompt": False}, ValueError, r"has \['add_generation_prompt'\], which rendering sets itself"),
        ({"tools": [], "messages": []}, ValueError, r"has \['messages', 'tools'\]"),
        ({"enable_thinkng": False}, ValueError, r"has \['enable_thinkng'\], which the tokenizer's chat template never"),
        ({"enable_thinking": {1, 2}}, TypeError, "must hold what JSON can"),
        ({3: True}, TypeError, "must be a dictionary"),
        ("enable_thinking", TypeError, "must be a dictionary"),
    ],
)
def test_what_no_template_can_be_told(told: Any, error: type[Exception], message: str, tokenizer_of: Make) -> None:
    with pytest.raises(error, match=message):
        prepare(tokenizer_of("qwen3"), row(user("one")), chat_template_kwargs=told)


def test_text_is_not_rendered(tokenizer_of: Make) -> None:
    text = {"prompt": "one", "chosen": " yes", "rejected": " no"}
    with pytest.raises(ValueError, match="has no effect: the rows are text, not chat messages"):
        prepare(tokenizer_of("qwen3"), text, chat_template_kwargs={"enable_thinking": False})


def test_a_row_cannot_say_what_rendering_sets(tokenizer_of: Make) -> None:
    error = refusal(tokenizer_of("qwen3"), row(user("one"), chat_template_kwargs={"tokenize": True}))
    assert (error.row, error.column) == (0, "chat_template_kwargs")
    assert "['tokenize'] is what rendering sets itself" in error.problem


def test_all_that_rendering_takes_is_reserved() -> None:
    taken = set(signature(PreTrainedTokenizerBase.apply_chat_template).parameters)
    assert taken - RESERVED == {"self", "kwargs", "documents"}


CLOCK = {
    "type": "function",
    "function": {"name": "clock", "description": "the time", "parameters": {"type": "object", "properties": {}}},
}


@pytest.mark.parametrize("written", [[CLOCK], json.dumps([CLOCK])])
def test_tools_are_in_the_prompt(written: Any, tokenizer_of: Make) -> None:
    call = assistant("", tool_calls=[{"type": "function", "function": {"name": "clock", "arguments": {}}}])
    one = row(user("one"), chosen=call, tools=written)
    for template in ("qwen3", "llama3"):
        tokenizer = tokenizer_of(template)
        (prepared,) = prepare(tokenizer, one).dataset.to_list()
        together = tokenizer.apply_chat_template([user("one"), call], tools=[CLOCK], return_dict=False)
        assert prepared["prompt_ids"] + prepared["chosen_ids"] == together
        assert "the time" in prepared["prompt"]
        assert "clock" in prepared["chosen"]
    error = refusal(tokenizer_of("gemma"), one | {"chosen": [assistant("yes")]})
    assert (error.row, error.column) == (0, "tools")
    assert error.problem == "the chat template does not tell the model of the tool 'clock'"


# What is rewritten or dropped -----------------------------------------------------------------------------------------


def obey(remedy: str) -> dict[str, Any]:
    """The arguments that a remedy names."""
    found = re.search(r"chat_template_kwargs=(\{.*?\})", remedy)
    assert found is not None, remedy
    return eval(found.group(1))


HISTORY = [user("one"), assistant("<think>two</think>three"), user("four")]


def test_thinking_that_vanishes_from_the_history_is_explained(tokenizer_of: Make) -> None:
    error = refusal(tokenizer_of("newest"), row(user("one")), row(*HISTORY))
    assert error.row == 1
    assert error.problem.startswith("the chat template renders the prompt differently once a completion follows it: ")
    assert "in message 1 (role 'assistant'), " in error.problem
    assert "assistant\\n<think>two</think>three" in error.problem
    assert "becomes '" in error.problem
    assert error.problem.endswith("(it rewrites the thinking of earlier turns)")
    assert error.remedy.startswith("Remove the thinking from the prompt's earlier turns")
    repaired = row(user("one"), assistant("three"), user("four"))
    assert len(prepare(tokenizer_of("newest"), repaired)) == 1


def test_a_switch_that_helps_is_found(tokenizer_of: Make) -> None:
    tokenizer = tokenizer_of("preserving")
    told = obey(refusal(tokenizer, row(*HISTORY)).remedy)
    assert told == {"preserve_thinking": True}
    (prepared,) = prepare(tokenizer, row(*HISTORY), chat_template_kwargs=told).dataset.to_list()
    assert "<think>two</think>three" in prepared["prompt"]


def test_a_system_message_that_moves_is_explained(tokenizer_of: Make) -> None:
    tokenizer = tokenizer_of("mistral")
    error = refusal(tokenizer, row(system("be brief"), user("one")))
    assert "message 0 (role 'system')" in error.problem
    assert "be brief" in error.problem
    assert "thinking" not in error.problem
    assert error.remedy.startswith("Write the system message's text at the beginning of the first user message")
    assert len(prepare(tokenizer, row(user("be brief\n\none")))) == 1


def test_a_count_of_messages_is_explained(make_tokenizer: MakeTokenizer) -> None:
    error = refusal(make_tokenizer(template="rewriting"), row(user("hello")))
    assert "before message 0 (role 'user'), '1 messages hello</s>' becomes '2 messages hello yes</s>'" in error.problem
    assert error.remedy.startswith("Set tokenizer.chat_template to one that leaves earlier turns as they are")


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_an_answer_whose_thinking_is_dropped(side: str, tokenizer_of: Make) -> None:
    tokenizer = tokenizer_of("deepseek")
    error = refusal(tokenizer, row(user("one"), **{side: assistant(THOUGHT)}))
    assert (error.row, error.column) == (0, side)
    assert error.problem.startswith("the chat template drops the completion's thinking: of 'content' only ")
    assert "yes</s>" in error.problem
    assert "Set tokenizer.chat_template to one that writes it, or remove the thinking" in error.remedy
    assert len(prepare(tokenizer, row(user("one"), chosen=assistant("yes, hmm")))) == 1


def test_thinking_beside_the_content_that_is_dropped(tokenizer_of: Make) -> None:
    error = refusal(tokenizer_of("gemma"), row(user("one"), chosen=assistant("yes", reasoning_content="hmm hm")))
    assert error.column == "chosen"
    assert "drops the completion's thinking: of 'reasoning_content' only" in error.problem


def test_a_switch_that_keeps_the_answer_is_found(tokenizer_of: Make) -> None:
    tokenizer = tokenizer_of("deepseek")
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "{{ m.content.split('</think>')[-1] }}",
        "{{ m.content if enable_thinking else m.content.split('</think>')[-1] }}",
    )
    one = row(user("one"), chosen=assistant(THOUGHT), rejected=assistant(THOUGHT.replace("yes", "no")))
    told = obey(refusal(tokenizer, one).remedy)
    assert told == {"enable_thinking": True}
    (chosen,) = prepare(tokenizer, one, chat_template_kwargs=told).dataset["chosen"]
    assert "hmm" in chosen


@pytest.mark.parametrize(
    ("template", "answer", "lost"),
    [
        # A call that is written instead of the words before it, and one that is not written at all.
        ("llama3", assistant("let me see", tool_calls=[{"function": {"name": "clock", "arguments": {}}}]), "content"),
        ("gemma", assistant("now", tool_calls=[{"function": {"name": "clock", "arguments": {}}}]), "call of clock"),
    ],
)
def test_an_answer_of_which_a_part_is_dropped(template: str, answer: Message, lost: str, tokenizer_of: Make) -> None:
    error = refusal(tokenizer_of(template), row(user("one"), rejected=answer))
    assert error.column == "rejected"
    assert error.problem.startswith(f"the chat template does not write the completion's {lost} as it is, but '")


@pytest.mark.parametrize("template", ["gemma", "llama3", "mistral", "qwen3"])
def test_whitespace_that_is_trimmed_is_fine(template: str, tokenizer_of: Make) -> None:
    one = row(user("one"), chosen=assistant("\n yes  \n\n no\n"))
    (chosen,) = prepare(tokenizer_of(template), one).dataset["chosen"]
    assert "yes  \n\n no" in chosen


def test_a_tool_s_result_is_not_the_model_s_words(tokenizer_of: Make) -> None:
    call = assistant("", tool_calls=[{"function": {"name": "clock", "arguments": {}}}])
    result = {"role": "tool", "content": "nine"}
    one = row(user("one")) | {"chosen": [call, result, assistant("nine")]}
    error = refusal(tokenizer_of("qwen3"), one)
    assert error.column == "chosen"
    assert "role 'tool', which would be learned as the model's own words" in error.problem
    moved = row(user("one"), call, result, chosen=assistant("nine"))
    (prompt,) = prepare(tokenizer_of("qwen3"), moved).dataset["prompt"]
    assert "nine" in prompt


def test_several_answers_in_a_row_are_what_the_template_makes_of_them(tokenizer_of: Make) -> None:
    """The first of two loses its thinking where only the newest keeps it: so the model sees it, so it is scored."""
    tokenizer = tokenizer_of("newest")
    answers = [assistant("<think>a</think>hello"), assistant("<think>b</think>yes")]
    (prepared,) = prepare(tokenizer, row(user("one")) | {"chosen": answers}).dataset.to_list()
    together = tokenizer.apply_chat_template([user("one"), *answers], return_dict=False)
    assert prepared["prompt_ids"] + prepared["chosen_ids"] == together
    assert "<think>a</think>" not in prepared["chosen"]


@pytest.mark.parametrize("answer", ["yes<|im_end|>", "yes<|im_end|>\n", "yes<|im_end|>\n<|im_end|>"])
@pytest.mark.parametrize("eos_token", ["<|im_end|>", "</s>"])
def test_an_answer_that_ends_its_turn_itself_ends_it_once(
    answer: str, eos_token: str, make_tokenizer: MakeTokenizer
) -> None:
    tokenizer = make_tokenizer(template="chatml", eos_token=eos_token)
    one = row(user("one"), chosen=assistant(answer))
    (prepared,) = prepare(tokenizer, one).dataset.to_list()
    assert tokenizer.decode(prepared["chosen_ids"]) == "yes<|im_end|>\n"


@pytest.mark.parametrize("template", ["chatml", "qwen3"])
@pytest.mark.parametrize("answer", ["<|im_end|>", "<|im_end|>\n<|im_end|>", "</s>"])
def test_an_answer_that_only_ends_its_turn(answer: str, template: str, make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(template="chatml")
    tokenizer.chat_template = TEMPLATES.get(template, tokenizer.chat_template)
    error = refusal(tokenizer, row(user("one"), chosen=assistant(answer)))
    assert (error.column, error.problem) == ("chosen", "the completion has no tokens of its own")


def test_an_added_token_in_an_open_turn_does_not_end_it(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(template="plain")
    tokenizer.add_special_tokens({"additional_special_tokens": ["</tool_call>"]})
    rows = [row(user("one"), chosen=assistant(answer)) for answer in ("yes</tool_call>", "yes</s>", "yes</s>\n")]
    prepared = [tokenizer.decode(ids) for ids in prepare(tokenizer, *rows).dataset["chosen_ids"]]
    assert [text.strip() for text in prepared] == ["yes</tool_call></s>", "yes</s>", "yes</s>"]
    # An answer may be one added token, where the template ends the turn.
    tokenizer.chat_template = make_tokenizer(template="chatml").chat_template
    one = prepare(tokenizer, row(user("one"), chosen=assistant("</tool_call>"))).dataset["chosen_ids"][0]
    assert tokenizer.decode(one) == "</tool_call><|im_end|>\n"


def test_errors_come_from_worker_processes(tokenizer_of: Make) -> None:
    rows = [row(user(str(number)), chosen=assistant("yes")) for number in range(5)]
    error = refusal(tokenizer_of("deepseek"), *rows, row(user("a"), chosen=assistant(THOUGHT)), num_proc=2)
    assert (error.row, error.column) == (5, "chosen")


def test_thinking_without_a_thought_is_not_missed(tokenizer_of: Make) -> None:
    for blank in ("<think>\n\n</think>\n\n", "<think></think>"):
        (chosen,) = prepare(tokenizer_of("deepseek"), row(user("one"), chosen=assistant(blank + "yes"))).dataset[
            "chosen"
        ]
        assert chosen.strip() == "yes</s>"


def test_the_first_of_two_answers_is_missed(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(template="chatml")
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role != 'assistant' or loop.last %}" + CHATML_USER + "<|im_start|>assistant\n"
        "{{ m.content }}<|im_end|>\n{% endif %}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    error = refusal(tokenizer, row(user("one")) | {"chosen": [assistant("hello"), assistant("yes")]})
    assert error.column == "chosen"
    assert error.problem == "the chat template does not write the completion's content as it is, but 'yes<|im_end|>\\n'"


def test_the_second_call_of_a_function_is_missed(tokenizer_of: Make) -> None:
    calls = [{"function": {"name": "clock", "arguments": {"city": city}}} for city in ("Rome", "Oslo")]
    tools = [CLOCK]
    error = refusal(tokenizer_of("llama3"), row(user("one"), chosen=assistant("", tool_calls=calls), tools=tools))
    assert error.column == "chosen"
    assert "does not write the completion's call of clock (2 calls) as it is" in error.problem
    (chosen,) = prepare(
        tokenizer_of("qwen3"), row(user("one"), chosen=assistant("", tool_calls=calls), tools=tools)
    ).dataset["chosen"]
    assert "Rome" in chosen
    assert "Oslo" in chosen


def test_a_mention_of_the_end_of_thinking_is_no_thinking(tokenizer_of: Make) -> None:
    lone = assistant("write </think> at the end")
    error = refusal(tokenizer_of("qwen3"), row(user("one"), chosen=lone))
    assert error.column == "chosen"
    assert "takes what the completion says before '</think>' for thinking" in error.problem
    # Where the header begins the thinking, the answer goes on with it.
    tokenizer = tokenizer_of("newest")
    tokenizer.chat_template = tokenizer.chat_template.replace("assistant\n", "assistant\n<think>\n")
    (chosen,) = prepare(tokenizer, row(user("one"), chosen=assistant("hmm</think>yes"))).dataset["chosen"]
    assert chosen == "hmm</think>yes<|im_end|>\n"
    # And where the template leaves it alone, so does this.
    assert len(prepare(tokenizer_of("newest"), row(user("one"), chosen=lone))) == 1


@pytest.mark.parametrize("escape", ["tojson", "e"])
def test_text_that_a_template_escapes_is_there(escape: str, make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(template="chatml")
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | " + escape + " }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    text = 'say "é" <b>\nor \\ & no'
    (prepared,) = prepare(tokenizer, row(system(text), user(text), chosen=assistant(text))).dataset.to_list()
    assert text not in prepared["chosen"]


def test_a_message_that_the_template_does_not_write(tokenizer_of: Make) -> None:
    tokenizer = tokenizer_of("newest")
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "{% if m.role != 'assistant' %}", "{% if m.role == 'system' %}{% elif m.role != 'assistant' %}"
    )
    for text in ("Answer briefly.", 'Answer "briefly".'):
        error = refusal(tokenizer, row(user("one")), row(system(text), user("one")))
        assert error.row == 1
        assert error.problem == "the chat template does not write message 0 (role 'system') of the prompt"
    # A part of a message, or another way to write it, is for the template to decide.
    changing = tokenizer_of("newest")
    changing.chat_template = changing.chat_template.replace(
        "{{ m.content }}", "{{ m.content.replace(' /no_think', '') | upper }}", 1
    )
    assert len(prepare(tokenizer_of("gemma"), row(system(" be\n brief "), user(" one\n")))) == 1
    changing.chat_template = changing.chat_template.replace(" | upper", "")
    assert len(prepare(changing, row(system("be brief /no_think"), user("one")))) == 1


def test_a_tool_whose_name_the_user_says_is_not_written(tokenizer_of: Make) -> None:
    error = refusal(tokenizer_of("gemma"), row(user("what does the clock say?"), tools=[CLOCK]))
    assert (error.row, error.column) == (0, "tools")
    assert error.problem == "the chat template does not tell the model of the tool 'clock'"
    assert len(prepare(tokenizer_of("qwen3"), row(user("what does the clock say?"), tools=[CLOCK]))) == 1


# The header -----------------------------------------------------------------------------------------------------------


def warned(tokenizer: PreTrainedTokenizerBase, *rows: Message, **options: Any) -> tuple[PreparedRows, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        prepared = prepare(tokenizer, *rows, **options)
    return prepared, [str(each.message) for each in caught]


def test_a_header_that_answers_do_not_follow_is_said_once(tokenizer_of: Make) -> None:
    rows = [row(user("one")), row(user("two"), chosen=assistant("<b>yes")), row(user("three"), rejected=assistant("<"))]
    for _ in range(2):  # the second time from the cache
        prepared, messages = warned(tokenizer_of("deepseek"), *rows)
        (message,) = messages
        assert "writes '<s><User>one<Assistant><think>\\n' before an answer that it is asked for and '" in message
        assert "'<s><User>one<Assistant>' before one that is there: 3 of 3 rows of the train dataset" in message
        assert "Set tokenizer.chat_template" in message
    assert prepared.dataset["prompt"][0] == "<s><User>one<Assistant>"
    assert prepared.dataset["chosen"][0] == "yes</s>"
    assert warned(tokenizer_of("newest"), row(user("one")))[1] == []


def test_a_switch_that_keeps_the_header_is_found(tokenizer_of: Make) -> None:
    tokenizer = tokenizer_of("deepseek")
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "<think>\n", "{% if not (thinking is false) %}<think>\n{% endif %}"
    )
    _, (message,) = warned(tokenizer, row(user("one")))
    told = obey(message)
    assert told == {"thinking": False}
    prepared, messages = warned(tokenizer, row(user("one")), chat_template_kwargs=told)
    assert messages == []
    assert prepared.dataset["lost_header"][0] == ""


def test_a_header_that_one_answer_does_not_follow_is_refused(tokenizer_of: Make) -> None:
    """The prompt would end within it, and one answer would be learned without the closed thinking before it."""
    tokenizer, told = tokenizer_of("qwen3"), {"enable_thinking": False}
    error = refusal(tokenizer, row(user("one"), rejected=assistant(THOUGHT)), chat_template_kwargs=told)
    assert error.row == 0
    assert "is asked for with" in error.problem
    assert "rejected is written after '" in error.problem
    assert "assistant\\n<think>\\n' as 'hmm\\n</think>" in error.problem
    both = row(user("one"), chosen=assistant(THOUGHT), rejected=assistant(THOUGHT.replace("yes", "no")))
    _, (message,) = warned(tokenizer, both, chat_template_kwargs=told)
    assert "1 of 1 rows" in message
    assert obey(message) == {"enable_thinking": True}


# The date -------------------------------------------------------------------------------------------------------------


def test_the_date_that_a_template_writes_is_part_of_the_names(
    tokenizer_of: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGILEDPO_CACHE", str(tmp_path))
    tokenizer, pinned = tokenizer_of("llama3"), {"date_string": "1 May"}
    found = {}
    for day in (21, 22, 21):

        class Today(datetime):
            @classmethod
            def now(cls, tz: tzinfo | None = None) -> datetime:
                return datetime(2026, 11, day)  # noqa: B023

        monkeypatch.setattr(chat_template_utils, "datetime", Today)
        monkeypatch.setattr(template_kwargs, "datetime", Today)
        today, (message,) = warned(tokenizer, row(user("one")))
        assert f"Today: {day} Nov 2026" in today.dataset["prompt"][0]
        assert today.fingerprint.endswith(f"-written-2026-11-{day}")
        assert f"on another day than 2026-11-{day} they are other tokens" in message
        assert "Pass chat_template_kwargs={'date_string': ...}" in message
        assert found.setdefault(day, today.fingerprint) == today.fingerprint
        always, messages = warned(tokenizer, row(user("one")), chat_template_kwargs=pinned)
        assert messages == []
        assert found.setdefault("pinned", always.fingerprint) == always.fingerprint
        assert "Today: 1 May<" in always.dataset["prompt"][0]
    assert len(set(found.values())) == 3
    assert len(list((tmp_path / "tokenized").iterdir())) == 3
