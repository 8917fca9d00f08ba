"""Malformed files: each is refused with one sentence that says where, what is wrong and what to do; none trains."""

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from agiledpo.data import DatasetError, prepare_rows
from agiledpo.data.loading import load_preferences
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


def prepare(case: Case, tokenizer: PreTrainedTokenizerBase) -> None:
    """What a user does with a file."""
    data = load_preferences(case.file, dataset_name="train", **case.load)
    try:
        prepare_rows(data.dataset, tokenizer, data.layout, name="train", **case.gym)
    except DatasetError as error:
        raise data.locate(error) from error


@pytest.mark.parametrize(("table", "case"), CASES, ids=[f"{table}-{case.name}" for table, case in CASES])
def test_is_refused_with_one_sentence(
    table: str,
    case: Case,
    tokenizers: Callable[[str], PreTrainedTokenizerBase],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case.write(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the message is compared as a whole)
        prepare(case, tokenizers(case.tokenizer))
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
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = Case("good", rows(good))
    case.write(tmp_path)
    monkeypatch.chdir(tmp_path)
    prepare(case, tokenizers("chatml"))
