"""The pairs that all systems are given."""

import gzip
import json

import pytest

from benchmarking.pairs import PairStatistics, load_rows, read_pairs, select_pairs, to_dataset, write_pairs

TEMPLATE = (
    "{% for message in messages %}{{ '<s> ' + message['content'] + ' </s> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s> ' }}{% endif %}"
)


def words(first: int, count: int) -> str:
    return " ".join(f"w{i}" for i in range(first, first + count))


@pytest.fixture
def rows():
    """Twenty rows; row i has 20 prompt tokens and completions of i + 1 and i + 3."""
    return [{"prompt": words(4, 20) + " ", "chosen": words(30, i + 1), "rejected": words(50, i + 3)} for i in range(20)]


def test_sizes_are_those_of_the_joined_text(rows, tiny_tokenizer):
    for pair in select_pairs(rows, tiny_tokenizer, 20, max_length=99):
        assert pair.chosen.endswith("</s>")
        assert pair.rejected.endswith("</s>")
        with_chosen, with_rejected = (
            len(tiny_tokenizer(pair.prompt + text)["input_ids"]) for text in (pair.chosen, pair.rejected)
        )
        assert pair.prompt_tokens == 20
        assert with_chosen == 20 + pair.chosen_tokens
        assert with_rejected == 20 + pair.rejected_tokens
        assert pair.rejected_tokens == pair.chosen_tokens + 2
        assert pair.tokens == with_chosen + with_rejected - 20
        assert pair.longest == with_rejected


def test_statistics_are_means_and_sums(rows, tiny_tokenizer):
    sizes = PairStatistics.of(select_pairs(rows, tiny_tokenizer, 20, max_length=99))
    # Completions of 2 ... 21 and 4 ... 23 tokens, the end-of-sequence token included.
    assert (sizes.pairs, sizes.prompt, sizes.chosen, sizes.rejected) == (20, 20, 11.5, 13.5)
    assert sizes.completion_tokens == 20 * 25
    assert sizes.tokens == 20 * 45


def test_no_pair_is_longer_than_the_limit_and_too_few_are_an_error(rows, tiny_tokenizer):
    fitting = [row for row in range(20) if 20 + row + 4 <= 30]
    pairs = select_pairs(rows, tiny_tokenizer, len(fitting), max_length=30)
    assert max(pair.longest for pair in pairs) == 30
    with pytest.raises(ValueError, match=r"Only 7 of the 20 rows .* 8 are needed.*--num-pairs"):
        select_pairs(rows, tiny_tokenizer, len(fitting) + 1, max_length=30)


def test_the_draw_is_repeatable_and_more_pairs_begin_with_the_same(rows, tiny_tokenizer):
    eight = select_pairs(rows, tiny_tokenizer, 8, max_length=99)
    assert select_pairs(rows, tiny_tokenizer, 12, max_length=99)[:8] == eight
    assert select_pairs(rows, tiny_tokenizer, 8, max_length=99, seed=1) != eight


def test_short_prompts_are_the_end_of_the_prompt_and_half_a_completion_long(rows, tiny_tokenizer):
    whole = {pair.chosen: pair for pair in select_pairs(rows, tiny_tokenizer, 20, max_length=99)}
    for pair in select_pairs(rows, tiny_tokenizer, 20, max_length=99, short_prompts=True):
        assert abs(pair.prompt_tokens - (pair.chosen_tokens + pair.rejected_tokens) / 4) <= 0.5
        assert whole[pair.chosen].prompt.endswith(pair.prompt)
        assert whole[pair.chosen].completion_tokens == pair.completion_tokens


def test_a_row_whose_tokens_depend_on_the_split_is_left_out(rows, tiny_tokenizer):
    merged = {"prompt": "w4 w1", "chosen": "0 w6", "rejected": "w7"}  # "w1" and "0" are one word together
    pairs = select_pairs([merged, *rows], tiny_tokenizer, 20, max_length=99)
    assert all(pair.prompt != "w4 w1" for pair in pairs)
    with pytest.raises(ValueError, match="Only 20 of the 21 rows"):
        select_pairs([merged, *rows], tiny_tokenizer, 21, max_length=99)


def test_chat_becomes_text_that_ends_with_its_turn(tiny_tokenizer):
    tiny_tokenizer.chat_template = TEMPLATE

    def turn(role, text):
        return [{"role": role, "content": text}]

    row = {"prompt": turn("user", "w4 w5"), "chosen": turn("assistant", "w6"), "rejected": turn("assistant", "w7 w8")}
    (pair,) = select_pairs([row], tiny_tokenizer, 1, max_length=99)
    assert pair.prompt == "<s> w4 w5 </s> <s> "
    assert (pair.chosen, pair.rejected) == ("w6 </s>", "w7 w8 </s>")
    assert (pair.prompt_tokens, pair.chosen_tokens, pair.rejected_tokens) == (5, 2, 3)


def test_files_plain_and_compressed(rows, tmp_path):
    text = "".join(json.dumps({**row, "id": 1}) + "\n" for row in rows)
    (tmp_path / "rows.jsonl").write_text(text)
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    assert load_rows(tmp_path / "rows.jsonl") == rows
    assert load_rows(tmp_path / "rows.jsonl.gz") == rows
    (tmp_path / "bad.jsonl").write_text('{"prompt": "w4", "chosen": "w5"}\n')
    with pytest.raises(ValueError, match=r"Row 0 of .*bad\.jsonl has no column rejected"):
        load_rows(tmp_path / "bad.jsonl")


def test_without_a_file_the_embedded_pairs_are_taken():
    rows = load_rows()
    assert len(rows) >= 100
    assert all(set(row) == {"prompt", "chosen", "rejected"} for row in rows)


def test_what_is_handed_to_a_worker_comes_back(rows, tiny_tokenizer, tmp_path):
    pairs = select_pairs(rows, tiny_tokenizer, 5, max_length=99)
    write_pairs(pairs, tmp_path / "pairs.jsonl")
    assert read_pairs(tmp_path / "pairs.jsonl") == pairs
    assert to_dataset(pairs)["chosen"][2] == pairs[2].chosen
