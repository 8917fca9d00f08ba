"""Malformed files: each is refused with one sentence that says where, what is wrong and what to do; none trains."""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from agiledpo.data.loading import load_preferences
from agiledpo.llm_envs import PreferenceGym
from tests.data.malformed import chats, files, others, texts
from tests.data.malformed.case import Case

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


def make_gym(case: Case, tokenizer: PreTrainedTokenizerBase, good: Dataset) -> PreferenceGym:
    """What a user does with a file."""
    train: Any = load_preferences(case.file, **case.load) if case.load else case.file
    return PreferenceGym(train, good, tokenizer, **case.gym)


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
