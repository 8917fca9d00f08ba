"""The preference that the embedded data teaches, as a rule that a program can check.

SmolLM2-135M-Instruct rambles: long answers, lists, boilerplate. The preference is *a short, complete, direct answer*.
Because every part of it can be checked, the share of answers that satisfy it says how far training got, without a judge
model. Whether an answer is about its question at all is deliberately not a part: it is the indicator that tells a model
which learned to be brief from one which collapsed onto some short sentence.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

MIN_WORDS = 6
MAX_WORDS = 40

_MARKUP = re.compile(
    r"^\s*(?:[-*+•–]|\d{1,2}[.)]|#{1,6})\s"  # list item or heading
    r"|\*\*|__|`|\|"  # bold, code, table
    r"|(?:^|\s)\(?1[.)]\s.*\s\(?2[.)]\s",  # a list inside a sentence
    re.MULTILINE | re.DOTALL,
)
_BOILERPLATE = re.compile(
    r"(?:sure(?: thing)?|certainly|of course|absolutely|definitely|great|okay|ok|hello|hi|thank you|thanks)\s*[,.!:]"
    r"|here(?:'s|’s| is| are)\b"
    r"|(?:as|i am|i'm) an? (?:ai|artificial|language|large|helpful|assistant)\b"
    r"|(?:that's |that is |what )?(?:an? )?(?:very )?"
    r"(?:great|good|fascinating|interesting|excellent|wonderful|classic) question\b"
    r"|i(?:'d| would) (?:be (?:happy|glad|delighted)|love)\b"
    r"|i(?:'m| am) (?:happy|glad|sorry|here to)\b"
    r"|i(?:'ll| will| can) (?:help|explain|provide|give|try|answer)\b"
    r"|let(?:'s| me| us)\b"
    r"|(?:the )?answer\b"
    r"|to answer\b",
    re.IGNORECASE,
)
_WORD = re.compile(r"[a-z]+")
_SUFFIXES = ("ations", "ation", "ings", "ing", "ies", "ied", "es", "ed", "ly", "s", "e", "y")


@dataclass(frozen=True)
class Verdict:
    """What was found out about one answer.

    Attributes:
        finished: The model ended the answer itself.
        concise: The answer has at least `MIN_WORDS` and at most `MAX_WORDS` words.
        closed: It ends with the punctuation of a sentence.
        plain: It is one paragraph without list, heading or other markup.
        direct: It does not open with boilerplate.
        names_topic: It mentions at least one topic word; not a part of the rule, but the sign of a collapse.
    """

    finished: bool
    concise: bool
    closed: bool
    plain: bool
    direct: bool
    names_topic: bool

    @property
    def satisfied(self) -> bool:
        """Whether the answer satisfies the rule, that is every part except `names_topic`."""
        return self.finished and self.concise and self.closed and self.plain and self.direct

    @property
    def broken_parts(self) -> tuple[str, ...]:
        """The names of the parts of the rule that the answer breaks, in a fixed order."""
        parts = ("finished", "concise", "closed", "plain", "direct")
        return tuple(part for part, holds in zip(parts, self._parts(), strict=True) if not holds)

    def _parts(self) -> tuple[bool, ...]:
        return self.finished, self.concise, self.closed, self.plain, self.direct


def judge(topic: Iterable[str], answer: str, finished: bool) -> Verdict:
    """Check one answer.

    Args:
        topic: The topic words of the prompt.
        answer: The text of the answer, without special tokens.
        finished: Whether the model produced its end token (and was not cut off at a length limit).

    Returns:
        The verdict, part by part.
    """
    text = answer.strip()
    return Verdict(
        finished=finished,
        concise=MIN_WORDS <= count_words(text) <= MAX_WORDS,
        closed=text.rstrip("\"'”’)").endswith((".", "!", "?")),
        plain="\n" not in text and _MARKUP.search(text) is None,
        direct=_BOILERPLATE.match(text.lstrip("\"'“‘*")) is None,
        names_topic=mentions(topic, text),
    )


def count_words(text: str) -> int:
    """The number of words, that is runs without white space."""
    return len(text.split())


def mentions(topic: Iterable[str], text: str) -> bool:
    """Whether `text` contains one of the topic words, in any of the regular inflections."""
    return not stems(text).isdisjoint(stem for word in topic for stem in stems(word))


def stems(text: str) -> set[str]:
    """The words of `text` without their regular endings: bake, bakes and baking have the same stem."""
    return {_stem(word) for word in _WORD.findall(text.lower())}


def _stem(word: str) -> str:
    # Crude on purpose: it only has to map the inflections of one word onto each other.
    for suffix in _SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= 3:
            word = word[: -len(suffix)]
            break
    return word[:-1] if len(word) > 3 and word[-1] == word[-2] else word
