"""Transcripts become messages, with nothing lost."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agiledpo.data.transcripts import parse_transcript

SAID = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("\n :"), max_size=30).filter(
    lambda text: not re.search(r"(?:\n\n|^\n)(Human|Assistant):", text)
)
MESSAGES = st.lists(
    st.builds(lambda role, content: {"role": role, "content": content}, st.sampled_from(["user", "assistant"]), SAID),
    min_size=1,
    max_size=6,
)


def test_transcript() -> None:
    text = "\n\nHuman: Hi.\n\nIt's Human: me\n\nAssistant: Hello!\n\nHuman:  Why?\n\nAssistant:"
    assert parse_transcript(text) == parse_transcript(text.lstrip("\n")) == [
        {"role": "user", "content": "Hi.\n\nIt's Human: me"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": " Why?"},
        {"role": "assistant", "content": ""},
    ]  # fmt: skip


@given(MESSAGES)
def test_round_trip(messages: list[dict[str, str]]) -> None:
    speakers = {"user": "Human", "assistant": "Assistant"}
    text = "".join(f"\n\n{speakers[message['role']]}: {message['content']}" for message in messages)
    assert parse_transcript(text) == messages


@pytest.mark.parametrize("text", ["", "Hello", "\n\nBob: Hi\n\nHuman: Hi", "Hi\n\nHuman: Hi"])
def test_no_transcript(text: str) -> None:
    with pytest.raises(ValueError, match=r"^the text does not begin with 'Human:' or 'Assistant:'$"):
        parse_transcript(text)
