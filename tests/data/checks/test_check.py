"""What checks count, against counting by hand and by brute force."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from agiledpo.data import DatasetError
from agiledpo.data.checks import CheckReport, Finding, Place, Severity, check_preferences
from agiledpo.data.digests import digest, exact, near
from agiledpo.data.tokenization import isolated_copy, tokenize_rows
from agiledpo.embedded.preferences import load_embedded_preferences

Row = tuple[str, str, str]


def text_data(rows: Sequence[Row]) -> Dataset:
    return Dataset.from_list([{"prompt": p, "chosen": c, "rejected": r} for p, c, r in rows])


def chat_data(rows: Sequence[Row]) -> Dataset:
    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": prompt}],
                "chosen": [{"role": "assistant", "content": chosen}],
                "rejected": [{"role": "assistant", "content": rejected}],
            }
            for prompt, chosen, rejected in rows
        ]
    )


def found(report: CheckReport, check: str, dataset: str = "train") -> Finding | None:
    """The one finding of a check, or None."""
    findings = [one for one in report.findings if one.check == check and one.dataset == dataset]
    assert len(findings) <= 1
    return findings[0] if findings else None


def count(report: CheckReport, check: str, dataset: str = "train") -> int:
    finding = found(report, check, dataset)
    return 0 if finding is None else finding.count


# Few different words, so that repetitions, contradictions and near equality all occur.
prompts = st.sampled_from(["Why?\n", "why?\n", "Why? \n", "How?\n", ""])
answers = st.sampled_from(["Yes it is", "yes  it is", "no", "No", "so so"])
pairs = st.tuples(prompts, answers, answers).filter(lambda row: row[1] != row[2])
datasets = st.lists(pairs, min_size=1, max_size=12)


def folded(row: Sequence[str]) -> tuple[str, ...]:
    return tuple(" ".join(text.casefold().split()) for text in row)


@pytest.mark.parametrize("make", [text_data, chat_data])
@settings(max_examples=60, deadline=None)
@given(train=datasets, test=datasets)
def test_repetitions_and_leakage_against_brute_force(make: Any, train: list[Row], test: list[Row]) -> None:
    report = check_preferences(make(train), test=make(test))
    for name, rows in (("train", train), ("test", test)):
        before = [rows[:place] for place in range(len(rows))]
        assert count(report, "duplicate_pairs", name) == sum(
            row in past for row, past in zip(rows, before, strict=True)
        )
        assert count(report, "near_duplicate_pairs", name) == sum(
            folded(row) in map(folded, past) and row not in past for row, past in zip(rows, before, strict=True)
        )
        assert count(report, "contradictory_pairs", name) == sum((p, r, c) in rows for p, c, r in rows)
        assert count(report, "nearly_identical_pairs", name) == sum(folded(row)[1] == folded(row)[2] for row in rows)
    train_prompts = {prompt for prompt, _, _ in train}
    assert count(report, "leaked_pairs", "test") == sum(row in train for row in test)
    assert count(report, "swapped_test_pairs", "test") == sum((p, r, c) in train for p, c, r in test)
    assert count(report, "leaked_prompts", "test") == sum(prompt in train_prompts for prompt, _, _ in test)
    assert count(report, "nearly_leaked_prompts", "test") == sum(
        prompt not in train_prompts and folded([prompt]) in [folded([other]) for other in train_prompts]
        for prompt, _, _ in test
    )
    assert [figures.distinct_prompts for figures in report.datasets] == [
        len(train_prompts),
        len({prompt for prompt, _, _ in test}),
    ]


def test_examples_name_the_row_and_the_one_it_is_like() -> None:
    rows = [("a?\n", "yes", "no"), ("b?\n", "x", "y"), ("a?\n", "no", "yes"), ("b?\n", "x", "y"), ("b?\n", "x", "y")]
    report = check_preferences(text_data(rows), test=text_data([("c?\n", "1", "2"), ("b?\n", "x", "z")]), examples=2)
    duplicate, contradiction = found(report, "duplicate_pairs"), found(report, "contradictory_pairs")
    assert duplicate is not None
    assert contradiction is not None
    assert (duplicate.count, duplicate.total, duplicate.share) == (2, 5, 0.4)
    assert [(example.place, example.other) for example in duplicate.examples] == [
        (Place(3), Place(1)),
        (Place(4), Place(1)),
    ]
    assert [(example.place, example.other) for example in contradiction.examples] == [
        (Place(0), Place(2)),
        (Place(2), Place(0)),
    ]
    assert duplicate.examples[0].excerpt == "b?\n"
    leaked = found(report, "leaked_prompts", "test")
    assert leaked is not None
    assert [(example.place, example.other) for example in leaked.examples] == [(Place(1), Place(1))]


def test_all_unusable_rows_are_counted_by_what_is_wrong() -> None:
    rows: list[dict[str, Any]] = [{"prompt": f"q{i}?\n", "chosen": f"yes {i}", "rejected": "no"} for i in range(2500)]
    for row in (3, 1200, 2499):
        rows[row]["chosen"] = " "
    rows[7]["rejected"] = None
    rows[1300] |= {"chosen": "same", "rejected": "same"}
    report = check_preferences(Dataset.from_list(rows))
    errors = [finding for finding in report.findings if finding.severity is Severity.ERROR]
    assert [(error.problem, error.count, [example.place.row for example in error.examples]) for error in errors] == [
        ("column 'chosen': the completion is empty or only whitespace", 3, [3, 1200, 2499]),
        ("column 'rejected': the value is None", 1, [7]),
        ("chosen and rejected are equal, so there is nothing to prefer", 1, [1300]),
    ]
    assert all((error.total, error.unit) == (2500, "rows") for error in errors)
    (figures,) = report.datasets
    assert (figures.rows, figures.unusable_rows, figures.pairs) == (2500, 5, 2495)
    assert not report.passes()


def test_rows_with_the_same_problem_are_one_finding_whatever_they_quote() -> None:
    roles = ["human", "bot", "the user's", "user", "user"]
    answers = [[{"role": "assistant", "content": text}] for text in ("yes", "no")]
    rows = [
        {"prompt": [{"role": role, "content": f"q{i}"}], "chosen": answers[0], "rejected": answers[1]}
        for i, role in enumerate(roles)
    ]
    (error,) = check_preferences(Dataset.from_list(rows), examples=2).findings[:1]
    assert error.problem == "column 'prompt': message … has the unknown role …"
    assert [example.excerpt for example in error.examples] == [
        "message 0 has the unknown role 'human'",
        "message 0 has the unknown role 'bot'",
    ]
    assert error.count == 3
    (error,) = check_preferences(Dataset.from_list(rows[2:]), examples=0).findings[:1]
    assert (error.problem, error.count) == ("column 'prompt': message 0 has the unknown role \"the user's\"", 1)


SWITCHED = (  # without the switch, the prompt is rewritten once an answer follows
    "{% for m in messages %}{% if loop.first and messages|length == 2 and enable_thinking is not defined %}X{% endif %}"
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_the_template_is_told_what_training_tells_it(make_tokenizer: Any) -> None:
    sides = [[{"role": "assistant", "content": text}] for text in ("yes", "no")]
    data = Dataset.from_list(
        [{"prompt": [{"role": "user", "content": f"q{i}"}], "chosen": sides[0], "rejected": sides[1]} for i in range(4)]
    )
    tokenizer = make_tokenizer(template=None)
    tokenizer.chat_template = SWITCHED
    assert check_preferences(data, tokenizer=tokenizer).datasets[0].unusable_rows == 4
    report = check_preferences(data, tokenizer=tokenizer, chat_template_kwargs={"enable_thinking": False})
    assert report.datasets[0].unusable_rows == 0
    with pytest.raises(ValueError, match=r"^chat_template_kwargs has \['enable_thinkng'\], which the tokenizer's"):
        check_preferences(data, tokenizer=tokenizer, chat_template_kwargs={"enable_thinkng": False})
    with pytest.raises(ValueError, match=r"^chat_template_kwargs needs a tokenizer"):
        check_preferences(data, chat_template_kwargs={"enable_thinking": False})


def test_a_dataset_without_a_usable_row() -> None:
    report = check_preferences(text_data([("a", "", "b"), ("a", "b", "")]))
    (figures,) = report.datasets
    assert (figures.pairs, figures.lengths, figures.length_bias) == (0, {}, None)
    assert report.count(Severity.ERROR) == 2
    json.dumps(report.to_dict())


def test_data_that_cannot_be_read_at_all() -> None:
    with pytest.raises(DatasetError, match="required column 'rejected' is missing"):
        check_preferences(Dataset.from_list([{"prompt": "a", "chosen": "b"}]))


def test_lengths_in_characters_and_tokens(smollm_tokenizer: PreTrainedTokenizerBase) -> None:
    train, _ = load_embedded_preferences()
    report = check_preferences(train, tokenizer=smollm_tokenizer)
    tokenizer = isolated_copy(smollm_tokenizer)
    form = report.datasets[0].form
    tokenized = tokenize_rows(
        train.select_columns(["prompt", "chosen", "rejected"])[:], range(394), tokenizer, form, name="x"
    )
    assert report.datasets[0].length_unit == "tokens"
    for part, lengths in (
        ("prompt", [len(row.prompt_ids) for row in tokenized]),
        ("chosen", [len(row.completion_ids[0]) for row in tokenized]),
        ("rejected", [len(row.completion_ids[1]) for row in tokenized]),
    ):
        figures = report.datasets[0].lengths[part]
        assert figures.mean == pytest.approx(sum(lengths) / len(lengths))
        assert figures.quantiles[50] == sorted(lengths)[(len(lengths) - 1) // 2]
        assert (figures.quantiles[0], figures.quantiles[100]) == (min(lengths), max(lengths))
    figures = check_preferences(train).datasets[0]
    assert figures.length_unit == "characters"
    assert figures.lengths["chosen"].mean == pytest.approx(
        sum(len(row["content"]) for (row,) in train["chosen"]) / len(train)
    )


def test_a_tokenizer_finds_what_only_tokens_show(make_tokenizer: Any) -> None:
    rows = [("q?\n", f"yes {i}", f"no {i}") for i in range(40)]
    rows[17] = ("q?\n", "yes", "yes</s>")
    assert check_preferences(text_data(rows)).count(Severity.ERROR) == 0
    report = check_preferences(text_data(rows), tokenizer=make_tokenizer(bos=True))
    (error,) = [finding for finding in report.findings if finding.severity is Severity.ERROR]
    assert error.problem == "chosen and rejected differ as text but are the same tokens"
    assert [example.place.row for example in error.examples] == [17]
    assert report.datasets[0].pairs == 39


def test_the_embedded_preferences() -> None:
    train, test = load_embedded_preferences()
    report = check_preferences(train, test=test)
    assert [(finding.check, finding.dataset) for finding in report.findings] == [
        ("length_bias", "train"),
        ("length_bias", "test"),
    ]
    # Short answers are what they teach.
    bias = report.datasets[0].length_bias
    assert bias is not None
    assert (bias.chosen_longer, bias.rejected_longer, bias.equal) == (36, 357, 1)
    assert report.passes()
    assert not report.passes(strict=True)


@given(first=st.text(), second=st.text())
def test_digests_tell_parts_apart(first: str, second: str) -> None:
    one, other = first.encode(errors="surrogatepass"), second.encode(errors="surrogatepass")
    assert digest(one, other) == digest(one, other)
    if other:
        assert digest(one, other) != digest(one + other, b"")
    assert (exact(first) == exact(second)) == (first == second)


def test_keys_that_are_none_and_their_order_do_not_count() -> None:
    first = [{"role": "user", "content": "A  b", "name": None}]
    assert exact(first) == exact([{"content": "A  b", "role": "user"}])
    assert near(first) == near([{"content": "a b ", "role": "user"}])
    assert exact(first) != exact([{"content": "A b", "role": "user"}])
    assert exact([1, 2]) != exact([12]) != near([2, 1])
