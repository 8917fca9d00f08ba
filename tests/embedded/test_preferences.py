"""The packaged preference data: what the data card promises."""

import re
from collections import Counter
from importlib.resources import files
from statistics import mean
from typing import Any

from datasets import Dataset

from agiledpo.embedded.preferences import held_out_prompts, split_by_topic
from agiledpo.embedded.rule import MAX_WORDS, Verdict, count_words, judge, stems

Splits = tuple[Dataset, Dataset]
PACKAGE = files("agiledpo.embedded")


def text(message_list: list[dict[str, str]]) -> str:
    return message_list[0]["content"]


def verdict(row: dict[str, Any], side: str) -> Verdict:
    # A trainer appends the end token, so every stored answer counts as finished.
    return judge(row["topic"], text(row[side]), finished=True)


def topic_stems(split: Dataset) -> set[str]:
    return stems(" ".join(word for topic in split["topic"] for word in topic))


def test_the_files_are_small() -> None:
    names = ("preferences.jsonl", "preferences_test.jsonl")
    assert sum(len(PACKAGE.joinpath(name).read_bytes()) for name in names) <= 2_000_000


def test_there_are_enough_pairs(preferences: Splits) -> None:
    train, test = preferences
    assert 300 <= len(train) <= 500
    assert len(test) >= 80
    assert len(held_out_prompts()) >= 60


def test_the_rows_are_chats_with_topic_and_id(preferences: Splits) -> None:
    for split in preferences:
        assert split.column_names == ["prompt", "chosen", "rejected", "topic", "id"]
        for row in split:
            assert [message["role"] for message in row["prompt"]] == ["user"]
            for side in ("chosen", "rejected"):
                assert [message["role"] for message in row[side]] == ["assistant"]
                assert text(row[side]) == text(row[side]).strip()
                assert "<|" not in text(row[side])
            assert row["topic"]


def test_chosen_answers_satisfy_the_rule_and_name_the_topic(preferences: Splits) -> None:
    for split in preferences:
        for row in split:
            assert verdict(row, "chosen").satisfied, row["id"]
            assert verdict(row, "chosen").names_topic, row["id"]


def test_rejected_answers_break_the_rule(preferences: Splits) -> None:
    for split in preferences:
        for row in split:
            assert not verdict(row, "rejected").satisfied, row["id"]


def test_being_short_is_not_the_whole_rule(preferences: Splits) -> None:
    for split in preferences:
        short = [row for row in split if count_words(text(row["rejected"])) <= MAX_WORDS]
        assert 0.10 <= len(short) / len(split) <= 0.25
        broken = {part for row in short for part in verdict(row, "rejected").broken_parts}
        assert {"closed", "plain", "direct"} <= broken


def test_nothing_occurs_twice(preferences: Splits) -> None:
    rows = [row for split in preferences for row in split]
    assert len({row["id"] for row in rows}) == len(rows)
    for side in ("chosen", "rejected"):
        assert len({text(row[side]) for row in rows}) == len(rows)
    assert not {text(row["chosen"]) for row in rows} & {text(row["rejected"]) for row in rows}


def test_chosen_answers_do_not_all_begin_alike(preferences: Splits) -> None:
    for split in preferences:
        openings = Counter(" ".join(text(row["chosen"]).lower().split()[:2]) for row in split)
        assert openings.most_common(1)[0][1] <= 0.06 * len(split)


def test_no_prompt_and_no_topic_is_in_both_splits(preferences: Splits) -> None:
    train, test = preferences
    assert not {text(prompt) for prompt in train["prompt"]} & {text(prompt) for prompt in test["prompt"]}
    assert not topic_stems(train) & topic_stems(test)
    # Nor does a prompt mention a topic of the other split in passing.
    for split, other in ((train, test), (test, train)):
        assert not stems(" ".join(map(text, split["prompt"]))) & topic_stems(other)


def test_held_out_prompts_are_those_of_the_test_split(preferences: Splits) -> None:
    _, test = preferences
    prompts = held_out_prompts()
    assert len({text(prompt["prompt"]) for prompt in prompts}) == len(prompts)
    assert {text(prompt["prompt"]) for prompt in prompts} == {text(prompt) for prompt in test["prompt"]}


def test_the_data_card_has_the_numbers_of_the_files(preferences: Splits) -> None:
    card = PACKAGE.joinpath("DATA_CARD.md").read_text(encoding="utf-8")
    table = {
        cells[0]: cells[1:]
        for cells in (
            [cell.strip() for cell in line.strip("|").split("|")] for line in re.findall(r"^\|.*$", card, re.M)
        )
    }
    for column, split in enumerate(preferences):
        chosen = [count_words(text(row["chosen"])) for row in split]
        rejected = [count_words(text(row["rejected"])) for row in split]
        shorter = mean(good < bad for good, bad in zip(chosen, rejected, strict=True))
        short = mean(words <= MAX_WORDS for words in rejected)
        broken = Counter(part for row in split for part in verdict(row, "rejected").broken_parts)
        expected = {
            "pairs": str(len(split)),
            "prompts": str(len({text(prompt) for prompt in split["prompt"]})),
            "words of a chosen answer, mean": f"{mean(chosen):.1f}",
            "words of a rejected answer, mean": f"{mean(rejected):.1f}",
            "chosen answer is the shorter one": f"{shorter:.1%}",
            f"rejected answer has at most {MAX_WORDS} words": f"{short:.1%}",
            **{
                f"rejected answer breaks `{part}`": str(broken[part])
                for part in ("concise", "closed", "plain", "direct")
            },
        }
        assert {quantity: table[quantity][column] for quantity in expected} == expected


def test_a_split_by_topic_shares_no_topic_and_loses_no_row(preferences: Splits) -> None:
    _, held_out = preferences
    first, second = split_by_topic(held_out, 0.4, seed=7)
    topics = [{tuple(topic) for topic in part["topic"]} for part in (first, second)]
    assert not topics[0] & topics[1]
    assert len(topics[0]) == round(0.4 * len(topics[0] | topics[1]))
    assert sorted([*first["id"], *second["id"]]) == sorted(held_out["id"])
    assert first["id"] == split_by_topic(held_out, 0.4, seed=7)[0]["id"]
    assert first["id"] != split_by_topic(held_out, 0.4, seed=8)[0]["id"]
    asked = [row["prompt"][0]["content"] for row in held_out_prompts(second["topic"])]
    assert set(asked) == {prompt[0]["content"] for prompt in second["prompt"]}
    assert len(asked) == len(set(asked))
