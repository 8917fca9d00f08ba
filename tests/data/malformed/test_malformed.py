"""Malformed files: each is refused with one sentence that says where, what is wrong and what to do; none trains."""

from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from agiledpo.data.loading import load_preferences
from agiledpo.llm_envs import PreferenceGym
from tests.data.malformed import chats, files, others, texts
from tests.data.malformed.case import CHAT, IMPLICIT, RANKED, TEXT, TOKENS, Case, rows

TABLES = {"files": files, "texts": texts, "chats": chats, "others": others}
CASES = [(table, case) for table, module in TABLES.items() for case in module.CASES]


@pytest.fixture(scope="module")
def tokenizers(
    make_tokenizer: Callable[..., PreTrainedTokenizerBase], word_tokenizer: PreTrainedTokenizerBase
) -> Callable[[str], PreTrainedTokenizerBase]:
    def find(name: str) -> PreTrainedTokenizerBase:
        if name == "words":
            return word_tokenizer
        if name == "no end":
            return make_tokenizer(eos_token=None)
        return make_tokenizer(bos=True, template=None if name == "no template" else name)

    return find


def make_gym(case: Case, tokenizer: PreTrainedTokenizerBase, test: Dataset) -> PreferenceGym:
    """What a user does with a file."""
    train = load_preferences(case.file, dataset_name="train", **case.load) if case.load else case.file
    return PreferenceGym(train, test, tokenizer, **case.gym)


@pytest.mark.parametrize(("table", "case"), CASES, ids=[f"{table}-{case.name}" for table, case in CASES])
def test_is_refused_with_one_sentence(
    table: str,
    case: Case,
    tokenizers: Callable[[str], PreTrainedTokenizerBase],
    text_rows: Callable[..., Dataset],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case.write(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the message is compared as a whole)
        make_gym(case, tokenizers(case.tokenizer), text_rows())
    assert str(caught.value) == case.says


def test_there_are_enough_and_all_differ() -> None:
    assert len(CASES) > 150
    assert len({(table, case.name) for table, case in CASES}) == len(CASES)
    remedies = [case.says.rpartition(". ")[2] for _, case in CASES]
    assert all(case.says.endswith(".") for _, case in CASES)
    assert all(remedies)


@pytest.mark.parametrize("good", [TEXT, CHAT, IMPLICIT, RANKED, TOKENS])
def test_the_rows_that_were_spoilt_were_good(
    good: dict[str, object],
    tokenizers: Callable[[str], PreTrainedTokenizerBase],
    text_rows: Callable[..., Dataset],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = Case("good", rows(good))
    case.write(tmp_path)
    monkeypatch.chdir(tmp_path)
    env = make_gym(case, tokenizers("chatml"), text_rows())
    assert len(env) == 3
