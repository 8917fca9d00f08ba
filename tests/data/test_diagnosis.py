"""What is wrong with a file, a directory or a name, in one exact sentence."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from agiledpo.data import DatasetError
from agiledpo.data.loading import load_preferences
from agiledpo.data.sources import SUPPORTED

ROW = '{"prompt": "a", "chosen": "b", "rejected": "c"}\n'
OBJECTS = "Write each row as {'prompt': ..., 'chosen': ..., 'rejected': ...}."
LINES = "Write one object a line (JSONL)."
EMPTY = "Fill it or leave it out."
FIELDS = "Put a field that contains a comma or a line break into double quotes."
SAME = "Write the column in the same way in all rows."


def refusal(source: Any, **options: Any) -> DatasetError:
    with pytest.raises(DatasetError) as caught:
        load_preferences(source, dataset_name="train", **options)
    return caught.value


BAD_FILES: dict[str, tuple[str, str | bytes, str]] = {
    "cut off": (
        "a.jsonl",
        ROW + '{"prompt": "a", "cho',
        ", row 1: line 2 is not valid JSON: it ends in the middle, at column 17 near '{\"prompt\": \"a\", \"cho'. "
        "It is the last line and may have been cut off: write the file again.",
    ),
    "trailing comma": (
        "a.jsonl",
        ROW + "\n" + '{"prompt": "a",}\n',
        ", row 1: line 3 is not valid JSON: there is a comma before the closing bracket, at column 16 "
        f"near '{{\"prompt\": \"a\",}}'. {LINES}",
    ),
    "single quotes": (
        "a.jsonl",
        "{'prompt': 'a'}\n",
        ", row 0: line 1 is not valid JSON: texts and names need double quotes, not single ones, at column 2 "
        f'near "{{\'prompt\': \'a\'}}". {LINES}',
    ),
    "NaN": (
        "a.jsonl",
        ROW + '{"prompt": NaN}\n',
        ", row 1: line 2 is not valid JSON: NaN is no value of JSON, write null. Correct the line.",
    ),
    "key twice": (
        "a.jsonl",
        ROW + '{"prompt": "a", "prompt": "b"}\n',
        ", row 1: line 2 is not valid JSON: an object has the key 'prompt' twice. Correct the line.",
    ),
    "no value": (
        "a.jsonl",
        '{"prompt": }\n',
        f", row 0: line 1 is not valid JSON: expecting value, at column 12 near '{{\"prompt\": }}'. {LINES}",
    ),
    "two objects on a line": (
        "a.jsonl",
        ROW.strip() + ROW,
        ", row 0: line 1 is not valid JSON: there is more than one object, at column 48 near "
        f"'chosen\": \"b\", \"rejected\": \"c\"}}{{\"prompt\": \"a\", \"chosen\": \"b\",'. {LINES}",
    ),
    "an object on several lines": (
        "a.jsonl",
        json.dumps(json.loads(ROW), indent=1),
        f", row 0: line 1 is not valid JSON: it ends in the middle, at column 2 near '{{'. {LINES}",
    ),
    "a list for a row": ("a.jsonl", ROW + '["a"]\n', f", row 1: line 2 is a list, not an object. {OBJECTS}"),
    "a text for a row": ("a.jsonl", ROW + '"a"\n', f", row 1: line 2 is text, not an object. {OBJECTS}"),
    "text, then a list": (
        "a.jsonl",
        ROW + "\n" + '{"prompt": "a", "chosen": ["b"], "rejected": "c"}\n',
        f", row 1, column 'chosen': the value is a list (line 3), but in row 0 (line 1) it is text. {SAME}",
    ),
    "text, then a number": (
        "a.jsonl",
        ROW + '{"prompt": "a", "chosen": "5", "rejected": 5}\n',
        f", row 1, column 'rejected': the value is a number (line 2), but in row 0 (line 1) it is text. {SAME}",
    ),
    "types that change in a list": (
        "a.json",
        '[{"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": {}, "chosen": "b", "rejected": "c"}]',
        f", row 1, column 'prompt': the value is an object, but in row 0 it is text. {SAME}",
    ),
    "trailing comma in a list": (
        "a.json",
        '[{"prompt": "a"},\n {"prompt": "b"},\n]',
        ": line 3 is not valid JSON: there is a comma before the closing bracket, at column 1 near "
        "'mpt\": \"a\"},\\n {\"prompt\": \"b\"},\\n]'. Correct it, or write one object a line (JSONL).",
    ),
    "NaN in a list": ("a.json", '[{"a": Infinity}]', ": the list is not valid JSON: Infinity is no value of JSON, "
                      "write null. Correct it."),
    "texts in a list": ("a.json", '["a"]', f", row 0: item 0 of the list is text, not an object. {OBJECTS}"),
    "no items": ("a.json", "[]", f": the file has no rows. {EMPTY}"),
    "empty": ("a.jsonl", "", f": the file is empty. {EMPTY}"),
    "blank": ("a.jsonl", " \n\n", f": the file has no rows. {EMPTY}"),
    "Latin-1": ("a.jsonl", b'{"prompt": "\xe9"}\n', ": byte 12 (0xe9) is not UTF-8. Save the file as UTF-8."),
    "ends in the middle of a character": (
        "a.jsonl",
        ROW.encode() + b'{"prompt": "\xc3',
        ": byte 60 (0xc3) is not UTF-8. Save the file as UTF-8.",
    ),
    "cut off gzip": (
        "a.jsonl.gz",
        gzip.compress(ROW.encode() * 100)[:-20],
        ": the file is cut off. Copy or download it again.",
    ),
    "not gzip": (
        "a.csv.gz",
        b"prompt,chosen\n",
        ": the file is not compressed by gzip, or damaged. Copy or download it again.",
    ),
    "too few fields": (
        "a.csv",
        "prompt,chosen,rejected\na,b,c\n\n\"a\nb\",c\n",
        f", row 1: line 4 has 2 fields, but the header has 3 (prompt, chosen, rejected). {FIELDS}",
    ),
    "too many fields": (
        "a.csv",
        "prompt,chosen,rejected\na,b,c\na,b,c,d\n",
        f", row 1: line 3 has 4 fields, but the header has 3 (prompt, chosen, rejected). {FIELDS}",
    ),
    "open quote": (
        "a.csv",
        'prompt,chosen,rejected\na,b,c\na,"b,c\nd,e,f\n',
        ", row 1: the fields from line 3 on cannot be told apart (unexpected end of data). "
        'Close every quoted field with ", and write a " inside it as "".',
    ),
    "no header": (
        "a.csv",
        "Why is it blue?,It scatters light.,Nobody knows it.\nWhy so?,Because it is.,No idea.\n",
        ": line 1 should name the columns, but is a row: 'Why is it blue?'. "
        "Put the line 'prompt,chosen,rejected' before it.",
    ),
    "semicolons": (
        "a.csv",
        "prompt;chosen;rejected\na;b;c\n",
        ": the columns are separated by semicolons, not commas. Save it as CSV with commas.",
    ),
    "tabs": (
        "a.csv",
        "prompt\tchosen\trejected\na\tb\tc\n",
        ": the columns are separated by tabs, not commas. Save it as CSV with commas.",
    ),
    "a column twice": (
        "a.csv",
        "prompt,chosen,chosen\na,b,c\n",
        ": line 1 names the column 'chosen' twice. Give each column its own name.",
    ),
    "a column without a name": (
        "a.csv",
        "prompt,,chosen\na,b,c\n",
        ": column 2 has no name in line 1. Name all columns in line 1.",
    ),
    "CSV in Latin-1": ("a.csv", b"prompt\n\xe9\n", ": byte 7 (0xe9) is not UTF-8. Save the file as UTF-8."),
    "a header only": ("a.csv", "prompt,chosen,rejected\n", f": the file has no rows. {EMPTY}"),
    "empty CSV": ("a.csv", "", f": the file is empty. {EMPTY}"),
    "not Parquet": (
        "a.parquet",
        ROW,
        ": the file is not a Parquet file, or is cut off (it begins with b'{\"prompt\": \"a\", '). "
        "Write or download it again, or give it the ending of what it is.",
    ),
    "empty Parquet": ("a.parquet", "", f": the file is empty. {EMPTY}"),
    "text": ("a.txt", ROW, f": files that end in '.txt' are not supported. Supported are {SUPPORTED}."),
    "no ending": ("rows", ROW, f": the file has no ending that says what it is. Supported are {SUPPORTED}."),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_file(case: str, tmp_path: Path) -> None:
    name, content, sentence = BAD_FILES[case]
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    assert str(refusal(path)) == f"train dataset ({path}){sentence}"


def test_file_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text(ROW)
    near, other, nowhere = tmp_path / "pair.jsonl", tmp_path / "x.csv", tmp_path / "no" / "a.jsonl"
    there = f"train dataset ({near}): there is no such file or directory."
    assert str(refusal(near)) == f"{there} Perhaps {str(tmp_path / 'pairs.jsonl')!r} is meant."
    assert str(refusal(str(other))).endswith(f"directory. Look into {str(tmp_path)!r}.")
    assert str(refusal(nowhere)).endswith(f"Its directory {str(tmp_path / 'no')!r} does not exist either.")


def test_directories(tmp_path: Path) -> None:
    def sentence(remedy: str) -> str:
        return f"train dataset ({tmp_path}): {remedy}"

    put = f"Put files into it that are {SUPPORTED}."
    assert str(refusal(tmp_path)) == sentence(f"the directory has no data files; it has nothing. {put}")
    (tmp_path / "README.md").write_text("x")
    (tmp_path / ".hidden.jsonl").write_text(ROW)
    assert str(refusal(tmp_path)) == sentence(
        f"the directory has no data files; it has .hidden.jsonl, README.md. {put}"
    )
    (tmp_path / "b.jsonl").write_text(ROW)
    (tmp_path / "a.csv").write_text("prompt,chosen,rejected\na,b,c\n")
    assert str(refusal(tmp_path)) == sentence(
        "the directory has files of several kinds: a.csv is csv, b.jsonl is json. Pass one file, or keep one kind."
    )


def test_error_in_the_second_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(ROW)
    (tmp_path / "b.jsonl").write_text(ROW + "{\n")
    error = refusal(tmp_path)
    assert (error.file, error.row) == (str(tmp_path / "b.jsonl"), 1)


def test_second_file_of_another_type(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(ROW)
    (tmp_path / "b.jsonl").write_text('{"prompt": "a", "chosen": ["b"], "rejected": "c"}\n')
    assert str(refusal(tmp_path)) == (
        f"train dataset ({tmp_path / 'b.jsonl'}), row 0, column 'chosen': the value is a list (line 1), but in "
        f"{tmp_path / 'a.jsonl'} it is text. {SAME}"
    )


def test_keys(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"question": "a", "good": "b", "bad": "c"}\n')
    where = f"train dataset ({path}): "
    assert str(refusal(path, prompt_key="questoin", chosen_key="good", rejected_key="bad")) == (
        f"{where}prompt_key='questoin' is none of the columns, which are question, good, bad. "
        "Perhaps prompt_key='question' is meant."
    )
    assert str(refusal(path, prompt_key="question", chosen_key="xyz")) == (
        f"{where}chosen_key='xyz' is none of the columns, which are question, good, bad. "
        "Give chosen_key the name of one of them."
    )
