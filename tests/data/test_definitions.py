"""A layout of one's own that is edited is another one: its tokens are not those of before."""

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from agiledpo.data import Layout, Pairs, Ranked, prepare_rows

SOURCE = '''
import re
from dataclasses import dataclass
from agiledpo.data import Example, Pairs

SIDES = {"a", "b", "c", "d"}
WORD = re.compile("x")

def order(values):
    return values["chosen"], values["rejected"]

class Base(Pairs):
    def more(self):
        return 1 if "a" in {"a", "b", "c"} else SIDES

@dataclass(frozen=True)
class Mine(Base):
    """Words."""

    unit: str = "x"

    def read(self, form, row, values, *, name):
        pick = lambda text: WORD.sub("y", text)
        return [Example(pick(values["prompt"]), order(values))]
'''
EDITS = {
    "a helper": ('values["chosen"], values["rejected"]', 'values["rejected"], values["chosen"]'),
    "a nested function": ('WORD.sub("y"', 'WORD.sub("z"'),
    "a constant of the module": ('re.compile("x")', 're.compile("q")'),
    "a set of the module": ('"c", "d"}', '"c", "e"}'),
    "a base": ("return 1 if", "return 2 if"),
    "a default": ('unit: str = "x"', 'unit: str = "y"'),
}


def layout(source: str, monkeypatch: pytest.MonkeyPatch) -> Layout:
    module = ModuleType("elsewhere")
    monkeypatch.setitem(sys.modules, "elsewhere", module)
    exec(source, module.__dict__)
    made: Layout = module.Mine()
    return made


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_gives_it_another_identity(edit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = EDITS[edit]
    edited = SOURCE.replace(before, after)
    assert edited != SOURCE
    assert layout(edited, monkeypatch).identity != layout(SOURCE, monkeypatch).identity


def test_words_and_unrelated_code_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    edited = "# A comment.\n" + SOURCE.replace("Words.", "Other words.") + "\ndef unrelated(): ...\n"
    assert layout(edited, monkeypatch).identity == layout(SOURCE, monkeypatch).identity


def test_it_is_the_same_in_every_process(tmp_path: Path) -> None:
    (tmp_path / "elsewhere.py").write_text(SOURCE)

    def identity(seed: str) -> str:
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
        command = [sys.executable, "-c", "import elsewhere; print(elsewhere.Mine().identity)"]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    assert identity("1") == identity("2") != ""


def test_the_package_s_own_are_known_by_their_fields() -> None:
    assert Ranked(pairing="all").identity == "Ranked(context='context', ranking='completions', pairing='all')"
    assert Pairs().identity == repr(Pairs())


def test_edited_layouts_get_their_own_tokens(
    make_tokenizer: Any, text_rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer: PreTrainedTokenizerBase = make_tokenizer(bos=True)
    rows: Dataset = text_rows()
    one = prepare_rows(rows, tokenizer, layout(SOURCE, monkeypatch), name="train")
    swapped = layout(SOURCE.replace(*EDITS["a helper"]), monkeypatch)
    other = prepare_rows(rows, tokenizer, swapped, name="train")
    assert other.tokenized["chosen"][:] == one.tokenized["rejected"][:]
    assert other.fingerprint != one.fingerprint
