"""Prompts and completions as text that cannot be learned from."""

from datetime import datetime

import pyarrow as pa

from tests.data.malformed.case import ABSENT, TEXT, Case, all_rows, rows

CASES = (
    Case("no_rejected_column", all_rows(TEXT, rejected=ABSENT)),
    Case("no_prompt_column", all_rows(TEXT, prompt=ABSENT)),
    Case("capital_letters", [{"Prompt": "hello? ", "Chosen": "yes", "Rejected": "no"}]),
    Case("other_names", [{"question": "hello? ", "good": "yes", "bad": "no"}]),
    Case("only_a_prompt_and_an_answer", [{"prompt": "hello? ", "completion": "yes"}]),
    Case("key_that_is_no_column", [TEXT], load={"prompt_key": "question"}),
    Case("prompt_is_null", rows(TEXT, prompt=None)),
    Case("chosen_is_null", rows(TEXT, chosen=None)),
    Case("rejected_is_not_there", rows(TEXT, rejected=ABSENT)),
    Case("chosen_is_always_null", all_rows(TEXT, chosen=None)),
    Case("chosen_is_empty", rows(TEXT, chosen="")),
    Case("rejected_is_whitespace", rows(TEXT, rejected=" \n\t")),
    Case("completions_are_equal", rows(TEXT, chosen="so", rejected="so")),
    Case("completions_are_the_same_tokens", rows(TEXT, chosen="yes", rejected="yes</s>")),
    Case("completion_is_the_end_token", rows(TEXT, chosen="</s>")),
    Case("nothing_before_the_completion", rows(TEXT, prompt="", chosen="yes", rejected="no"), tokenizer="words"),
    Case("prompt_that_is_part_of_a_word", rows(TEXT, prompt="hel", chosen="lo", rejected="p"), tokenizer="words"),
    Case("all_too_long", rows(TEXT), gym={"max_context_length": 2}),
    Case("all_completions_too_short", rows(TEXT), gym={"min_completion_length": 9}),
    Case("numbers", all_rows(TEXT, chosen=1, rejected=2)),
    Case("fractions", all_rows(TEXT, rejected=0.5)),
    Case("truth_values", all_rows(TEXT, chosen=True, rejected=False)),
    Case("lists_of_texts", all_rows(TEXT, chosen=["yes", "no"])),
    Case("objects", all_rows(TEXT, prompt={"text": "hello? "})),
    Case("not_a_number", pa.Table.from_pylist(all_rows(TEXT, chosen=float("nan"))), file="pairs.parquet"),
    Case("times", pa.Table.from_pylist(all_rows(TEXT, chosen=datetime(2024, 1, 1))), file="pairs.parquet"),
    Case("bytes", pa.Table.from_pylist(all_rows(TEXT, chosen=b"yes")), file="pairs.parquet"),
    Case("no_rows", pa.table({"prompt": ["a"], "chosen": ["b"], "rejected": ["c"]})[:0], file="pairs.parquet"),
    Case("tokenizer_without_end_token", rows(TEXT), tokenizer="no end"),
    Case(
        "transcripts_without_prompt",
        [{"chosen": "\n\nHuman: hello?\n\nAssistant: yes", "rejected": "\n\nHuman: hello?\n\nAssistant: no"}],
    ),
    Case(
        "transcript_without_turns",
        [{"chosen": "hello? yes", "rejected": "hello? no"}],
        load={"name": "HH-RLHF"},
    ),
    Case(
        "transcripts_without_assistant",
        [{"chosen": "\n\nHuman: hello?", "rejected": "\n\nHuman: hello"}],
        load={"name": "HH-RLHF"},
    ),
    Case(
        "preference_out_of_range",
        [{"context": "hello?", "response1": "yes", "response2": "no", "overall_preference": 4}],
        load={"name": "HelpSteer3"},
    ),
    Case(
        "preference_is_text",
        [{"context": "hello?", "response1": "yes", "response2": "no", "overall_preference": "-2"}],
        load={"name": "HelpSteer3"},
    ),
)
