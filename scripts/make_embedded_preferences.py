"""Make the embedded preference data: sample answers from the embedded model, check them, pair them.

Both sides of a pair are written by SmolLM2-135M-Instruct. The rejected answer is usually what it says to the plain
prompt. The chosen answer was sampled with a hidden request to be brief, which the stored prompt does not contain; it
satisfies the rule of `agiledpo.embedded.rule` and names the topic. In a part of the pairs the rejected answer is short
too, and breaks another part of the rule.

    python scripts/make_embedded_preferences.py                          # writes agiledpo/embedded/*.jsonl
    python scripts/make_embedded_preferences.py --limit 32 --output /tmp/trial

Everything is seeded and in file order, and batches are made of `PROMPTS_PER_BATCH` consecutive prompts of a split with
a random stream each: the same machine writes the same bytes again, and with a `--limit` that is a multiple of
`PROMPTS_PER_BATCH` the first rows of the full files. Another processor (other matrix kernels) may sample other answers.
The packaged files were sampled before answers went through `agiledpo.generation`, which draws in another order.
"""

import argparse
import json
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from agiledpo.algorithms.core.randomness import TorchRandomStream
from agiledpo.embedded.model import load_embedded_model
from agiledpo.embedded.rule import MAX_WORDS, count_words, judge, stems
from agiledpo.embedded.sampling import Answer, Message, sample_answers
from agiledpo.scoring import CausalLM

HERE = Path(__file__).parent
PROMPTS_FILE = HERE / "embedded_prompts.jsonl"
VETOES_FILE = HERE / "embedded_vetoes.jsonl"
PACKAGE = HERE.parent / "agiledpo" / "embedded"
FILES = {"train": "preferences.jsonl", "test": "preferences_test.jsonl"}

PROMPTS_PER_BATCH = 32
# The first batch's seed in each split, then consecutive ones, and 1000 more for each source; the training prompts make
# up ten batches.
SEEDS = {"train": 20250, "test": 20260}
# Rejected answers are capped: the cost of a training step is proportional to its tokens.
MAX_REJECTED_WORDS = 110
# Every fourth prompt gets a second pair with a short rejected answer, another fourth one with a second long one.
EXTRA_PAIR_EVERY = 4
SHORT_KINDS = ("list", "boilerplate", "unfinished")
# Without a space at the end: the model's next token brings its own.
OPENINGS = {
    "list": ("1.", "-", "*"),
    "boilerplate": ("Sure!", "Certainly!", "Great question!", "Of course!", "Here is the answer:", "Sure, I can help."),
}

# An answer with one of these talks about the conversation, not about the topic.
_META = re.compile(
    r"\b(?:question|answers?|i|i'm|my|me|ai|smollm|assistant|prompt|this (?:sentence|video|article))\b", re.IGNORECASE
)


@dataclass(frozen=True)
class Prompt:
    """One line of the prompts file."""

    id: str
    split: str
    prompt: str
    topic: list[str]


@dataclass(frozen=True)
class Source:
    """A way to sample answers: the hidden request, how often, how long."""

    name: str
    requests: tuple[str, ...]
    samples: int  # per request
    max_new_tokens: int
    temperature: float
    every: int = 1  # only every so many prompts


SOURCES = (
    Source("natural", ("",), samples=3, max_new_tokens=128, temperature=0.8),
    Source(
        "brief",
        (" Answer in one short sentence.", " Answer briefly, in at most 30 words."),
        samples=4,
        max_new_tokens=56,
        temperature=0.7,
    ),
    Source(
        "list",
        (" Answer with a short list of three items.",),
        samples=3,
        max_new_tokens=64,
        temperature=0.8,
        every=EXTRA_PAIR_EVERY,
    ),
    Source(
        "boilerplate",
        (" Answer in one short sentence.",),
        samples=3,
        max_new_tokens=48,
        temperature=0.8,
        every=EXTRA_PAIR_EVERY,
    ),
)


@dataclass
class Candidates:
    """What was sampled for one prompt, by source, and what the plain prompt thinks of the acceptable brief answers."""

    answers: dict[str, list[Answer]] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)


def main() -> None:
    """Parse the arguments, sample, select and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output", type=Path, help="directory of the two files (default: the package)")
    parser.add_argument("--limit", type=int, help="only the first so many prompts of each split")
    parser.add_argument("--candidates", type=Path, help="JSON of the samples: read if it exists, else written")
    arguments = parser.parse_args()
    if arguments.limit and not arguments.output:
        parser.error("--limit would replace the packaged files by a part of them: add --output DIR.")
    output = arguments.output or PACKAGE
    started = time.monotonic()
    prompts = read_prompts(arguments.limit)
    if arguments.candidates and arguments.candidates.exists():
        candidates = load_candidates(arguments.candidates)
    else:
        candidates = sample(prompts)
        if arguments.candidates:
            save_candidates(arguments.candidates, candidates)
    output.mkdir(parents=True, exist_ok=True)
    tables = {}
    for split, name in FILES.items():
        rows = select([prompt for prompt in prompts if prompt.split == split], candidates, read_vetoes())
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (output / name).write_text(text, encoding="utf-8")
        print(f"{output / name}: {len(rows)} pairs, {len(text) / 1e3:.0f} kB")
        tables[split] = summary(rows)
    # The table of the data card, to be pasted there; a test compares the two.
    print("\n| | train | test |\n| --- | --- | --- |")
    for quantity in tables["train"]:
        print(f"| {quantity} | {tables['train'][quantity]} | {tables['test'][quantity]} |")
    print(f"{(time.monotonic() - started) / 60:.1f} minutes")


def read_prompts(limit: int | None = None) -> list[Prompt]:
    """The prompts in file order, at most `limit` of each split."""
    prompts = [Prompt(**json.loads(line)) for line in PROMPTS_FILE.read_text(encoding="utf-8").splitlines()]
    return [prompt for split in FILES for prompt in [p for p in prompts if p.split == split][:limit]]


def read_vetoes() -> set[tuple[str, str]]:
    """(prompt id, answer) of acceptable answers that a reader found wrong or silly; the next best one is taken."""
    lines = VETOES_FILE.read_text(encoding="utf-8").splitlines()
    return {(veto["id"], veto["answer"]) for veto in map(json.loads, lines)}


# --- sampling ---------------------------------------------------------------------------------------------------------


def sample(prompts: Sequence[Prompt]) -> dict[str, Candidates]:
    """Sample from every source, then score the acceptable brief answers under the plain prompt."""
    # bfloat16 halves the memory traffic, which is what decoding on a CPU waits for.
    model, tokenizer = load_embedded_model(torch.bfloat16)
    lm = CausalLM.of(model)
    candidates = {prompt.id: Candidates() for prompt in prompts}
    batches = [
        (source, seed + 1000 * number, batch)
        for number, source in enumerate(SOURCES)
        for seed, batch in _batches(prompts, source.every)
    ]
    total = sum(len(batch) * len(source.requests) * source.samples for source, _, batch in batches)
    with tqdm(total=total + len(prompts), desc="answers", unit="answer") as bar:
        for source, seed, batch in batches:
            bar.set_postfix_str(source.name)
            jobs = [(p, request) for p in batch for request in source.requests for _ in range(source.samples)]
            openings = OPENINGS.get(source.name, ("",))
            answers = sample_answers(
                lm,
                tokenizer,
                [_chat(p.prompt + request) for p, request in jobs],
                max_new_tokens=source.max_new_tokens,
                temperature=source.temperature,
                stream=TorchRandomStream(seed, model.device),
                openings=[openings[position % len(openings)] for position in range(len(jobs))],
            )
            for (prompt, _), answer in zip(jobs, answers, strict=True):
                candidates[prompt.id].answers.setdefault(source.name, []).append(answer)
            bar.update(len(jobs))
        bar.set_postfix_str("scores")
        for prompt in prompts:
            acceptable = _acceptable(prompt, candidates[prompt.id])
            scores = plain_scores(model, tokenizer, prompt, acceptable)
            candidates[prompt.id].scores = dict(zip(acceptable, scores, strict=True))
            bar.update()
    return candidates


def _batches(prompts: Sequence[Prompt], every: int) -> Iterator[tuple[int, list[Prompt]]]:
    # Formed within a split and before thinning out, so that a limited run forms the same first batches.
    for split, seed in SEEDS.items():
        part = [prompt for prompt in prompts if prompt.split == split]
        for index, start in enumerate(range(0, len(part), PROMPTS_PER_BATCH)):
            yield seed + index, part[start : start + PROMPTS_PER_BATCH : every]


def _chat(content: str) -> list[Message]:
    return [{"role": "user", "content": content}]


@torch.inference_mode()
def plain_scores(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: Prompt, answers: Sequence[str]
) -> list[float]:
    """The mean log-probability per token that the plain prompt gives each answer, its end included."""
    chat = tokenizer.apply_chat_template(_chat(prompt.prompt), tokenize=False, add_generation_prompt=True)
    start = tokenizer.encode(str(chat), add_special_tokens=False)
    scores = []
    for answer in answers:
        end = [*tokenizer.encode(answer, add_special_tokens=False), tokenizer.eos_token_id]
        logits = model(input_ids=torch.tensor([start + end]), logits_to_keep=len(end) + 1).logits[0, :-1]
        log_probabilities = logits.float().log_softmax(-1).gather(1, torch.tensor(end)[:, None])
        scores.append(round(float(log_probabilities.mean()), 4))
    return scores


def save_candidates(path: Path, candidates: dict[str, Candidates]) -> None:
    """Write the samples as JSON, to try another selection without sampling again."""
    content = {
        id_: {"answers": {k: [[a.text, a.finished] for a in v] for k, v in c.answers.items()}, "scores": c.scores}
        for id_, c in candidates.items()
    }
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def load_candidates(path: Path) -> dict[str, Candidates]:
    """Read what `save_candidates` wrote."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return {
        id_: Candidates({k: [Answer(*a) for a in v] for k, v in c["answers"].items()}, c["scores"])
        for id_, c in content.items()
    }


# --- selection --------------------------------------------------------------------------------------------------------


def select(
    prompts: Sequence[Prompt], candidates: dict[str, Candidates], vetoes: set[tuple[str, str]]
) -> list[dict[str, Any]]:
    """Pair the answers of each prompt: one pair with a long rejected answer, for some prompts a second pair."""
    rows: list[dict[str, Any]] = []
    openings: Counter[str] = Counter()
    for index, prompt in enumerate(prompts):
        found = candidates[prompt.id]
        chosen = _rank({a: s for a, s in found.scores.items() if (prompt.id, a) not in vetoes}, openings)
        long = _long_rejected(prompt, found.answers["natural"])
        rejected = long[:1]
        if index % EXTRA_PAIR_EVERY == 0:
            rejected += _short_rejected(prompt, found, chosen, SHORT_KINDS[index // EXTRA_PAIR_EVERY % 3])[:1]
        elif index % EXTRA_PAIR_EVERY == 1:
            rejected = long[:2]
        for letter, good, bad in zip("ab", chosen, rejected, strict=False):
            openings[_opening(good)] += 1
            rows.append(
                {
                    "prompt": _chat(prompt.prompt),
                    "chosen": [{"role": "assistant", "content": good}],
                    "rejected": [{"role": "assistant", "content": bad}],
                    "topic": prompt.topic,
                    "id": f"{prompt.id}-{letter}",
                }
            )
    return rows


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    """The numbers of the data card."""
    chosen = [row["chosen"][0]["content"] for row in rows]
    rejected = [row["rejected"][0]["content"] for row in rows]
    verdicts = [judge(row["topic"], text, True) for row, text in zip(rows, rejected, strict=True)]
    broken = Counter(part for verdict in verdicts for part in verdict.broken_parts)
    shorter = [count_words(good) < count_words(bad) for good, bad in zip(chosen, rejected, strict=True)]
    return {
        "pairs": str(len(rows)),
        "prompts": str(len({row["prompt"][0]["content"] for row in rows})),
        "words of a chosen answer, mean": f"{mean(map(count_words, chosen)):.1f}",
        "words of a rejected answer, mean": f"{mean(map(count_words, rejected)):.1f}",
        "chosen answer is the shorter one": f"{mean(shorter):.1%}",
        f"rejected answer has at most {MAX_WORDS} words": f"{mean(count_words(t) <= MAX_WORDS for t in rejected):.1%}",
        **{f"rejected answer breaks `{part}`": str(broken[part]) for part in ("concise", "closed", "plain", "direct")},
        "different first two words of chosen answers": str(len(set(map(_opening, chosen)))),
    }


def _acceptable(prompt: Prompt, found: Candidates) -> list[str]:
    """The different brief answers that satisfy the rule, name the topic and read like an answer."""
    result: list[str] = []
    for answer in found.answers["brief"]:
        verdict = judge(prompt.topic, answer.text, answer.finished)
        if verdict.satisfied and verdict.names_topic and _is_sound(prompt, answer.text) and answer.text not in result:
            result.append(answer.text)
    return result


def _is_sound(prompt: Prompt, answer: str) -> bool:
    words = [word.strip(".,;\"'()").lower() for word in answer.split()]
    trigrams = list(zip(words, words[1:], words[2:], strict=False))
    repeated = Counter(word for word in words if len(word) > 3)
    return (
        answer.isascii()
        and answer[0].isupper()
        and answer.endswith(".")
        and ":" not in answer
        and "?" not in answer
        and "..." not in answer
        and _META.search(answer) is None
        and len(set(trigrams)) == len(trigrams)
        and max(repeated.values(), default=0) <= 2
        # More than the question said back.
        and len(stems(answer) - stems(prompt.prompt)) >= 5
    )


def _rank(scores: dict[str, float], openings: Counter[str]) -> list[str]:
    """The best answers first; an opening that many chosen answers have already counts against an answer."""
    return sorted(scores, key=lambda answer: (0.05 * openings[_opening(answer)] - scores[answer], answer))


def _opening(answer: str) -> str:
    return " ".join(answer.lower().split()[:2])


def _long_rejected(prompt: Prompt, answers: Sequence[Answer]) -> list[str]:
    """Answers to the plain prompt that are too long: those that ended by themselves first, then shortened ones."""
    result: list[str] = []
    for answer in sorted(answers, key=lambda a: not (a.finished and count_words(a.text) <= MAX_REJECTED_WORDS)):
        text = _shortened(answer.text)
        too_long = count_words(text) > MAX_WORDS + 5
        # What is stored ends with an end token, so it counts as finished.
        if "\ufffd" not in text and too_long and not judge(prompt.topic, text, True).satisfied and text not in result:
            result.append(text)
    return result


def _shortened(text: str) -> str:
    """The longest beginning that ends with a line or a sentence and has at most `MAX_REJECTED_WORDS` words."""
    if count_words(text) <= MAX_REJECTED_WORDS and text.endswith((".", "!", "?")):
        return text
    ends = [match.end() for match in re.finditer(r"(?<=[a-z)][.!?])(?=\s)|(?=\n)", text)]
    return next((text[:end].strip() for end in reversed(ends) if count_words(text[:end]) <= MAX_REJECTED_WORDS), "")


def _short_rejected(prompt: Prompt, found: Candidates, chosen: Sequence[str], kind: str) -> list[str]:
    """Short answers that break another part of the rule than its length."""
    if kind == "unfinished":
        # Stopped in the middle of a sentence; from an answer that is not itself a chosen one.
        texts = [" ".join(text.split()[: -count_words(text) // 3]).rstrip(",;") for text in chosen[2:]]
    else:
        texts = [a.text for a in found.answers[kind] if a.finished]
    part = {"list": "plain", "boilerplate": "direct", "unfinished": "closed"}[kind]
    return [
        text
        for text in texts
        if "\ufffd" not in text
        and part in judge(prompt.topic, text, True).broken_parts
        and 4 <= count_words(text) <= MAX_WORDS
    ]


if __name__ == "__main__":
    main()
