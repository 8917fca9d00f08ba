"""Chat messages that cannot be learned from."""

from tests.data.malformed.case import ABSENT, CHAT, IMPLICIT, NO, TEXT, USER, YES, Case, all_rows, rows

SYSTEM = {"role": "system", "content": "be brief"}


def said(role: object, content: object, **more: object) -> dict[str, object]:
    return {"role": role, "content": content, **more}


CASES = (
    Case("prompt_without_messages", rows(CHAT, prompt=[])),
    Case("chosen_without_messages", rows(CHAT, chosen=[])),
    Case("prompt_is_null", rows(CHAT, prompt=None)),
    Case("unknown_role", rows(CHAT, prompt=[said("human", "hello?")])),
    Case("role_in_capitals", rows(CHAT, prompt=[said("User", "hello?")])),
    Case("no_role", rows(CHAT, prompt=[{"content": "hello?"}])),
    Case("no_content", rows(CHAT, prompt=[{"role": "user"}])),
    Case("content_is_null", rows(CHAT, chosen=[said("assistant", None)])),
    Case("content_in_parts", all_rows(CHAT, prompt=[said("user", [{"type": "text", "text": "hello?"}])])),
    Case("content_is_a_number", all_rows(CHAT, prompt=[said("user", 7)])),
    Case("message_is_null", rows(CHAT, chosen=[None])),
    Case("message_is_text", rows(CHAT, prompt=["hello?"])),
    Case("all_messages_are_texts", all_rows(CHAT, prompt=["hello?"])),
    Case("one_message_and_no_list", all_rows(CHAT, prompt=USER)),
    Case("from_and_value", all_rows(CHAT, prompt=[{"from": "human", "value": "hello?"}])),
    Case("messages_as_json", all_rows(CHAT, prompt='[{"role": "user", "content": "hello?"}]')),
    Case("prompt_ends_with_the_assistant", rows(CHAT, prompt=[USER, YES])),
    Case("nothing_but_a_system_message", rows(CHAT, prompt=[SYSTEM])),
    Case("completion_begins_with_the_user", rows(CHAT, chosen=[USER, YES])),
    Case("completion_has_a_turn_of_the_user", rows(CHAT, rejected=[NO, USER, YES])),
    Case("completion_is_whitespace", rows(CHAT, rejected=[said("assistant", " \n")])),
    Case("completions_are_equal", rows(CHAT, rejected=[YES])),
    Case(
        "completions_differ_in_what_is_trimmed", rows(CHAT, rejected=[said("assistant", " yes ")]), tokenizer="llama3"
    ),
    Case("prompt_is_text", all_rows(CHAT, prompt="hello there?", chosen=[YES], rejected=[NO])),
    Case("rejected_is_text", all_rows(CHAT, rejected="no")),
    Case("chosen_is_text", all_rows(TEXT, rejected=[NO])),
    Case("tool_calls_are_no_json", rows(CHAT, chosen=[said("assistant", "", tool_calls="call it")])),
    Case("tool_calls_are_no_list", rows(CHAT, chosen=[said("assistant", "", tool_calls='{"name": "add"}')])),
    Case("tools_are_no_json", rows({**CHAT, "tools": "[]"}, tools="add, subtract")),
    Case("tools_are_a_number", all_rows(CHAT, tools="7")),
    Case("tools_are_names", all_rows(CHAT, tools=["add"])),
    Case("tool_is_a_number", all_rows(CHAT, tools="[7]")),
    Case("template_kwargs_are_no_json", rows({**CHAT, "chat_template_kwargs": "{}"}, chat_template_kwargs="thinking")),
    Case("template_kwargs_are_a_list", all_rows(CHAT, chat_template_kwargs="[true]")),
    Case("template_kwargs_replace_the_messages", all_rows(CHAT, chat_template_kwargs='{"messages": []}')),
    Case("template_that_refuses_a_system_message", rows(CHAT, prompt=[SYSTEM, USER]), tokenizer="gemma"),
    Case("template_that_rewrites_the_prompt", rows(CHAT), tokenizer="rewriting"),
    Case("template_that_drops_the_answer", rows(CHAT), tokenizer="dropping"),
    Case("tokenizer_without_template", rows(CHAT), tokenizer="no template"),
    Case("dialogues_are_equal", rows(IMPLICIT, rejected=[USER, YES])),
    Case("dialogues_without_anything_in_common", rows(IMPLICIT, rejected=[said("user", "bye?"), NO])),
    Case("dialogue_that_is_the_beginning_of_the_other", rows(IMPLICIT, rejected=[USER, YES, USER, NO])),
    Case(
        "dialogues_that_part_at_the_user",
        rows(IMPLICIT, rejected=[USER, YES, said("user", "bye?"), NO], chosen=[USER, YES, USER, YES]),
    ),
    Case("dialogues_of_answers_only", rows(IMPLICIT, chosen=[YES], rejected=[NO])),
    Case("dialogue_without_answer", rows(IMPLICIT, rejected=[USER])),
    Case("dialogue_beside_text", all_rows(IMPLICIT, rejected="no")),
    Case("prompt_that_no_dialogue_has", rows({**IMPLICIT, "prompt": "hello?"}, prompt="bye?")),
    Case("dialogues_with_a_prompt_of_messages", [{**IMPLICIT, "prompt": [USER]}] * 2),
    Case("demonstrations", [{"messages": [USER, YES]}] * 2),
    Case("prompt_and_dialogue_absent", rows(IMPLICIT, chosen=ABSENT)),
)
