"""Ranked completions and token ids that cannot be learned from."""

import pyarrow as pa

from tests.data.malformed.case import ABSENT, NO, RANKED, TOKENS, USER, YES, Case, all_rows, rows


def ranked(*ranks: object, completions: tuple[object, ...] = ([YES], [NO])) -> list[dict[str, object]]:
    """Completions with these ranks."""
    return [{"rank": rank, "completion": said} for rank, said in zip(ranks, completions, strict=False)]


CASES = (
    Case(
        "one_completion",
        rows(RANKED, completions=ranked(0)),
        says=(
            "train dataset (pairs.jsonl), row 1, column 'completions': there is 1 completion, and a preference is "
            "between two. Write the completions as [{'rank': 0, 'completion': [messages]}, ...]; the lower rank is "
            "preferred."
        ),
    ),
    Case(
        "no_completions",
        rows(RANKED, completions=[]),
        says=(
            "train dataset (pairs.jsonl), row 1, column 'completions': there are 0 completions, and a preference "
            "is between two. Write the completions as [{'rank': 0, 'completion': [messages]}, ...]; the lower rank "
            "is preferred."
        ),
    ),
    Case(
        "completions_are_null",
        rows(RANKED, completions=None),
        says=(
            "train dataset (pairs.jsonl), row 1, column 'completions': the value is None. Fill it in, or drop such "
            "rows."
        ),
    ),
    Case(
        "rank_is_null",
        rows(RANKED, completions=ranked(0, None)),
        says=(
            "train dataset (pairs.jsonl), row 1, column 'completions': completion 1 has no rank. Write the "
            "completions as [{'rank': 0, 'completion': [messages]}, ...]; the lower rank is preferred."
        ),
    ),
    Case(
        "rank_is_a_fraction",
        rows(RANKED, completions=ranked(0, 0.5)),
        says=(
            "train dataset (pairs.jsonl), row 1, column 'completions': the rank of completion 1 is 0.5, not a "
            "whole number. Write the completions as [{'rank': 0, 'completion': [messages]}, ...]; the lower rank "
            "is preferred."
        ),
    ),
    Case(
        "rank_is_text",
        all_rows(RANKED, completions=ranked("0", "1")),
        says=(
            "train dataset (pairs.jsonl), row 0, column 'completions': the rank of completion 0 is '0', not a "
            "whole number. Write the completions as [{'rank': 0, 'completion': [messages]}, ...]; the lower rank "
            "is preferred."
        ),
    ),
    Case(
        "rank_is_a_truth_value",
        all_rows(RANKED, completions=ranked(True, False)),
        says=(
            "train dataset (pairs.jsonl), row 0, column 'completions': the rank of completion 0 is True, not a "
            "whole number. Write the completions as [{'rank': 0, 'completion': [messages]}, ...]; the lower rank "
            "is preferred."
        ),
    ),
    Case(
        "rank_is_not_a_number",
        pa.Table.from_pylist(all_rows(RANKED, completions=ranked(0.0, float("nan")))),
        file="pairs.parquet",
        says=(
            "train dataset (pairs.parquet), row 0, column 'completions': the rank of completion 1 is nan, not a "
            "whole number. Write the completions as [{'rank': 0, 'completion': [messages]}, ...]; the lower rank "
            "is preferred."
        ),
    ),
    Case(
        "rank_is_infinite",
        pa.Table.from_pylist(all_rows(RANKED, completions=ranked(0.0, float("inf")))),
        file="pairs.parquet",
        says=(
            "train dataset (pairs.parquet), row 0, column 'completions': the rank of completion 1 is inf, not a "
            "whole number. Write the completions as [{'rank': 0, 'completion': [messages]}, ...]; the lower rank "
            "is preferred."
        ),
    ),
    Case(
        "no_ranks",
        all_rows(RANKED, completions=[{"completion": [YES]}, {"completion": [NO]}]),
        says=(
            "train dataset (pairs.jsonl), column 'completions': its completions have no 'rank', only "
            "['completion']. Write the completions as [{'rank': 0, 'completion': [messages]}, ...]; the lower rank "
            "is preferred."
        ),
    ),
    Case(
        "no_completion_in_completions",
        all_rows(RANKED, completions=[{"rank": 0, "text": "a"}, {"rank": 1, "text": "b"}]),
        says=(
            "train dataset (pairs.jsonl), column 'completions': its completions have no 'completion', only "
            "['rank', 'text']. Write the completions as [{'rank': 0, 'completion': [messages]}, ...]; the lower "
            "rank is preferred."
        ),
    ),
    Case(
        "completion_is_text",
        all_rows(RANKED, completions=ranked(0, 1, completions=("yes", "no"))),
        says=(
            "train dataset (pairs.jsonl), row 0, column 'completions': in completion 0, expected a list of chat "
            "messages, got str. Write the completions as [{'rank': 0, 'completion': [messages]}, ...]; the lower "
            "rank is preferred."
        ),
    ),
    Case(
        "completion_is_null",
        rows(RANKED, completions=ranked(0, 1, completions=([YES], None))),
        says=(
            "train dataset (pairs.jsonl), row 1, column 'completions': completion 1 has no 'completion'. Write the "
            "completions as [{'rank': 0, 'completion': [messages]}, ...]; the lower rank is preferred."
        ),
    ),
    Case(
        "completion_of_the_user",
        rows(RANKED, completions=ranked(0, 1, completions=([YES], [USER]))),
        says=(
            "train dataset (pairs.jsonl), row 1, column 'completions': in completion 1, the completion begins with "
            "a message of role 'user'. Write the completions as [{'rank': 0, 'completion': [messages]}, ...]; the "
            "lower rank is preferred."
        ),
    ),
    Case(
        "completion_that_is_empty",
        rows(RANKED, completions=ranked(0, 1, completions=([YES], [{"role": "assistant", "content": ""}]))),
        says=(
            "train dataset (pairs.jsonl), row 1, column 'completions': in completion 1, the completion is empty or "
            "only whitespace. Write the completions as [{'rank': 0, 'completion': [messages]}, ...]; the lower "
            "rank is preferred."
        ),
    ),
    Case(
        "equal_completions_of_other_ranks",
        rows(RANKED, completions=ranked(0, 1, completions=([YES], [YES]))),
        says=(
            "train dataset (pairs.jsonl), row 1: two of completions are equal, so there is nothing to prefer. Drop "
            "the row."
        ),
    ),
    Case(
        "nothing_but_ties",
        all_rows(RANKED, completions=ranked(1, 1)),
        says=(
            "train dataset (pairs.jsonl): no row prefers one of its completions. Give rows whose ranks or rewards "
            "differ."
        ),
    ),
    Case(
        "context_ends_with_the_assistant",
        rows(RANKED, context=[USER, YES]),
        says=(
            "train dataset (pairs.jsonl), row 1, column 'context': the prompt ends with a message of role "
            "'assistant'. End it with the user's turn (or a tool's result); what is to be learned or compared is "
            "the completion."
        ),
    ),
    Case(
        "context_without_messages",
        rows(RANKED, context=[]),
        says=(
            "train dataset (pairs.jsonl), row 1, column 'context': the list of messages is empty. Fill it in, or "
            "drop such rows."
        ),
    ),
    Case(
        "context_is_text",
        all_rows(RANKED, context="hello?"),
        says=(
            "train dataset (pairs.jsonl), column 'context': the column does not hold lists of chat messages. Write "
            "a context as a list of {'role': ..., 'content': ...} messages."
        ),
    ),
    Case(
        "completions_are_texts",
        all_rows(RANKED, completions=["yes", "no"]),
        says=(
            "train dataset (pairs.jsonl), column 'completions': the column holds lists of string. Convert it to text, "
            "or to a list of {'role': ..., 'content': ...} messages."
        ),
    ),
    Case(
        "completions_without_context",
        all_rows(RANKED, context=ABSENT),
        says=(
            "train dataset (pairs.jsonl): the columns ['completions'] are those of no format of preferences; known "
            "are: prompt, chosen, rejected (text or chat messages); context, completions (chat messages, and "
            "completions with ranks); chosen, rejected (whole dialogues); prompt_ids, chosen_ids, rejected_ids (token "
            "ids). The nearest is context, completions, which lacks 'context'; rename what holds it."
        ),
    ),
    Case(
        "pairing_that_is_none",
        rows(RANKED),
        load={"pairing": "best"},
        says="pairing must be one of 'best_worst', 'adjacent', 'all', got 'best'.",
    ),
    Case(
        "id_is_negative",
        rows(TOKENS, chosen_ids=[7, -1]),
        says=(
            "train dataset (pairs.jsonl), row 1, column 'chosen_ids': token 1 is -1, not a token id. Write lists "
            "of the tokenizer's ids, as in tokenizer(text)['input_ids'], or give the rows as text."
        ),
    ),
    Case(
        "id_is_beyond_the_vocabulary",
        rows(TOKENS, chosen_ids=[7, 123456]),
        says=(
            "train dataset (pairs.jsonl), row 1, column 'chosen_ids': the completion has the token id 123456, and "
            "the tokenizer's are 0 to 392. Use the tokenizer that the ids were made with."
        ),
    ),
    Case(
        "ids_are_truth_values",
        all_rows(TOKENS, chosen_ids=[True, False]),
        says=(
            "train dataset (pairs.jsonl), column 'chosen_ids': the column holds lists of bool, not of token ids. "
            "Write lists of the tokenizer's ids, as in tokenizer(text)['input_ids'], or give the rows as text."
        ),
    ),
    Case(
        "ids_are_fractions",
        all_rows(TOKENS, rejected_ids=[1.5]),
        says=(
            "train dataset (pairs.jsonl), column 'rejected_ids': the column holds lists of double, not of token "
            "ids. Write lists of the tokenizer's ids, as in tokenizer(text)['input_ids'], or give the rows as text."
        ),
    ),
    Case(
        "ids_are_texts",
        all_rows(TOKENS, rejected_ids=["no"]),
        says=(
            "train dataset (pairs.jsonl), column 'rejected_ids': the column holds lists of string, not of token "
            "ids. Write lists of the tokenizer's ids, as in tokenizer(text)['input_ids'], or give the rows as text."
        ),
    ),
    Case(
        "ids_in_lists_of_lists",
        all_rows(TOKENS, chosen_ids=[[7]]),
        says=(
            "train dataset (pairs.jsonl), column 'chosen_ids': the column holds lists of list<item: int64>, not of "
            "token ids. Write lists of the tokenizer's ids, as in tokenizer(text)['input_ids'], or give the rows "
            "as text."
        ),
    ),
    Case(
        "id_is_null",
        rows(TOKENS, prompt_ids=[5, None]),
        says=(
            "train dataset (pairs.jsonl), row 1, column 'prompt_ids': token 1 is None, not a token id. Write lists "
            "of the tokenizer's ids, as in tokenizer(text)['input_ids'], or give the rows as text."
        ),
    ),
    Case(
        "prompt_of_no_ids",
        rows(TOKENS, prompt_ids=[]),
        says=(
            "train dataset (pairs.jsonl), row 1, column 'prompt_ids': there are no token ids. Write lists of the "
            "tokenizer's ids, as in tokenizer(text)['input_ids'], or give the rows as text."
        ),
    ),
    Case(
        "completion_of_no_ids",
        rows(TOKENS, rejected_ids=[]),
        says=(
            "train dataset (pairs.jsonl), row 1, column 'rejected_ids': there are no token ids. Write lists of the "
            "tokenizer's ids, as in tokenizer(text)['input_ids'], or give the rows as text."
        ),
    ),
    Case(
        "ids_are_null",
        rows(TOKENS, rejected_ids=None),
        says=(
            "train dataset (pairs.jsonl), row 1, column 'rejected_ids': the value is None. Fill it in, or drop such "
            "rows."
        ),
    ),
    Case(
        "ids_are_equal",
        rows(TOKENS, chosen_ids=[8, 9]),
        says=(
            "train dataset (pairs.jsonl), row 1: chosen_ids and rejected_ids are equal, so there is nothing to prefer. "
            "Drop such rows."
        ),
    ),
    Case(
        "ids_of_one_token_without_list",
        all_rows(TOKENS, chosen_ids=7),
        says=(
            "train dataset (pairs.jsonl), column 'chosen_ids': the column holds values of type int64, not lists of "
            "token ids. Write lists of the tokenizer's ids, as in tokenizer(text)['input_ids'], or give the rows "
            "as text."
        ),
    ),
    Case(
        "no_ids_of_the_prompt",
        all_rows(TOKENS, prompt_ids=ABSENT),
        says=(
            "train dataset (pairs.jsonl): the columns ['chosen_ids', 'rejected_ids'] are those of no format of "
            "preferences; known are: prompt, chosen, rejected (text or chat messages); context, completions (chat "
            "messages, and completions with ranks); chosen, rejected (whole dialogues); prompt_ids, chosen_ids, "
            "rejected_ids (token ids). The nearest is prompt_ids, chosen_ids, rejected_ids, which lacks 'prompt_ids'; "
            "rename what holds it."
        ),
    ),
)
