"""Chat messages that cannot be learned from."""

from tests.data.malformed.case import ABSENT, CHAT, IMPLICIT, NO, TEXT, USER, YES, Case, all_rows, rows

SYSTEM = {"role": "system", "content": "be brief"}


def said(role: object, content: object, **more: object) -> dict[str, object]:
    return {"role": role, "content": content, **more}


CASES = (
    Case(
        "prompt_without_messages",
        rows(CHAT, prompt=[]),
        says=(
            "train dataset (pairs.jsonl), row 1, column 'prompt': the list of messages is empty. Fill it in, or "
            "drop such rows."
        ),
    ),
    Case(
        "chosen_without_messages",
        rows(CHAT, chosen=[]),
        says=(
            "train dataset (pairs.jsonl), row 1, column 'chosen': the list of messages is empty. Fill it in, or "
            "drop such rows."
        ),
    ),
    Case(
        "prompt_is_null",
        rows(CHAT, prompt=None),
        says="train dataset (pairs.jsonl), row 1, column 'prompt': the value is None. Fill it in, or drop such rows.",
    ),
    Case(
        "unknown_role",
        rows(CHAT, prompt=[said("human", "hello?")]),
        says=(
            "train dataset (pairs.jsonl), row 1, column 'prompt': message 0 has the unknown role 'human'. Use one of "
            "system, developer, user, assistant, tool; rename others."
        ),
    ),
    Case(
        "role_in_capitals",
        rows(CHAT, prompt=[said("User", "hello?")]),
        says=(
            "train dataset (pairs.jsonl), row 1, column 'prompt': message 0 has the unknown role 'User'. Use one of "
            "system, developer, user, assistant, tool; rename others."
        ),
    ),
    Case(
        "no_role",
        rows(CHAT, prompt=[{"content": "hello?"}]),
        says=(
            "train dataset (pairs.jsonl), row 1, column 'prompt': message 0 has no role; it has 'content'. Write it as "
            "{'role': ..., 'content': ...}; rename other keys."
        ),
    ),
    Case(
        "no_content",
        rows(CHAT, prompt=[{"role": "user"}]),
        says=(
            "train dataset (pairs.jsonl), row 1, column 'prompt': message 0 (role 'user') has no content. Give "
            "every message a text under 'content' (only a message with tool_calls may lack it)."
        ),
    ),
    Case(
        "content_is_null",
        rows(CHAT, chosen=[said("assistant", None)]),
        says=(
            "train dataset (pairs.jsonl), row 1, column 'chosen': message 0 (role 'assistant') has no content. "
            "Give every message a text under 'content' (only a message with tool_calls may lack it)."
        ),
    ),
    Case(
        "content_in_parts",
        all_rows(CHAT, prompt=[said("user", [{"type": "text", "text": "hello?"}])]),
        says=(
            "train dataset (pairs.jsonl), row 0, column 'prompt': the content of message 0 is list, not text. Only "
            "text can be trained on: join its text parts into one string."
        ),
    ),
    Case(
        "content_is_a_number",
        all_rows(CHAT, prompt=[said("user", 7)]),
        says=(
            "train dataset (pairs.jsonl), row 0, column 'prompt': the content of message 0 is int, not text. Only "
            "text can be trained on: join its text parts into one string."
        ),
    ),
    Case(
        "message_is_null",
        rows(CHAT, chosen=[None]),
        says=(
            "train dataset (pairs.jsonl), row 1, column 'chosen': message 0 is NoneType, not a dict. Write it as "
            "{'role': ..., 'content': ...}."
        ),
    ),
    Case(
        "message_is_text",
        rows(CHAT, prompt=["hello?"]),
        says=(
            "train dataset (pairs.jsonl), row 1, column 'prompt': message 0 is str, not a dict. Write it as "
            "{'role': ..., 'content': ...}."
        ),
    ),
    Case(
        "all_messages_are_texts",
        all_rows(CHAT, prompt=["hello?"]),
        says=(
            "train dataset (pairs.jsonl), column 'prompt': the column holds lists of string. Convert it to text, or to "
            "a list of {'role': ..., 'content': ...} messages."
        ),
    ),
    Case(
        "one_message_and_no_list",
        all_rows(CHAT, prompt=USER),
        says=(
            "train dataset (pairs.jsonl), column 'prompt': the column holds values of type struct<role: string, "
            "content: string>. Convert it to text, or to a list of {'role': ..., 'content': ...} messages."
        ),
    ),
    Case(
        "from_and_value",
        all_rows(CHAT, prompt=[{"from": "human", "value": "hello?"}]),
        says=(
            "train dataset (pairs.jsonl), row 0, column 'prompt': message 0 has no role; it has 'from', 'value'. Write "
            "it as {'role': ..., 'content': ...}; rename other keys."
        ),
    ),
    Case(
        "messages_as_json",
        all_rows(CHAT, prompt='[{"role": "user", "content": "hello?"}]'),
        says=(
            "train dataset (pairs.jsonl), row 0: text and chat messages are mixed: 'prompt' is text, 'chosen' is chat, "
            "'rejected' is chat. Write all of them as lists of chat messages."
        ),
    ),
    Case(
        "prompt_ends_with_the_assistant",
        rows(CHAT, prompt=[USER, YES]),
        says=(
            "train dataset (pairs.jsonl), row 1, column 'prompt': the prompt ends with a message of role "
            "'assistant'. End it with the user's turn (or a tool's result); what is to be learned or compared is "
            "the completion."
        ),
    ),
    Case(
        "nothing_but_a_system_message",
        rows(CHAT, prompt=[SYSTEM]),
        says=(
            "train dataset (pairs.jsonl), row 1, column 'prompt': the prompt ends with a message of role 'system'. "
            "End it with the user's turn (or a tool's result); what is to be learned or compared is the completion."
        ),
    ),
    Case(
        "completion_begins_with_the_user",
        rows(CHAT, chosen=[USER, YES]),
        says=(
            "train dataset (pairs.jsonl), row 1, column 'chosen': the completion begins with a message of role "
            "'user'. Keep the dialogue so far in prompt only; a completion begins with the assistant's answer."
        ),
    ),
    Case(
        "completion_has_a_turn_of_the_user",
        rows(CHAT, rejected=[NO, USER, YES]),
        says=(
            "train dataset (pairs.jsonl), row 1, column 'rejected': the completion holds a message of role 'user'. "
            "Move the earlier turns to prompt and keep only the last answer as the completion, or drop such rows."
        ),
    ),
    Case(
        "completion_is_whitespace",
        rows(CHAT, rejected=[said("assistant", " \n")]),
        says=(
            "train dataset (pairs.jsonl), row 1, column 'rejected': the completion is empty or only whitespace. Give "
            "it content, or drop such rows."
        ),
    ),
    Case(
        "completions_are_equal",
        rows(CHAT, rejected=[YES]),
        says=(
            "train dataset (pairs.jsonl), row 1: chosen and rejected are equal, so there is nothing to prefer. Drop "
            "such rows."
        ),
    ),
    Case(
        "completions_differ_in_what_is_trimmed",
        rows(CHAT, rejected=[said("assistant", " yes ")]),
        tokenizer="llama3",
        says=(
            "train dataset (pairs.jsonl), row 1: chosen and rejected differ as text but are the same tokens. Drop the "
            "row."
        ),
    ),
    Case(
        "prompt_is_text",
        all_rows(CHAT, prompt="hello there?", chosen=[YES], rejected=[NO]),
        says=(
            "train dataset (pairs.jsonl), row 0: text and chat messages are mixed: 'prompt' is text, 'chosen' is chat, "
            "'rejected' is chat. Write all of them as lists of chat messages."
        ),
    ),
    Case(
        "rejected_is_text",
        all_rows(CHAT, rejected="no"),
        says=(
            "train dataset (pairs.jsonl): text and chat messages are mixed: 'prompt' is chat, 'chosen' is chat, "
            "'rejected' is text. Write all of them as lists of chat messages."
        ),
    ),
    Case(
        "chosen_is_text",
        all_rows(TEXT, rejected=[NO]),
        says=(
            "train dataset (pairs.jsonl): text and chat messages are mixed: 'prompt' is text, 'chosen' is text, "
            "'rejected' is chat. Write all of them as lists of chat messages."
        ),
    ),
    Case(
        "tool_calls_are_no_json",
        rows(CHAT, chosen=[said("assistant", "", tool_calls="call it")]),
        says=(
            "train dataset (pairs.jsonl), row 1, column 'chosen': the tool_calls of message 0 are text that cannot be "
            "read as JSON (Expecting value: line 1 column 1 (char 0)). Write a list of calls, as JSON text or as it is."
        ),
    ),
    Case(
        "tool_calls_are_no_list",
        rows(CHAT, chosen=[said("assistant", "", tool_calls='{"name": "add"}')]),
        says=(
            "train dataset (pairs.jsonl), row 1, column 'chosen': the tool_calls of message 0 are not a list of "
            "mappings. Write a list of calls, as JSON text or as it is."
        ),
    ),
    Case(
        "tools_are_no_json",
        rows({**CHAT, "tools": "[]"}, tools="add, subtract"),
        says=(
            "train dataset (pairs.jsonl), row 1, column 'tools': the text cannot be read as JSON (Expecting value: "
            "line 1 column 1 (char 0)). Write a list of JSON schemas, as JSON text or as it is; or drop the column."
        ),
    ),
    Case(
        "tools_are_a_number",
        all_rows(CHAT, tools="7"),
        says=(
            "train dataset (pairs.jsonl), row 0, column 'tools': expected a list of tools, got int. Write a list of "
            "JSON schemas, as JSON text or as it is; or drop the column."
        ),
    ),
    Case(
        "tools_are_false",
        all_rows(CHAT, tools="false"),
        says=(
            "train dataset (pairs.jsonl), row 0, column 'tools': expected a list of tools, got bool. Write a list of "
            "JSON schemas, as JSON text or as it is; or drop the column."
        ),
    ),
    Case(
        "tools_with_a_number_of_too_many_digits",
        all_rows(CHAT, tools='[{"a": ' + "9" * 5000 + "}]"),
        says=(
            "train dataset (pairs.jsonl), row 0, column 'tools': the text cannot be read as JSON (Exceeds the limit "
            "(4300 digits) for integer string conversion: value has 5000 digits; use sys.set_int_max_str_digits() to "
            "increase the limit). Write a list of JSON schemas, as JSON text or as it is; or drop the column."
        ),
    ),
    Case(
        "tools_are_names",
        all_rows(CHAT, tools=["add"]),
        says=(
            "train dataset (pairs.jsonl), row 0, column 'tools': the text cannot be read as JSON (Expecting value: "
            "line 1 column 1 (char 0)). Write a list of JSON schemas, as JSON text or as it is; or drop the column."
        ),
    ),
    Case(
        "tool_is_a_number",
        all_rows(CHAT, tools="[7]"),
        says=(
            "train dataset (pairs.jsonl), row 0, column 'tools': tool 0 is int, not a JSON schema. Write a list of "
            "JSON schemas, as JSON text or as it is; or drop the column."
        ),
    ),
    Case(
        "template_kwargs_are_no_json",
        rows({**CHAT, "chat_template_kwargs": "{}"}, chat_template_kwargs="thinking"),
        says=(
            "train dataset (pairs.jsonl), row 1, column 'chat_template_kwargs': the text cannot be read as JSON "
            "(Expecting value: line 1 column 1 (char 0)). Write a mapping of the template's variables, as JSON text or "
            "as it is; or drop the column."
        ),
    ),
    Case(
        "template_kwargs_are_a_list",
        all_rows(CHAT, chat_template_kwargs="[true]"),
        says=(
            "train dataset (pairs.jsonl), row 0, column 'chat_template_kwargs': expected a mapping, got list. Write a "
            "mapping of the template's variables, as JSON text or as it is; or drop the column."
        ),
    ),
    Case(
        "template_kwargs_replace_the_messages",
        all_rows(CHAT, chat_template_kwargs='{"messages": []}'),
        says=(
            "train dataset (pairs.jsonl), row 0, column 'chat_template_kwargs': ['messages'] is what rendering sets "
            "itself. Write a mapping of the template's variables, as JSON text or as it is; or drop the column."
        ),
    ),
    Case(
        "template_that_refuses_a_system_message",
        rows(CHAT, prompt=[SYSTEM, USER]),
        tokenizer="gemma",
        says=(
            "train dataset (pairs.jsonl), row 1: the chat template refuses the messages (System role not supported). "
            "Change the messages, or set tokenizer.chat_template to one that takes them."
        ),
    ),
    Case(
        "template_that_rewrites_the_prompt",
        rows(CHAT),
        tokenizer="rewriting",
        says=(
            "train dataset (pairs.jsonl), row 0: the chat template renders the prompt differently once a "
            "completion follows it: before message 0 (role 'user'), '1 messages hello?</s>' becomes '2 messages "
            "hello? yes</s>'. Set tokenizer.chat_template to one that leaves earlier turns as they are, or render "
            "the rows to text yourself."
        ),
    ),
    Case(
        "template_that_drops_the_answer",
        rows(CHAT),
        tokenizer="dropping",
        says=(
            "train dataset (pairs.jsonl), row 0, column 'chosen': the completion has no tokens of its own. The "
            "tokenizer or the chat template drops its text: change the row or drop it."
        ),
    ),
    Case(
        "tokenizer_without_template",
        rows(CHAT),
        tokenizer="no template",
        says=(
            "The dataset holds chat messages but the tokenizer has no chat template. Set tokenizer.chat_template, "
            "use the tokenizer of the instruction-tuned model, or render the rows to text yourself."
        ),
    ),
    Case(
        "dialogues_are_equal",
        rows(IMPLICIT, rejected=[USER, YES]),
        says=(
            "train dataset (pairs.jsonl), row 1: chosen and rejected are equal, so there is nothing to prefer. Drop "
            "such rows."
        ),
    ),
    Case(
        "dialogues_without_anything_in_common",
        rows(IMPLICIT, rejected=[said("user", "bye?"), NO]),
        says=(
            "train dataset (pairs.jsonl), row 1: chosen and rejected have no message in common that could be the "
            "prompt. Begin both dialogues with the same turns, or drop such rows."
        ),
    ),
    Case(
        "dialogue_that_is_the_beginning_of_the_other",
        rows(IMPLICIT, rejected=[USER, YES, USER, NO]),
        says=(
            "train dataset (pairs.jsonl), row 1, column 'chosen': the dialogue is the beginning of rejected's, so "
            "it has no completion of its own. End both dialogues with their answers to the same turn, or drop such "
            "rows."
        ),
    ),
    Case(
        "dialogues_that_part_at_the_user",
        rows(IMPLICIT, rejected=[USER, YES, said("user", "bye?"), NO], chosen=[USER, YES, USER, YES]),
        says=(
            "train dataset (pairs.jsonl), row 1, column 'chosen': the dialogues part at message 2, and what "
            "follows is not only an answer: its roles are assistant, user, assistant. Only answers to the same "
            "turns can be compared: end both dialogues with them, or drop such rows."
        ),
    ),
    Case(
        "dialogues_of_answers_only",
        rows(IMPLICIT, chosen=[YES], rejected=[NO]),
        says=(
            "train dataset (pairs.jsonl), row 1: chosen and rejected begin with the answer, and there is no prompt "
            "column. Begin both dialogues with the turns that they answer, or give the rows a column 'prompt'."
        ),
    ),
    Case(
        "dialogue_without_answer",
        rows(IMPLICIT, rejected=[USER]),
        says=(
            "train dataset (pairs.jsonl), row 1, column 'rejected': the dialogue is the beginning of chosen's, so "
            "it has no completion of its own. End both dialogues with their answers to the same turn, or drop such "
            "rows."
        ),
    ),
    Case(
        "dialogue_beside_text",
        all_rows(IMPLICIT, rejected="no"),
        says=(
            "train dataset (pairs.jsonl), column 'rejected': there is no prompt column, and 'rejected' is text: "
            "nobody can tell where the prompt ends in it. Put what both sides begin with into a column 'prompt', "
            "or write dialogues as lists of {'role': ..., 'content': ...} messages."
        ),
    ),
    Case(
        "prompt_that_no_dialogue_has",
        rows({**IMPLICIT, "prompt": "hello?"}, prompt="bye?"),
        says=(
            "train dataset (pairs.jsonl), row 1, column 'prompt': the text is none of the user's messages that chosen "
            "and rejected have in common. If the dialogues are right, drop the column."
        ),
    ),
    Case(
        "dialogues_with_a_prompt_of_messages",
        [{**IMPLICIT, "prompt": [USER]}] * 2,
        says=(
            "train dataset (pairs.jsonl), row 0, column 'chosen': the completion begins with a message of role "
            "'user'. Keep the dialogue so far in prompt only; a completion begins with the assistant's answer."
        ),
    ),
    Case(
        "demonstrations",
        [{"messages": [USER, YES]}] * 2,
        says=(
            "train dataset (pairs.jsonl): the columns ['messages'] are those of no format of preferences; known are: "
            "prompt, chosen, rejected (text or chat messages); context, completions (chat messages, and completions "
            "with ranks); chosen, rejected (whole dialogues); prompt_ids, chosen_ids, rejected_ids (token ids). Rename "
            "its columns to those of one of them."
        ),
    ),
    Case(
        "prompt_and_dialogue_absent",
        rows(IMPLICIT, chosen=ABSENT),
        says="train dataset (pairs.jsonl), row 1, column 'chosen': the value is None. Fill it in, or drop such rows.",
    ),
)
