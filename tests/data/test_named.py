"""Published datasets, read from files laid out as in their repositories on the Hub."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from agiledpo.data import NAMED, PAIRS, DatasetError, Example, Form, LoadedRows, load_preferences, prepare_rows
from agiledpo.data.named import HelpSteer3, PublishedDialogues, Transcripts, find_repository, named_dataset

MakeTokenizer = Callable[..., PreTrainedTokenizerBase]
ASKED = [{"role": "user", "content": "hello"}]


def said(content: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": content}]


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(str(path))
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress("".join(f"{json.dumps(row)}\n" for row in rows).encode()))
    else:
        path.write_text(json.dumps(rows, indent=4))


def examples(data: LoadedRows) -> list[list[Example]]:
    form = data.layout.form(data.dataset, name="train")
    return [data.layout.read(form, row, values, name="train") for row, values in enumerate(data.dataset)]


def helpsteer(preference: int | None, **more: Any) -> dict[str, Any]:
    return {
        "domain": "general",
        "language": "english",
        "context": ASKED,
        "response1": "yes yes",
        "response2": "no no",
        "overall_preference": preference,
        "individual_preference": [{"score": preference, "reasoning": "x", "feedback1": "a", "feedback2": "b"}],
        **more,
    }


@pytest.mark.parametrize("local", ["", "preference/train.jsonl.gz"])
def test_helpsteer3(local: str, tmp_path: Path, make_tokenizer: MakeTokenizer) -> None:
    write(tmp_path / "preference" / "train.jsonl.gz", [helpsteer(number) for number in range(-3, 4)])
    write(tmp_path / "preference" / "validation.jsonl.gz", [helpsteer(1)])
    write(tmp_path / "feedback" / "train.jsonl.gz", [{"context": ASKED, "response": "a", "feedback": ["b"]}])
    data = load_preferences(tmp_path / local, name="HelpSteer3", dataset_name="train")
    first, second = Example(ASKED, (said("yes yes"), said("no no"))), Example(ASKED, (said("no no"), said("yes yes")))
    assert examples(data) == [[first]] * 3 + [[]] + [[second]] * 3
    with pytest.warns(UserWarning, match="1 of 7: no preference"):
        prepared = prepare_rows(data.dataset, make_tokenizer(bos=True, template="chatml"), data.layout, name="train")
    assert prepared.dataset["row"][:] == [0, 1, 2, 4, 5, 6]
    assert prepared.filter_counts.without_preference == 1
    assert len(load_preferences(tmp_path, name="HelpSteer3", split="validation").dataset) == 1


def test_helpsteer3_with_a_text_for_a_context(tmp_path: Path) -> None:
    write(tmp_path / "a.json", [helpsteer(2, context="hello")])
    assert examples(load_preferences(tmp_path / "a.json", name="helpsteer3")) == [
        [Example(ASKED, (said("no no"), said("yes yes")))]
    ]


@pytest.mark.parametrize("preference", [-4, 4, 1.5, "1", True])
def test_preference_out_of_range(preference: Any, tmp_path: Path) -> None:
    write(tmp_path / "a.json", [helpsteer(preference)])
    with pytest.raises(DatasetError) as caught:
        examples(load_preferences(tmp_path / "a.json", name="HelpSteer3"))
    assert str(caught.value) == (
        f"train dataset, row 0, column 'overall_preference': the preference is {preference!r}. It is a whole number "
        "from -3 (the first response is much better) to 3 (the second is)."
    )


def test_preference_is_missing(tmp_path: Path) -> None:
    write(tmp_path / "a.json", [helpsteer(1), helpsteer(None)])
    with pytest.raises(DatasetError, match="row 1, column 'overall_preference': the value is None"):
        examples(load_preferences(tmp_path / "a.json", name="HelpSteer3"))


DIALOGUES = [
    {"prompt": "hello", "chosen": ASKED + said("yes"), "rejected": ASKED + said("no")},
    {"prompt": "hello", "chosen": ASKED + said("no"), "rejected": ASKED + said("no")},
    {"prompt": "hello", "chosen": ASKED + said("yes"), "rejected": ASKED + said(" ")},
    {
        "prompt": "why",
        "chosen": ASKED + said("a") + ASKED + said("b"),
        "rejected": ASKED + said("a") + ASKED + said("c"),
    },
]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("Tulu3Preference", "data/train-00000-of-00001.parquet"),
        ("UltraFeedback", "data/train_prefs-00000-of-00001.parquet"),
        ("UltraFeedback-TRL", "data/train-00000-of-00001.parquet"),
    ],
)
def test_dialogues(name: str, file: str, tmp_path: Path) -> None:
    # The real sets have more columns, and more splits that must not be mixed in.
    write(tmp_path / file, [{**row, "source": "x", "score_chosen": 7.0} for row in DIALOGUES])
    write(tmp_path / "data" / "test_sft-00000-of-00001.parquet", [{"messages": ASKED}])
    data = load_preferences(tmp_path, name=name)
    assert data.layout == PublishedDialogues()
    assert examples(data) == [
        [Example(ASKED, (said("yes"), said("no")))],
        [],
        [],
        [Example(ASKED + said("a") + ASKED, (said("b"), said("c")))],
    ]


def transcript(*turns: str) -> str:
    return "".join(f"\n\n{speaker}: {turn}" for speaker, turn in zip(("Human", "Assistant") * 9, turns, strict=False))


TRANSCRIPTS = {
    "answers to one question": ("hello", "yes", "no"),
    "a longer dialogue": ("hello", "a", "hello", "yes", "no"),
}


@pytest.mark.parametrize("case", TRANSCRIPTS)
def test_hh_rlhf(case: str, tmp_path: Path, make_tokenizer: MakeTokenizer) -> None:
    *shared, chosen, rejected = TRANSCRIPTS[case]
    row = {"chosen": transcript(*shared, chosen), "rejected": transcript(*shared, rejected)}
    for part in ("harmless-base", "helpful-base"):
        write(tmp_path / part / "train.jsonl.gz", [row])
        write(tmp_path / part / "test.jsonl.gz", [row, row])
    write(tmp_path / "red-team-attempts" / "red_team_attempts.jsonl.gz", [{"transcript": "x"}])
    data = load_preferences(tmp_path, name="HH-RLHF", dataset_name="train")
    assert [file.path.parent.name for file in data.files] == ["harmless-base", "helpful-base"]
    assert len(load_preferences(tmp_path, name="HH-RLHF/helpful-base", split="test").dataset) == 2
    prompt = [{"role": ("user", "assistant")[number % 2], "content": turn} for number, turn in enumerate(shared)]
    assert examples(data) == [[Example(prompt, (said("yes"), said("no")))]] * 2
    prepared = prepare_rows(data.dataset, make_tokenizer(bos=True, template="chatml"), data.layout, name="train")
    assert (len(prepared), prepared.form) == (2, Form.CHAT)


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        (transcript("hello", "yes"), transcript("hello", "yes")),
        (transcript("hello", "yes"), transcript("hello", "yes ")),
        (transcript("hello", "a", "more", "yes"), transcript("hello", "b", "more", "no")),
        (transcript("hello", "a", "more", "yes"), transcript("hello", "no")),
        (transcript("hello", "yes", "more"), transcript("hello", "yes", "else")),
        (transcript("hello", ""), transcript("hello", "no")),
        (transcript("", "yes"), transcript("", "no")),
        ("\n\nAssistant: yes", "\n\nAssistant: no"),
        ("\n\nHuman: hello\n\nAssistant: a\n\nAssistant: yes", "\n\nHuman: hello\n\nAssistant: a\n\nAssistant: no"),
    ],
)
def test_transcripts_without_answers_to_compare(chosen: str, rejected: str) -> None:
    assert Transcripts().read(Form.CHAT, 3, {"chosen": chosen, "rejected": rejected}, name="train") == []


def test_text_that_is_no_transcript() -> None:
    with pytest.raises(DatasetError) as caught:
        Transcripts().read(Form.CHAT, 3, {"chosen": transcript("a", "b"), "rejected": "b"}, name="train")
    assert str(caught.value) == (
        "train dataset, row 3, column 'rejected': the text does not begin with 'Human:' or 'Assistant:'. "
        "Write '\\n\\nHuman: ...\\n\\nAssistant: ...', or use another format than HH-RLHF's."
    )


def test_human_like_dpo(tmp_path: Path) -> None:
    write(tmp_path / "data.json", [{"prompt": "hello", "chosen": "hey", "rejected": "I am a language model."}])
    data = load_preferences(tmp_path, name="Human-Like-DPO")
    assert data.layout == PAIRS
    assert examples(data) == [[Example("hello", ("hey", "I am a language model."))]]


@pytest.mark.parametrize("name", NAMED)
def test_on_the_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    known = NAMED[name]
    with pytest.raises(DatasetError) as caught:
        load_preferences(known.repository, name=name)
    assert f"{known.repository!r} is no file here" in str(caught.value)
    assert f"split={known.split!r}" in str(caught.value)
    assert (f"data_dir={known.data_dir!r}" in str(caught.value)) == (known.data_dir is not None)
    assert (f"name={known.config!r}" in str(caught.value)) == (known.config is not None)
    found = find_repository(known.repository.upper())
    assert found is not None
    assert found.layout == known.layout


def test_names() -> None:
    assert named_dataset("ultrafeedback").split == "train_prefs"
    assert named_dataset("HH-RLHF/Harmless-Base").data_dir == "harmless-base"
    assert find_repository("org/other") is None
    with pytest.raises(
        ValueError, match=r"name='HelpSteer' is no dataset known here; .* Perhaps 'HelpSteer3' is meant\.$"
    ):
        load_preferences("a/b", name="HelpSteer")


def test_layouts_are_told_apart() -> None:
    assert len({repr(layout) for layout in (HelpSteer3(), HelpSteer3(context="dialogue"), Transcripts())}) == 3
