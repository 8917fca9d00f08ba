"""The embedded preference as a reward, to train on answers that the model samples itself."""

from collections.abc import Sequence

from agiledpo.embedded.rule import judge


def short_answer(completion: str, topic: Sequence[str], question: str) -> float:
    """The share of the rule's parts that an answer satisfies, or nothing where it is not about its question.

    Whether the answer is complete shows in its last character: a reward is told the text, not how it ended.

    Args:
        completion: The answer.
        topic: Words that an answer about its question mentions: the data's column ``topic``.
        question: What was asked.

    Returns:
        A number in [0, 1].
    """
    del question
    verdict = judge(topic, completion, finished=True)
    parts = (verdict.concise, verdict.closed, verdict.plain, verdict.direct)
    return sum(parts) / len(parts) if verdict.names_topic else 0.0
