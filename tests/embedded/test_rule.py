"""The rule, on answers written by hand."""

import dataclasses

import pytest

from agiledpo.embedded.rule import MAX_WORDS, MIN_WORDS, judge, mentions, stems

GOOD = "Ice floats because it is less dense than water."


def test_a_short_complete_direct_answer_satisfies_the_rule() -> None:
    verdict = judge(["ice"], GOOD, finished=True)
    assert verdict.satisfied
    assert verdict.names_topic
    assert verdict.broken_parts == ()


@pytest.mark.parametrize(
    ("answer", "part"),
    [
        ("Ice floats.", "concise"),
        ("", "concise"),
        (" ".join(["Ice"] * MAX_WORDS) + " floats.", "concise"),
        ("Ice floats because it is less dense than", "closed"),
        ("Ice floats because it is less dense, for these reasons:", "closed"),
        ("- Ice is less dense than water.\n- Therefore it floats.", "plain"),
        ("1. Ice is less dense than the water under it.", "plain"),
        ("There are two reasons: 1. ice is light 2. water is heavy.", "plain"),
        ("## Ice floats because it is less dense.", "plain"),
        ("Ice floats because it is **less dense** than water.", "plain"),
        ("Ice is less dense than water.\n\nTherefore it floats on it.", "plain"),
        ("| Ice | Water | less dense | more dense | and so on.", "plain"),
        ("Sure! Ice floats because it is less dense.", "direct"),
        ("Certainly, ice floats because it is less dense.", "direct"),
        ("Here are the reasons why ice floats.", "direct"),
        ("Here's why ice floats on water.", "direct"),
        ("As an AI, I think ice is less dense.", "direct"),
        ("That's a great question about ice and water.", "direct"),
        ("Great question! Ice is less dense than water.", "direct"),
        ("I'd be happy to explain why ice floats.", "direct"),
        ("The answer to this is that ice is light.", "direct"),
        ("To answer your question, ice is less dense.", "direct"),
        ("Let's see why ice floats on water.", "direct"),
        ('"Sure, ice is less dense than water is."', "direct"),
    ],
)
def test_each_part_is_broken_alone(answer: str, part: str) -> None:
    verdict = judge(["ice"], answer, finished=True)
    assert not verdict.satisfied
    assert part in verdict.broken_parts
    # A long or short text cannot avoid the length part; every other example breaks exactly one.
    assert part == "concise" or verdict.broken_parts == (part,)


def test_an_answer_cut_off_at_the_limit_breaks_the_rule() -> None:
    assert judge(["ice"], GOOD, finished=False).broken_parts == ("finished",)


@pytest.mark.parametrize(
    "answer",
    [
        "Great Britain is an island off the coast of Europe.",
        "Surely the best reason is that ice is light.",
        "The war ended in 1945. It had begun in 1939.",
        'The word "nostalgia" means a longing for "the old days."',
        "Well-made bread needs time, flour - and patience.",
        "Would you rather keep your shoes dry or wet?",
    ],
)
def test_ordinary_sentences_are_not_mistaken_for_a_broken_part(answer: str) -> None:
    assert judge([], answer, finished=True).satisfied


@pytest.mark.parametrize(
    ("words", "satisfied"), [(MIN_WORDS - 1, False), (MIN_WORDS, True), (MAX_WORDS, True), (MAX_WORDS + 1, False)]
)
def test_both_word_limits_are_inclusive(words: int, satisfied: bool) -> None:
    assert judge([], "word " * (words - 1) + "end.", finished=True).satisfied is satisfied


def test_naming_the_topic_is_no_part_of_the_rule() -> None:
    verdict = judge(["volcano"], GOOD, finished=True)
    assert verdict.satisfied
    assert not verdict.names_topic


@pytest.mark.parametrize(
    ("topic", "text"),
    [
        ("bake", "Baking takes an hour."),
        ("berry", "Berries are sweet."),
        ("volcano", "VOLCANOES erupt."),
        ("freeze", "It freezes at night."),
        ("run", "Running is fun."),
        ("plant", "The plant's roots"),
    ],
)
def test_inflections_name_the_topic(topic: str, text: str) -> None:
    assert mentions([topic], text)


def test_a_part_of_a_word_does_not_name_the_topic() -> None:
    assert not mentions(["ice"], "The price of rice is nice.")
    assert stems("") == set()


def test_a_verdict_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        judge([], GOOD, finished=True).finished = False  # type: ignore[misc]
