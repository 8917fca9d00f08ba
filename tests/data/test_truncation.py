"""Truncated rows against a second, row-by-row account of what each choice means."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from agiledpo.data import DatasetError, Demonstrations, Example, FilterCounts, Form, Layout, PreparedRows, prepare_rows
from agiledpo.data.filtering import filter_table
from agiledpo.data.truncation import cut_prompt

MakeTokenizer = Callable[..., PreTrainedTokenizerBase]
PARTS = ("prompt", "chosen", "rejected")


@dataclass(frozen=True)
class TokenLists(Layout):
    """Token ids as they are; a row of empty lists has no preference."""

    @property
    def columns(self) -> tuple[str, ...]:
        return PARTS

    @property
    def sources(self) -> tuple[str, ...]:
        return PARTS[1:]

    def form(self, dataset: Dataset, *, name: str) -> Form:
        return Form.TOKENS

    def read(self, form: Form, row: int, values: Any, *, name: str) -> list[Example]:
        prompt, *completions = (values[part] for part in PARTS)
        return [Example(prompt, tuple(completions))] if prompt else []


class Ids(NamedTuple):
    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


def prepare(rows: list[Ids], tokenizer: PreTrainedTokenizerBase, **options: Any) -> PreparedRows:
    dataset = Dataset.from_list([row._asdict() for row in rows])
    return prepare_rows(dataset, tokenizer, TokenLists(), name="train", **options)


def expected(row: Ids, bos: int, most: int, least: int | None, truncation: str) -> tuple[str, Ids]:
    """What becomes of a row, and its tokens."""
    prompt, chosen, rejected = row
    minimum = least or 0
    if not prompt:
        return "without_preference", row
    longer = max(len(chosen), len(rejected))
    if truncation == "keep_end" and len(prompt) + longer > most:
        head = [bos] if prompt[0] == bos else []
        room = most - longer - len(head)
        if room < 1:
            return "completion_too_long", row
        prompt = head + prompt[-room:]
    elif truncation == "keep_start":
        if most - len(prompt) < max(1, minimum):
            return "prompt_too_long", row
        chosen, rejected = ((prompt + ids)[:most][len(prompt) :] for ids in (chosen, rejected))
    elif truncation == "drop":
        if len(prompt) > most - minimum:
            return "prompt_too_long", row
        if len(prompt) + longer > most:
            return "pair_too_long", row
    if min(len(chosen), len(rejected)) < minimum:
        return "completion_too_short", row
    if chosen == rejected:
        return "equal_after_truncation", row
    cut = Ids(prompt, chosen, rejected)
    return "kept" if cut == row else "prompts_truncated" if prompt != row.prompt else "completions_truncated", cut


TOKEN = st.integers(20, 22)
TOKENS = st.lists(TOKEN, min_size=1, max_size=9)
ROWS = st.one_of(
    st.just(Ids([], [], [])),
    st.builds(
        lambda bos, prompt, chosen, rejected: Ids([0] * bos + prompt, chosen, rejected),
        st.booleans(),
        TOKENS,
        TOKENS,
        TOKENS,
    ).filter(lambda row: row.chosen != row.rejected),
)


@pytest.fixture(scope="module")
def tokenizer(make_tokenizer: MakeTokenizer) -> PreTrainedTokenizerBase:
    tokenizer = make_tokenizer()
    assert tokenizer.bos_token_id == 0
    return tokenizer


@pytest.mark.parametrize("truncation", ["drop", "keep_end", "keep_start"])
@settings(max_examples=150, deadline=None)
@given(rows=st.lists(ROWS, min_size=1, max_size=8), most=st.integers(2, 20), least=st.none() | st.integers(0, 5))
def test_rows_are_those_of_the_second_account(
    truncation: str, rows: list[Ids], most: int, least: int | None, tokenizer: PreTrainedTokenizerBase
) -> None:
    if (least or 0) >= most:
        least = most - 1
    outcomes = [expected(row, 0, most, least, truncation) for row in rows]
    kept = [
        (number, ids)
        for number, (outcome, ids) in enumerate(outcomes)
        if outcome in ("kept", "prompts_truncated", "completions_truncated")
    ]
    options = {"max_context_length": most, "min_completion_length": least, "truncation": truncation}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        if not kept:
            with pytest.raises(DatasetError, match="no row"):
                prepare(rows, tokenizer, **options)
            return
        prepared = prepare(rows, tokenizer, **options)
    causes = [outcome for outcome, _ in outcomes if outcome != "kept"]
    assert prepared.filter_counts == FilterCounts(len(rows), **{cause: causes.count(cause) for cause in set(causes)})
    assert prepared.filter_counts.kept == len(prepared) == len(kept)
    taken = prepared.take(np.arange(len(prepared)))
    assert taken["row"] == [number for number, _ in kept]
    for place, (_, ids) in enumerate(kept):
        assert tuple(taken[f"{part}_ids"][place] for part in PARTS) == tuple(ids)
        assert [taken[f"{part}_length"][place] for part in PARTS] == list(map(len, ids))
        whole = rows[kept[place][0]]
        # What each choice promises.
        assert len(ids.prompt) >= 1
        assert max(len(ids.prompt + ids.chosen), len(ids.prompt + ids.rejected)) <= most
        assert (ids.prompt[0] == 0) == (whole.prompt[0] == 0)
        if truncation == "keep_start":
            assert ids.prompt + ids.chosen == (whole.prompt + whole.chosen)[:most]
            assert ids.prompt + ids.rejected == (whole.prompt + whole.rejected)[:most]
        else:
            assert (ids.chosen, ids.rejected) == (whole.chosen, whole.rejected)
        # Texts stay whole.
        assert taken["chosen"][place] == tokenizer.decode(whole.chosen)
    lengths = prepared.lengths if prepared.kept is None else prepared.lengths[:, prepared.kept]
    assert lengths.T.tolist() == [list(map(len, ids)) for _, ids in kept]
    assert prepared.longest_sides().tolist() == [len(i.prompt) + max(len(i.chosen), len(i.rejected)) for _, i in kept]
    assert prepared.dataset.to_dict() == taken


@pytest.mark.parametrize("processes", [1, 2])
def test_many_rows_of_several_files(
    processes: int, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More rows than a batch of the file holds: what is looked up in it is looked up in the right place."""
    monkeypatch.setenv("AGILEDPO_CACHE", str(tmp_path))
    generator = np.random.default_rng(3)

    def some(most: int) -> list[int]:
        return generator.integers(20, 22, generator.integers(1, most)).tolist()

    rows = []
    while len(rows) < 3300:
        row = Ids([0] * int(generator.integers(2)) + some(8), some(8), some(8))
        if row.chosen != row.rejected:
            rows.append(row)
    for truncation in ("keep_end", "keep_start"):
        with pytest.warns(UserWarning, match="filtered out"):
            prepared = prepare(rows, tokenizer, max_context_length=8, truncation=truncation, num_proc=processes)
        outcomes = [expected(row, 0, 8, None, truncation) for row in rows]
        kept = [ids for outcome, ids in outcomes if outcome in ("kept", "prompts_truncated", "completions_truncated")]
        columns = prepared.dataset.to_dict()
        assert [Ids(*ids) for ids in zip(*(columns[f"{part}_ids"] for part in PARTS), strict=True)] == kept
        assert prepared.filter_counts.kept == len(kept) > 1000
        assert prepared.filter_counts.truncated > 500
        dropped = {"keep_end": "completion_too_long", "keep_start": "equal_after_truncation"}[truncation]
        assert sum(outcome == dropped for outcome, _ in outcomes) > 50


def test_limits_and_choices_share_the_tokens_and_nothing_is_copied_without_need(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGILEDPO_CACHE", str(tmp_path))
    rows = [Ids([0, 20, 21, 22], [20, 21], [22]), Ids([20], [20], [21, 21])]
    options = [
        {"max_context_length": 5},
        {"max_context_length": 5, "truncation": "keep_end"},
        {"max_context_length": 5, "truncation": "keep_start"},
        {"max_context_length": 6, "truncation": "keep_start"},
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        prepared = [prepare(rows, tokenizer, **each) for each in options]
    assert len({each.fingerprint for each in prepared}) == 4
    assert len(list((tmp_path / "tokenized").iterdir())) == 1
    assert [isinstance(each.lengths, np.memmap) for each in prepared] == [True, False, False, True]
    assert prepared[0].fingerprint.endswith("-5-None")


def test_the_end_of_a_prompt() -> None:
    assert cut_prompt([7, 8, 9], 3, 7) == [7, 8, 9]
    assert cut_prompt([7, 8, 9], 2, 7) == [7, 9]
    assert cut_prompt([7, 8, 9], 2, None) == [8, 9]
    assert cut_prompt([7, 8, 9], 1, 8) == [9]


def sentences(tokenizer: PreTrainedTokenizerBase, **options: Any) -> PreparedRows:
    rows = [{"prompt": "hello " * prompt, "completion": "yes " * words} for prompt, words in ((2, 1), (9, 1), (2, 9))]
    return prepare_rows(Dataset.from_list(rows), tokenizer, Demonstrations(), name="test", **options)


def test_a_completion_that_leaves_no_room_is_called_so(word_tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.warns(UserWarning, match="1 of 3: completion that leaves no room for a prompt in max_context_length"):
        prepared = sentences(word_tokenizer, max_context_length=6, truncation="keep_end")
    assert prepared.filter_counts == FilterCounts(3, completion_too_long=1, prompts_truncated=1)
    table = filter_table({"test": prepared.filter_counts})
    assert "dropped: completion leaves no room for a prompt     1" in table
    assert "dropped: prompt and completion too long" not in table


def test_only_short_completions_are_not_put_down_to_the_context(word_tokenizer: PreTrainedTokenizerBase) -> None:
    for options in ({}, {"max_context_length": 100}):
        with pytest.warns(UserWarning, match="filtered out") as caught:
            sentences(word_tokenizer, min_completion_length=3, **options)
        assert str(caught[0].message) == (
            "2 samples were filtered out of the test dataset due to the min completion length constraint. "
            "2 of 3: completion shorter than min_completion_length (3)."
        )


def test_what_is_cut_is_said_and_has_no_end(word_tokenizer: PreTrainedTokenizerBase) -> None:
    eos = word_tokenizer.eos_token_id
    with pytest.warns(UserWarning, match="test dataset") as caught:
        prepared = sentences(word_tokenizer, max_context_length=6, truncation="keep_start")
    assert [str(warning.message) for warning in caught] == [
        "1 samples were filtered out of the test dataset due to the max context length constraint. 1 of 3: prompt not "
        "shorter than max_context_length (6); 1 of 3: kept with the end of a completion cut to fit max_context_length "
        "(6), which leaves it unfinished."
    ]
    ends = [ids[-1] == eos for ids in prepared.dataset["completion_ids"]]
    assert ends == [True, False]
    with pytest.warns(UserWarning, match="test dataset") as caught:
        sentences(word_tokenizer, max_context_length=10, truncation="keep_start")
    assert str(caught[0].message).startswith(
        "2 samples of the test dataset have completions that were cut. 2 of 3: kept with the end of a completion cut"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        prepared = sentences(word_tokenizer, max_context_length=11, truncation="keep_end")
    assert prepared.filter_counts == FilterCounts(3, prompts_truncated=1)


@pytest.mark.parametrize(
    ("truncation", "most", "remedy"),
    [
        ("drop", 3, "the shortest row has 4 tokens. Raise max_context_length to at least 4."),
        ("keep_end", 2, "the shortest row needs 3 tokens. Raise max_context_length to at least 3."),
        ("keep_start", 2, "the shortest row needs 3 tokens. Raise max_context_length to at least 3."),
    ],
)
def test_nothing_left_says_what_would_fit(
    truncation: Any, most: int, remedy: str, word_tokenizer: PreTrainedTokenizerBase
) -> None:
    with pytest.raises(DatasetError) as caught:
        sentences(word_tokenizer, max_context_length=most, truncation=truncation)
    assert str(caught.value).endswith(remedy)
    least = int(remedy.split()[-1].rstrip("."))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        assert len(sentences(word_tokenizer, max_context_length=least, truncation=truncation)) >= 1


def test_no_row_with_a_preference(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(DatasetError, match=r"^train dataset: no row prefers one of its completions\."):
        prepare([Ids([], [], [])] * 2, tokenizer)


def test_table_of_all_splits() -> None:
    counts = {
        "train": FilterCounts(12_000, prompt_too_long=2, equal_after_truncation=1, completions_truncated=345),
        "test": FilterCounts(50),
    }
    assert filter_table(counts).splitlines() == [
        "                                  train  test",
        "rows                             12,000    50",
        "dropped: prompt too long              2     0",
        "dropped: equal after truncation       1     0",
        "kept                             11,997    50",
        "kept, completion truncated          345     0",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"truncation": "middle"}, r"truncation must be one of \['drop', 'keep_end', 'keep_start'\], got 'middle'"),
        ({"truncation": "keep_end"}, "truncation='keep_end' needs max_context_length"),
    ],
)
def test_bad_choices(options: dict[str, Any], message: str, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ValueError, match=message):
        prepare([Ids([20], [20], [21])], tokenizer, **options)


@pytest.mark.parametrize(
    ("row", "column", "problem"),
    [
        (Ids([20], [], [21]), "chosen", "the completion has no tokens"),
        (Ids([20], [21], [22, -1]), "rejected", "the completion has the token id -1"),
        (Ids([20, 10**6], [21], [22]), None, "the prompt has the token id 1000000, and the tokenizer's are 0 to"),
    ],
)
def test_token_ids_that_are_not_the_tokenizers(
    row: Ids, column: str | None, problem: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    with pytest.raises(DatasetError) as caught:
        prepare([Ids([20], [20], [21]), row], tokenizer)
    assert (caught.value.row, caught.value.column) == (1, column)
    assert caught.value.problem.startswith(problem)


def test_token_ids_pass_through(make_tokenizer: MakeTokenizer) -> None:
    """Nothing is added, also with a tokenizer that adds tokens, and one without an end."""
    row = Ids([30, 31], [40, 1, 1], [41])
    for tokenizer in (make_tokenizer(bos=True, eos=True), make_tokenizer(eos_token=None)):
        prepared = prepare([row], tokenizer)
        assert prepared.form is Form.TOKENS
        (given,) = prepared.dataset.to_list()
        assert [given[f"{part}_ids"] for part in PARTS] == list(row)
        assert [given[part] for part in PARTS] == [tokenizer.decode(ids) for ids in row]


def test_token_ids_behind_a_gap_in_the_vocabulary(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer()
    highest = max(tokenizer.get_vocab().values())
    assert prepare([Ids([20], [highest], [21])], tokenizer).lengths.tolist() == [[1], [1], [1]]
    with pytest.raises(DatasetError, match=f"are 0 to {highest}"):
        prepare([Ids([20], [highest + 1], [21])], tokenizer)
