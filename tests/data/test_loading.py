"""A file's format is recognised, or said by its user."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from agiledpo.data import (
    DatasetError,
    ImplicitPairs,
    Layout,
    LoadedRows,
    Pairs,
    Ranked,
    TokenPairs,
    load_demonstrations,
    load_preferences,
)

ASKED = [{"role": "user", "content": "hello"}]
YES, NO = ([{"role": "assistant", "content": text}] for text in ("yes", "no"))


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


FORMATS: list[tuple[dict[str, Any], Layout]] = [
    ({"prompt": "hello", "chosen": "yes", "rejected": "no"}, Pairs()),
    ({"prompt": ASKED, "chosen": YES, "rejected": NO, "tools": None}, Pairs()),
    ({"chosen": ASKED + YES, "rejected": ASKED + NO}, ImplicitPairs()),
    ({"prompt": "hello", "chosen": ASKED + YES, "rejected": ASKED + NO}, ImplicitPairs(prompt="prompt")),
    (
        {"context": ASKED, "completions": [{"rank": 0, "completion": YES}, {"rank": 1, "completion": NO}]},
        Ranked(pairing="adjacent"),
    ),
    ({"prompt_ids": [1, 2], "chosen_ids": [3], "rejected_ids": [4]}, TokenPairs()),
]


@pytest.mark.parametrize(("row", "layout"), FORMATS)
def test_format_of_a_file(row: dict[str, Any], layout: Layout, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", row, row)
    (tmp_path / "a.json").write_text(json.dumps([row]))
    for source in (path, tmp_path / "a.json"):
        data = load_preferences(source, pairing="adjacent" if isinstance(layout, Ranked) else "best_worst")
        assert data.layout == layout
        (example,) = layout.read(layout.form(data.dataset, name="train"), 0, data.dataset[0], name="train")
        assert len(example.completions) == 2


def test_columns_by_other_names(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"question": "a", "good": "b", "bad": "c"})
    data = load_preferences(path, prompt_key="question", chosen_key="good", rejected_key="bad")
    assert data.layout == Pairs("question", "good", "bad")
    data = load_preferences(Dataset.from_list([{"q": "a", "chosen": "b", "rejected": "c"}]), prompt_key="q")
    assert data.layout == Pairs("q")
    assert data.files == ()


def test_named_columns_are_recognised_as_those_of_the_usual_names() -> None:
    dialogues = {"question": "hello", "good": ASKED + YES, "bad": ASKED + NO}
    keys = {"chosen_key": "good", "rejected_key": "bad"}
    data = load_preferences(Dataset.from_list([dialogues]), prompt_key="question", **keys)
    assert data.layout == ImplicitPairs("good", "bad", "question")
    data = load_preferences(Dataset.from_list([dialogues]).remove_columns("question"), **keys)
    assert data.layout == ImplicitPairs("good", "bad")
    chat = Dataset.from_list([{"question": ASKED, "good": YES, "bad": NO}])
    assert load_preferences(chat, prompt_key="question", **keys).layout == Pairs("question", "good", "bad")
    with pytest.raises(DatasetError, match="there is no prompt column, and 'good' is text"):
        load_preferences(Dataset.from_list([{"good": "b", "bad": "c"}]), **keys)


@pytest.mark.parametrize(("file", "split"), [("constrained.jsonl", False), ("data/train-00000-of-00001.jsonl", True)])
def test_a_word_that_contains_the_split_s_name_is_no_split(file: str, split: bool, tmp_path: Path) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    write(tmp_path / file, {"context": ASKED, "response1": "a", "response2": "b", "overall_preference": 1})
    assert len(load_preferences(tmp_path, name="HelpSteer3")) == 1
    if split:
        write(tmp_path / file.replace("train", "test"), {"other": 1})
        assert len(load_preferences(tmp_path, name="HelpSteer3")) == 1


def test_layout_that_is_given(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"a": ASKED + YES, "b": ASKED + NO})
    assert load_preferences(path, layout=ImplicitPairs("a", "b")).layout == ImplicitPairs("a", "b")
    with pytest.raises(DatasetError, match=rf"^preference dataset \({path}\): required column 'c' is missing"):
        load_preferences(path, layout=ImplicitPairs("a", "c"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layout": Pairs(), "name": "HelpSteer3"}, "layout and name"),
        ({"prompt_key": "a", "chosen_key": "b", "name": "HelpSteer3"}, "prompt_key and chosen_key and name"),
        ({"layout": Pairs(), "rejected_key": "b"}, "rejected_key and layout"),
    ],
)
def test_options_that_contradict(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=rf"^{said} each say how rows are read: give one of them\.$"):
        load_preferences("a.jsonl", **options)


def test_pairing_of_what_is_not_ranked(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"prompt": "a", "chosen": "b", "rejected": "c"})
    with pytest.raises(
        ValueError, match="pairing='all' is for ranked completions, and the preference dataset has none"
    ):
        load_preferences(path, pairing="all")


def test_pairing_that_is_none(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"context": ASKED, "completions": []})
    with pytest.raises(ValueError, match="pairing must be one of 'best_worst', 'adjacent', 'all', got 'worst'"):
        load_preferences(path, pairing="worst")  # type: ignore[arg-type]


def test_types_that_change_matter_only_where_they_are_read(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "chosen": "b", "rejected": "c", "id": identity} for identity in (1, "one", ["1"])]
    data = load_preferences(write(tmp_path / "a.jsonl", *rows))
    assert data.dataset["id"][:] == [1, "one", ["1"]]


def test_locate_leaves_other_errors_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"prompt": "a", "chosen": "b", "rejected": "c"})
    data = load_preferences(path)
    of_no_row = DatasetError("it is bad", remedy="Mend it.", dataset="train", column="chosen")
    of_a_file = DatasetError("it is bad", remedy="Mend it.", dataset="train", row=0, file="b.jsonl")
    beyond = DatasetError("it is bad", remedy="Mend it.", dataset="train", row=1)
    assert str(data.locate(of_no_row)) == f"train dataset ({path}), column 'chosen': it is bad. Mend it."
    for error in (of_a_file, beyond):
        assert data.locate(error) is error


def test_pairing_beside_a_layout_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^pairing='all' and layout=Ranked\(.*: give layout alone, such as Ranked\("):
        load_preferences("a.jsonl", layout=Ranked(), pairing="all")


@pytest.mark.parametrize("load", [load_preferences, load_demonstrations])
def test_config_of_what_is_not_on_the_hub(load: Callable[..., LoadedRows], tmp_path: Path) -> None:
    rows = {"prompt": "a", "chosen": "b", "rejected": "c", "completion": "d"}
    for source in (write(tmp_path / "a.jsonl", rows), str(tmp_path), Dataset.from_list([rows])):
        with pytest.raises(
            ValueError, match=r"^config='x' is of a repository on the Hub, and the source is .*\. Leave"
        ):
            load(source, config="x")


def test_tool_calls_of_too_many_digits(tmp_path: Path) -> None:
    calls = [{"role": "assistant", "content": "", "tool_calls": '[{"a": ' + "9" * 5000 + "}]"}]
    data = load_preferences(write(tmp_path / "a.jsonl", {"prompt": ASKED, "chosen": calls, "rejected": NO}))
    with pytest.raises(DatasetError, match=r"column 'chosen': the tool_calls of message 0 are text that cannot be rea"):
        data.split_by_prompt(0.5)
