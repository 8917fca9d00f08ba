"""What other libraries' keys are here: the hints and the page say the same, and both name what there is."""

import re
from pathlib import Path

from agiledpo.config.algorithms import ALGORITHMS, schema_of
from agiledpo.config.foreign import OTHER_NAMES

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"
_KNOWN = {path for name in ALGORITHMS for path, _ in schema_of(name).walk()}


def _rows() -> list[tuple[str, str]]:
    """The first two cells of each row of the tables that map other libraries' keys."""
    text = PAGE.read_text(encoding="utf-8").partition("## Coming from NeMo RL")[2]
    cells = [line.split(" | ") for line in text.splitlines() if line.startswith("| ") and not line.startswith("| ---")]
    return [(row[0].removeprefix("| "), row[1]) for row in cells if "| here |" not in " | ".join(row)]


def test_hints_name_what_there_is() -> None:
    assert {ours for ours in OTHER_NAMES.values() if ours not in _KNOWN} <= {"--run"}


def test_the_page_names_what_there_is() -> None:
    named = [name for _, ours in _rows() for name in re.findall(r"`([^`]+)`", ours)]
    parameters = [name for name in named if re.fullmatch(r"[a-z_]+(\.[a-z_]+)*", name)]
    assert len(parameters) > 60
    assert [name for name in parameters if name.removesuffix(".default") not in _KNOWN | {"dpo"}] == []


def test_the_page_has_the_keys_of_the_hints() -> None:
    page = {key: ours for theirs, ours in _rows() for key in re.findall(r"`([^`]+)`", theirs)}
    for key, ours in OTHER_NAMES.items():
        if key.startswith(("policy.", "dpo.", "data.", "checkpointing.", "rllm.")):
            assert f"`{ours}`" in page[key], key
