"""Prompts and completions as text that cannot be learned from."""

from datetime import datetime

import pyarrow as pa

from tests.data.malformed.case import ABSENT, TEXT, Case, all_rows, rows

CASES = (
    Case(
        "no_rejected_column",
        all_rows(TEXT, rejected=ABSENT),
        says=(
            "train dataset (pairs.jsonl): required column 'rejected' is missing; the columns are ['prompt', 'chosen']. "
            "Rename the column that holds it to 'rejected'."
        ),
    ),
    Case(
        "no_prompt_column",
        all_rows(TEXT, prompt=ABSENT),
        says=(
            "train dataset (pairs.jsonl), column 'chosen': there is no prompt column, and 'chosen' is text: nobody "
            "can tell where the prompt ends in it. Put what both sides begin with into a column 'prompt', or write "
            "dialogues as lists of {'role': ..., 'content': ...} messages."
        ),
    ),
    Case(
        "capital_letters",
        [{"Prompt": "hello? ", "Chosen": "yes", "Rejected": "no"}],
        says=(
            "train dataset (pairs.jsonl): required column 'prompt' is missing; the columns are ['Prompt', 'Chosen', "
            "'Rejected']. If 'Prompt' is it, rename it to 'prompt'."
        ),
    ),
    Case(
        "other_names",
        [{"question": "hello? ", "good": "yes", "bad": "no"}],
        says=(
            "train dataset (pairs.jsonl): the columns ['question', 'good', 'bad'] are those of no format of "
            "preferences; known are: prompt, chosen, rejected (text or chat messages); context, completions (chat "
            "messages, and completions with ranks); chosen, rejected (whole dialogues); prompt_ids, chosen_ids, "
            "rejected_ids (token ids). Rename its columns to those of one of them."
        ),
    ),
    Case(
        "only_a_prompt_and_an_answer",
        [{"prompt": "hello? ", "completion": "yes"}],
        says=(
            "train dataset (pairs.jsonl): required column 'chosen' is missing; the columns are ['prompt', "
            "'completion']. If 'completion' is it, rename it to 'chosen'."
        ),
    ),
    Case(
        "key_that_is_no_column",
        [TEXT],
        load={"prompt_key": "question"},
        says=(
            "train dataset (pairs.jsonl): prompt_key='question' is none of the columns, which are prompt, chosen, "
            "rejected. Give prompt_key the name of one of them."
        ),
    ),
    Case(
        "prompt_is_null",
        rows(TEXT, prompt=None),
        says="train dataset (pairs.jsonl), row 1, column 'prompt': the value is None. Fill it in, or drop such rows.",
    ),
    Case(
        "chosen_is_null",
        rows(TEXT, chosen=None),
        says="train dataset (pairs.jsonl), row 1, column 'chosen': the value is None. Fill it in, or drop such rows.",
    ),
    Case(
        "rejected_is_not_there",
        rows(TEXT, rejected=ABSENT),
        says=(
            "train dataset (pairs.jsonl), row 1, column 'rejected': the value is None. Fill it in, or drop such rows."
        ),
    ),
    Case(
        "chosen_is_always_null",
        all_rows(TEXT, chosen=None),
        says="train dataset (pairs.jsonl), row 0, column 'chosen': the value is None. Fill it in, or drop such rows.",
    ),
    Case(
        "chosen_is_empty",
        rows(TEXT, chosen=""),
        says=(
            "train dataset (pairs.jsonl), row 1, column 'chosen': the completion is empty or only whitespace. Drop "
            "such rows."
        ),
    ),
    Case(
        "rejected_is_whitespace",
        rows(TEXT, rejected=" \n\t"),
        says=(
            "train dataset (pairs.jsonl), row 1, column 'rejected': the completion is empty or only whitespace. Drop "
            "such rows."
        ),
    ),
    Case(
        "completions_are_equal",
        rows(TEXT, chosen="so", rejected="so"),
        says=(
            "train dataset (pairs.jsonl), row 1: chosen and rejected are equal, so there is nothing to prefer. Drop "
            "such rows."
        ),
    ),
    Case(
        "completions_are_the_same_tokens",
        rows(TEXT, chosen="yes", rejected="yes</s>"),
        says=(
            "train dataset (pairs.jsonl), row 1: chosen and rejected differ as text but are the same tokens. Drop the "
            "row."
        ),
    ),
    Case(
        "completion_is_the_end_token",
        rows(TEXT, prompt="hello?", chosen="</s>"),
        says=(
            "train dataset (pairs.jsonl), row 1, column 'chosen': the completion has no tokens of its own. The "
            "tokenizer or the chat template drops its text: change the row or drop it."
        ),
    ),
    Case(
        "messages_written_as_json_text",
        rows(TEXT, chosen='[{"role": "assistant", "content": "yes"}]'),
        says=(
            "train dataset (pairs.jsonl), row 1, column 'chosen': the text is a list of chat messages that was written "
            "as text, and would be trained on as it stands here. Write the messages as lists, in JSONL or Parquet, not "
            "CSV."
        ),
    ),
    Case(
        "messages_in_csv",
        [{"prompt": str([{"role": "user", "content": "a"}]), "chosen": "yes", "rejected": "no"}],
        file="pairs.csv",
        says=(
            "train dataset (pairs.csv), row 0, column 'prompt': the text is a list of chat messages that was written "
            "as text, and would be trained on as it stands here. Write the messages as lists, in JSONL or Parquet, not "
            "CSV."
        ),
    ),
    Case(
        "tools_beside_text",
        all_rows(TEXT, tools=[{"type": "function"}]),
        says=(
            "train dataset (pairs.jsonl), row 0, column 'tools': the chat template is to be told tools, but the row is "
            "text, which no template renders. Write the row as chat messages, or drop the column."
        ),
    ),
    Case(
        "template_kwargs_beside_text",
        rows({**TEXT, "chat_template_kwargs": "{}"}, chat_template_kwargs='{"enable_thinking": false}'),
        says=(
            "train dataset (pairs.jsonl), row 1, column 'chat_template_kwargs': the chat template is to be told "
            "chat_template_kwargs, but the row is text, which no template renders. Write the row as chat messages, or "
            "drop the column."
        ),
    ),
    Case(
        "nothing_before_the_completion",
        rows(TEXT, prompt="", chosen="yes", rejected="no"),
        tokenizer="words",
        says=(
            "train dataset (pairs.jsonl), row 1: no token is left for the prompt, so nothing predicts the first "
            "token of the completions. Give the row a prompt that the tokenizer keeps apart from the completions, "
            "or use a tokenizer that begins with a beginning-of-sequence token."
        ),
    ),
    Case(
        "prompt_that_is_part_of_a_word",
        rows(TEXT, prompt="hel", chosen="lo", rejected="p"),
        tokenizer="words",
        says=(
            "train dataset (pairs.jsonl), row 1: no token is left for the prompt, so nothing predicts the first "
            "token of the completions. Give the row a prompt that the tokenizer keeps apart from the completions, "
            "or use a tokenizer that begins with a beginning-of-sequence token."
        ),
    ),
    Case(
        "all_too_long",
        rows(TEXT),
        gym={"max_context_length": 2},
        says=(
            "train dataset (pairs.jsonl): no row is left after filtering by length (3 of 3: prompt longer than "
            "max_context_length - min_completion_length (2 - 0)); the shortest row has 5 tokens. Raise "
            "max_context_length to at least 5."
        ),
    ),
    Case(
        "all_completions_too_short",
        rows(TEXT),
        gym={"min_completion_length": 9},
        says=(
            "train dataset (pairs.jsonl): no row is left after filtering by length (3 of 3: completion shorter than "
            "min_completion_length (9)); the shortest row has 5 tokens. Lower min_completion_length to at most 2."
        ),
    ),
    Case(
        "numbers",
        all_rows(TEXT, chosen=1, rejected=2),
        says=(
            "train dataset (pairs.jsonl), column 'chosen': the column holds values of type int64. Convert it to text, "
            "or to a list of {'role': ..., 'content': ...} messages."
        ),
    ),
    Case(
        "fractions",
        all_rows(TEXT, rejected=0.5),
        says=(
            "train dataset (pairs.jsonl), column 'rejected': the column holds values of type double. Convert it to "
            "text, or to a list of {'role': ..., 'content': ...} messages."
        ),
    ),
    Case(
        "truth_values",
        all_rows(TEXT, chosen=True, rejected=False),
        says=(
            "train dataset (pairs.jsonl), column 'chosen': the column holds values of type bool. Convert it to text, "
            "or to a list of {'role': ..., 'content': ...} messages."
        ),
    ),
    Case(
        "lists_of_texts",
        all_rows(TEXT, chosen=["yes", "no"]),
        says=(
            "train dataset (pairs.jsonl), column 'chosen': the column holds lists of string. Convert it to text, or to "
            "a list of {'role': ..., 'content': ...} messages."
        ),
    ),
    Case(
        "objects",
        all_rows(TEXT, prompt={"text": "hello? "}),
        says=(
            "train dataset (pairs.jsonl), column 'prompt': the column holds values of type struct<text: string>. "
            "Convert it to text, or to a list of {'role': ..., 'content': ...} messages."
        ),
    ),
    Case(
        "not_a_number",
        pa.Table.from_pylist(all_rows(TEXT, chosen=float("nan"))),
        file="pairs.parquet",
        says=(
            "train dataset (pairs.parquet), column 'chosen': the column holds values of type double. Convert it to "
            "text, or to a list of {'role': ..., 'content': ...} messages."
        ),
    ),
    Case(
        "times",
        pa.Table.from_pylist(all_rows(TEXT, chosen=datetime(2024, 1, 1))),
        file="pairs.parquet",
        says=(
            "train dataset (pairs.parquet), column 'chosen': the column holds values of type timestamp[us]. Convert it "
            "to text, or to a list of {'role': ..., 'content': ...} messages."
        ),
    ),
    Case(
        "bytes",
        pa.Table.from_pylist(all_rows(TEXT, chosen=b"yes")),
        file="pairs.parquet",
        says=(
            "train dataset (pairs.parquet), column 'chosen': the column holds values of type binary. Convert it to "
            "text, or to a list of {'role': ..., 'content': ...} messages."
        ),
    ),
    Case(
        "no_rows",
        pa.table({"prompt": ["a"], "chosen": ["b"], "rejected": ["c"]})[:0],
        file="pairs.parquet",
        says="train dataset (pairs.parquet): the file has no rows. Fill it or leave it out.",
    ),
    Case(
        "tokenizer_without_end_token",
        rows(TEXT),
        tokenizer="no end",
        says=(
            "The tokenizer has no end-of-sequence token, so completions could not be ended. Set "
            'tokenizer.eos_token, for example tokenizer.eos_token = "</s>" if the model was trained with it.'
        ),
    ),
    Case(
        "transcripts_without_prompt",
        [{"chosen": "\n\nHuman: hello?\n\nAssistant: yes", "rejected": "\n\nHuman: hello?\n\nAssistant: no"}],
        says=(
            "train dataset (pairs.jsonl), column 'chosen': there is no prompt column, and 'chosen' is text: nobody "
            "can tell where the prompt ends in it. Put what both sides begin with into a column 'prompt', or write "
            "dialogues as lists of {'role': ..., 'content': ...} messages."
        ),
    ),
    Case(
        "transcript_without_turns",
        [{"chosen": "hello? yes", "rejected": "hello? no"}],
        load={"name": "HH-RLHF"},
        says=(
            "train dataset (pairs.jsonl), row 0, column 'chosen': the text does not begin with 'Human:' or "
            "'Assistant:'. Write '\\n\\nHuman: ...\\n\\nAssistant: ...', or use another format than HH-RLHF's."
        ),
    ),
    Case(
        "transcripts_without_assistant",
        [{"chosen": "\n\nHuman: hello?", "rejected": "\n\nHuman: hello"}],
        load={"name": "HH-RLHF"},
        says=(
            "train dataset (pairs.jsonl): no row prefers one of its completions. Give rows whose ranks or rewards "
            "differ."
        ),
    ),
    Case(
        "preference_out_of_range",
        [{"context": "hello?", "response1": "yes", "response2": "no", "overall_preference": 4}],
        load={"name": "HelpSteer3"},
        says=(
            "train dataset (pairs.jsonl), row 0, column 'overall_preference': the preference is 4. It is a whole "
            "number from -3 (the first response is much better) to 3 (the second is)."
        ),
    ),
    Case(
        "preference_is_text",
        [{"context": "hello?", "response1": "yes", "response2": "no", "overall_preference": "-2"}],
        load={"name": "HelpSteer3"},
        says=(
            "train dataset (pairs.jsonl), row 0, column 'overall_preference': the preference is '-2'. It is a "
            "whole number from -3 (the first response is much better) to 3 (the second is)."
        ),
    ),
)
