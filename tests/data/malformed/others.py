"""Ranked completions and token ids that cannot be learned from."""

import pyarrow as pa

from tests.data.malformed.case import ABSENT, NO, RANKED, TOKENS, USER, YES, Case, all_rows, rows


def ranked(*ranks: object, completions: tuple[object, ...] = ([YES], [NO])) -> list[dict[str, object]]:
    """Completions with these ranks."""
    return [{"rank": rank, "completion": said} for rank, said in zip(ranks, completions, strict=False)]


CASES = (
    Case("one_completion", rows(RANKED, completions=ranked(0))),
    Case("no_completions", rows(RANKED, completions=[])),
    Case("completions_are_null", rows(RANKED, completions=None)),
    Case("rank_is_null", rows(RANKED, completions=ranked(0, None))),
    Case("rank_is_a_fraction", rows(RANKED, completions=ranked(0, 0.5))),
    Case("rank_is_text", all_rows(RANKED, completions=ranked("0", "1"))),
    Case("rank_is_a_truth_value", all_rows(RANKED, completions=ranked(True, False))),
    Case(
        "rank_is_not_a_number",
        pa.Table.from_pylist(all_rows(RANKED, completions=ranked(0.0, float("nan")))),
        file="pairs.parquet",
    ),
    Case(
        "rank_is_infinite",
        pa.Table.from_pylist(all_rows(RANKED, completions=ranked(0.0, float("inf")))),
        file="pairs.parquet",
    ),
    Case("no_ranks", all_rows(RANKED, completions=[{"completion": [YES]}, {"completion": [NO]}])),
    Case(
        "no_completion_in_completions",
        all_rows(RANKED, completions=[{"rank": 0, "text": "a"}, {"rank": 1, "text": "b"}]),
    ),
    Case("completion_is_text", all_rows(RANKED, completions=ranked(0, 1, completions=("yes", "no")))),
    Case("completion_is_null", rows(RANKED, completions=ranked(0, 1, completions=([YES], None)))),
    Case("completion_of_the_user", rows(RANKED, completions=ranked(0, 1, completions=([YES], [USER])))),
    Case(
        "completion_that_is_empty",
        rows(RANKED, completions=ranked(0, 1, completions=([YES], [{"role": "assistant", "content": ""}]))),
    ),
    Case("equal_completions_of_other_ranks", rows(RANKED, completions=ranked(0, 1, completions=([YES], [YES])))),
    Case("nothing_but_ties", all_rows(RANKED, completions=ranked(1, 1))),
    Case("context_ends_with_the_assistant", rows(RANKED, context=[USER, YES])),
    Case("context_without_messages", rows(RANKED, context=[])),
    Case("context_is_text", all_rows(RANKED, context="hello?")),
    Case("completions_are_texts", all_rows(RANKED, completions=["yes", "no"])),
    Case("completions_without_context", all_rows(RANKED, context=ABSENT)),
    Case("pairing_that_is_none", rows(RANKED), load={"pairing": "best"}),
    Case("id_is_negative", rows(TOKENS, chosen_ids=[7, -1])),
    Case("id_is_beyond_the_vocabulary", rows(TOKENS, chosen_ids=[7, 123456])),
    Case("ids_are_truth_values", all_rows(TOKENS, chosen_ids=[True, False])),
    Case("ids_are_fractions", all_rows(TOKENS, rejected_ids=[1.5])),
    Case("ids_are_texts", all_rows(TOKENS, rejected_ids=["no"])),
    Case("ids_in_lists_of_lists", all_rows(TOKENS, chosen_ids=[[7]])),
    Case("id_is_null", rows(TOKENS, prompt_ids=[5, None])),
    Case("prompt_of_no_ids", rows(TOKENS, prompt_ids=[])),
    Case("completion_of_no_ids", rows(TOKENS, rejected_ids=[])),
    Case("ids_are_null", rows(TOKENS, rejected_ids=None)),
    Case("ids_are_equal", rows(TOKENS, chosen_ids=[8, 9])),
    Case("ids_of_one_token_without_list", all_rows(TOKENS, chosen_ids=7)),
    Case("no_ids_of_the_prompt", all_rows(TOKENS, prompt_ids=ABSENT)),
)
