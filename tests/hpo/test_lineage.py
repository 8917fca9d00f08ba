"""Records keep their values on the way through a file, and the file keeps its records through kills and resumes."""

import json
import math
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agiledpo.hpo import Lineage
from agiledpo.hpo.records import (
    Born,
    Diverged,
    Evaluated,
    Final,
    Mutated,
    Selected,
    Validated,
    record_from_json,
    record_from_line,
)

COUNTS = st.integers(0, 2**70)
TEXT = st.text(max_size=12)
NUMBERS = st.floats()
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=5,
)
COMMON = {"agent": COUNTS, "generation": COUNTS, "pairs": COUNTS}
RECORDS = st.one_of(
    st.builds(Born, **COMMON, parent=st.none() | COUNTS, hyperparameters=st.dictionaries(TEXT, VALUES, max_size=4)),
    st.builds(
        Evaluated,
        **COMMON,
        fitness=NUMBERS,
        error=NUMBERS,
        tie_break=NUMBERS,
        metrics=st.dictionaries(TEXT, NUMBERS, max_size=3),
    ),
    st.builds(Validated, **COMMON, metrics=st.dictionaries(TEXT, NUMBERS, max_size=3)),
    st.builds(Mutated, **COMMON, parameter=TEXT, old=VALUES, new=VALUES),
    st.builds(Diverged, **COMMON, reason=TEXT),
    st.builds(
        Selected,
        generation=COUNTS,
        pairs=COUNTS,
        elite=COUNTS,
        survivors=st.lists(COUNTS, max_size=4),
        replaced=st.lists(COUNTS, max_size=4),
    ),
    st.builds(Final, agent=COUNTS, pairs=COUNTS, split=TEXT, fitness=NUMBERS, error=NUMBERS),
)


def same(one: object, other: object) -> bool:
    """Equal in value and type, NaN equal to NaN: an independent path to what records call equal."""
    if type(one) is not type(other):
        return False
    match one:
        case float():
            return repr(one) == repr(other)
        case tuple():
            return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
        case dict():
            return list(one) == list(other) and all(same(one[name], other[name]) for name in one)
    return one == other


def born(agent: int = 0, parent: int | None = None, **hyperparameters: object) -> Born:
    return Born(agent=agent, parent=parent, generation=0, pairs=0, hyperparameters=hyperparameters)


def evaluated(agent: int, fitness: float, tie_break: float = 0.0, pairs: int = 10) -> Evaluated:
    return Evaluated(agent=agent, generation=0, pairs=pairs, fitness=fitness, error=0.1, tie_break=tie_break)


def lineage_of(events, path: Path | None = None) -> Lineage:
    lineage = Lineage(path)
    for event in events:
        lineage.record(event)
    return lineage


# Records ------------------------------------------------------------------------------------------------------------


@given(RECORDS)
def test_a_record_comes_back_from_its_line_value_by_value(record):
    line = record.line()
    back = record_from_line(line)
    assert back == record
    assert back.line() == line
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    for each in fields(record):
        assert same(vars(back)[each.name], vars(record)[each.name]), each.name


@given(RECORDS)
def test_a_line_is_json_that_every_reader_accepts(record):
    def refuse(constant: str) -> float:
        raise AssertionError(f"{constant} is not JSON")

    entry = json.loads(record.line(), parse_constant=refuse)
    assert entry["event"] == type(record).__name__.lower()
    assert record_from_json(json.loads(json.dumps(entry))) == record


def test_the_line_of_an_evaluation():
    record = Evaluated(
        agent=np.int64(3),
        generation=1,
        pairs=64,
        fitness=np.float32(0.5),
        error=math.nan,
        tie_break=-math.inf,
        metrics={"loss": np.float64(0.25)},
    )
    assert record.line() == (
        b'{"event": "evaluated", "pairs": 64, "agent": 3, "generation": 1, "fitness": 0.5, "error": "NaN", '
        b'"tie_break": "-Infinity", "metrics": {"loss": 0.25}}\n'
    )


def test_numpy_scalars_and_lists_become_plain():
    record = born(lr=np.float32(0.5), n=np.int32(4), flag=np.bool_(True), loss_type=["sigmoid", "sft"], limit=math.inf)
    assert same(
        record.hyperparameters,
        {"lr": 0.5, "n": 4, "flag": True, "loss_type": ("sigmoid", "sft"), "limit": math.inf},
    )
    # The three names of numbers that JSON lacks are numbers from the start, so that they read back as they are.
    assert same(
        born(limits=["-Infinity", "Infinity", "NaN"]).hyperparameters, {"limits": (-math.inf, math.inf, math.nan)}
    )
    assert Diverged(agent=0, generation=0, pairs=0, reason="NaN").reason == "NaN"


def test_records_differ_where_a_value_does():
    assert evaluated(0, math.nan) == evaluated(0, math.nan)
    assert evaluated(0, 0.5) != evaluated(0, 0.25)
    assert Mutated(agent=0, generation=0, pairs=1, parameter="lr", old=1.0, new=2.0) != Mutated(
        agent=0, generation=0, pairs=1, parameter="lr", old=1.0, new=3.0
    )


def test_a_record_does_not_follow_the_agents_dictionary():
    live = {"lr": 1e-5}
    record = Born(agent=0, parent=None, generation=0, pairs=0, hyperparameters=live)
    live["lr"] = 1.0
    assert record.hyperparameters == {"lr": 1e-5}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: born(-1), r"Born: agent=-1 is not a whole number from 0 on"),
        (lambda: born(True), r"Born: agent=True is not a whole number"),
        (lambda: born(lr=object), r"Born: hyperparameters=.* holds a type"),
        (lambda: evaluated(0, "high"), r"Evaluated: fitness='high' is not a number"),
        (lambda: evaluated(0, None), r"Evaluated: fitness=None is not a number"),
        (lambda: Diverged(agent=0, generation=0, pairs=0, reason=3), r"Diverged: reason=3 is not text"),
    ],
)
def test_what_cannot_be_recorded_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# The file -----------------------------------------------------------------------------------------------------------


def test_each_line_is_in_the_file_as_soon_as_it_is_recorded(family, tmp_path):
    path = tmp_path / "runs" / "lineage.jsonl"
    lineage = Lineage(path)
    for number, event in enumerate(family, start=1):
        lineage.record(event)
        assert path.read_bytes() == b"".join(each.line() for each in family[:number])


def test_a_file_reads_back_as_the_same_lineage(family, tmp_path):
    lineage = lineage_of(family, tmp_path / "lineage.jsonl")
    back = Lineage.read(tmp_path / "lineage.jsonl")
    assert list(back) == list(lineage) == family
    assert back.agents == lineage.agents
    assert back.path is None


def test_two_runs_write_the_same_bytes(family, tmp_path):
    for name in ("a", "b"):
        lineage_of(family, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("saved_after", [0, 1, 9, 20])
@pytest.mark.parametrize("written_until", [1, 9, 13, 20])
@pytest.mark.parametrize("torn", [0, 7])
def test_a_resumed_run_neither_doubles_nor_loses_a_record(family, tmp_path, saved_after, written_until, torn):
    """Whatever the killed run had in its file: more than the checkpoint, less, or the beginning of a line."""
    path = tmp_path / "lineage.jsonl"
    whole = b"".join(event.line() for event in family)
    state = json.loads(json.dumps(lineage_of(family[:saved_after]).state_dict()))
    written = len(b"".join(event.line() for event in family[:written_until]))
    path.write_bytes(whole[: written + torn])

    resumed = Lineage(path)
    resumed.load_state_dict(state)
    assert path.read_bytes() == b"".join(event.line() for event in family[:saved_after])
    for event in family[saved_after:]:
        resumed.record(event)
    assert path.read_bytes() == whole
    assert list(resumed) == family


def test_a_resumed_run_writes_its_file_anew_where_it_is_gone(family, tmp_path):
    path = tmp_path / "elsewhere" / "lineage.jsonl"
    resumed = Lineage(path)
    resumed.load_state_dict(lineage_of(family).state_dict())
    assert path.read_bytes() == b"".join(event.line() for event in family)


def test_the_file_of_another_run_is_left_alone(family, tmp_path):
    path = tmp_path / "lineage.jsonl"
    lineage_of([family[0], family[1], born(7)], path)
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match=r"lineage\.jsonl holds the lineage of an earlier run"):
        Lineage(path).record(family[0])
    resumed = Lineage(path)
    with pytest.raises(ValueError, match="line 3 differs"):
        resumed.load_state_dict(lineage_of(family).state_dict())
    assert len(resumed) == 0
    assert path.read_bytes() == before

    lineage_of(family[:2], tmp_path / "other")
    replacing = Lineage(path, overwrite=True)
    for event in family[:2]:
        replacing.record(event)
    assert path.read_bytes() == (tmp_path / "other").read_bytes()
    replacing = Lineage(path, overwrite=True)
    replacing.load_state_dict(lineage_of([born(9)]).state_dict())
    assert path.read_bytes() == born(9).line()


@pytest.mark.parametrize("cut", [1, 20])
def test_an_unfinished_last_line_is_left_out_with_a_warning(family, tmp_path, cut):
    path = tmp_path / "lineage.jsonl"
    lineage_of(family, path)
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.warns(UserWarning, match=r"lineage\.jsonl: line 20 was not finished"):
        assert list(Lineage.read(path)) == family[:-1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"", "it is not JSON: Expecting value at column 1"),
        (b"{", "Expecting property name"),
        (b"[1]", "it is no record; a record has an event, one of born, evaluated"),
        (b'{"event": ["born"]}', "it is no record"),
        (b'{"event": "diverged", "agent": 0, "generation": 0, "pairs": 0}', "'reason'"),
        (b'{"event": "diverged", "agent": 0, "generation": 0, "pairs": 0, "reason": "", "when": 1}', "'when'"),
        (b'{"event": "diverged", "agent": 0, "generation": 0, "pairs": 1.5, "reason": ""}', r"pairs=1\.5"),
        (b'{"event": "final", "agent": 0, "pairs": 0, "split": "test", "fitness": NaN, "error": 0}', "bare NaN"),
        (b'{"event": "diverged", "agent": 9, "generation": 0, "pairs": 0, "reason": ""}', "no agent 9 was born"),
        (b"\xff\xfe", "utf"),
    ],
)
def test_any_other_malformed_line_is_an_error_that_names_it(family, tmp_path, line, message):
    path = tmp_path / "lineage.jsonl"
    path.write_bytes(family[0].line() + line + b"\n" + family[1].line())
    with pytest.raises(ValueError, match=rf"lineage\.jsonl, line 2: .*{message}"):
        Lineage.read(path)


def test_a_malformed_state_changes_nothing(family, tmp_path):
    lineage = lineage_of(family[:3], tmp_path / "lineage.jsonl")
    before = (tmp_path / "lineage.jsonl").read_bytes()
    state = lineage_of(family).state_dict()
    del state["records"][5]["fitness"]
    with pytest.raises(ValueError, match=r"Record 5 of the lineage's state: .*'fitness'"):
        lineage.load_state_dict(state)
    assert list(lineage) == family[:3]
    assert (tmp_path / "lineage.jsonl").read_bytes() == before


# The family ---------------------------------------------------------------------------------------------------------


def test_ancestry(family):
    lineage = lineage_of(family)
    assert [lineage.ancestry(agent) for agent in range(5)] == [[0], [1], [2], [0, 3], [0, 3, 4]]
    with pytest.raises(ValueError, match=r"No agent 5 in this lineage; there are \[0, 1, 2, 3, 4\]"):
        lineage.ancestry(5)


@given(st.lists(st.integers(0, 10**6), max_size=40))
def test_ancestry_follows_parents_in_any_tree(choices):
    parents: list[int | None] = [None]
    for number, choice in enumerate(choices, start=1):
        parents.append(choice % number)
    lineage = lineage_of([born(agent, parent) for agent, parent in enumerate(parents)])
    for agent, parent in enumerate(parents):
        assert lineage.ancestry(agent) == ([] if parent is None else lineage.ancestry(parent)) + [agent]
        assert lineage.agents[agent].children == tuple(c for c, p in enumerate(parents) if p == agent)


def test_what_is_known_of_each_agent(family):
    lineage = lineage_of(family)
    agents = lineage.agents
    assert list(agents) == [0, 1, 2, 3, 4]
    assert [agents[i].parent for i in agents] == [None, None, None, 0, 3]
    assert [agents[i].children for i in agents] == [(3,), (), (), (4,), ()]
    assert [agents[i].alive for i in agents] == [True, False, False, True, True]
    assert [agents[i].died for i in agents] == [None, 200, 40, None, None]
    assert [agents[i].birth.pairs for i in agents] == [0, 0, 0, 100, 200]
    assert [[e.pairs for e in agents[i].evaluations] for i in agents] == [
        [100, 200, 300],
        [100, 200],
        [],
        [200, 300],
        [300],
    ]
    assert agents[2].diverged == family[3]
    assert agents[1].replaced == family[13]
    assert agents[3].mutations == (family[9],)
    assert lineage.of(Selected) == [family[6], family[13]]
    assert lineage.of(Final) == [family[-1]]
    assert lineage.pairs == 300
    assert len(lineage) == 20


def test_hyperparameters_at_a_moment(family):
    lineage = lineage_of(family)
    assert [lineage.hyperparameters(0, pairs)["lr"] for pairs in (0, 99, 100, 300)] == [1e-5, 1e-5, 8e-6, 8e-6]
    assert lineage.hyperparameters(4) == {"lr": 2e-5, "beta": 0.1, "batch_size": 4, "loss_type": ("hinge", "sft")}
    assert lineage.agents[0].values("lr") == [(0, 1e-5), (100, 8e-6)]
    assert lineage.agents[0].values("momentum") == []
    with pytest.raises(ValueError, match="Agent 4 was born after 200 pairs, not by pairs=199"):
        lineage.hyperparameters(4, 199)


def test_a_parameter_that_birth_does_not_name_has_its_old_value_until_it_mutates():
    lineage = lineage_of([born(), Mutated(agent=0, generation=1, pairs=5, parameter="decay", old=0.1, new=0.2)])
    assert [lineage.hyperparameters(0, pairs) for pairs in (0, 5)] == [{"decay": 0.1}, {"decay": 0.2}]
    assert lineage.agents[0].values("decay") == [(0, 0.1), (5, 0.2)]


def test_the_elite(family):
    founders = [born(agent) for agent in range(4)]
    assert Lineage().elite is None
    assert lineage_of(founders).elite is None
    assert lineage_of(family).elite == 4
    # Before the final figure: the fittest alive by its last evaluation.
    assert lineage_of(family[:-1]).elite == 4
    assert lineage_of(family[:6]).elite == 0

    def elite(*evaluations: Evaluated, ends: tuple[Diverged, ...] = ()) -> int | None:
        return lineage_of([*founders, *evaluations, *ends]).elite

    assert elite(evaluated(0, math.nan), evaluated(1, -5.0), evaluated(2, -6.0)) == 1
    assert elite(evaluated(0, 0.5, 0.1), evaluated(1, 0.5, 0.3), evaluated(2, 0.5, math.nan)) == 1
    assert elite(evaluated(2, 0.5), evaluated(1, 0.5)) == 1
    assert elite(evaluated(0, 0.9), evaluated(1, 0.5), evaluated(0, 0.4, pairs=20)) == 1
    ends = tuple(Diverged(agent=agent, generation=0, pairs=30, reason="") for agent in range(4))
    assert elite(evaluated(0, 0.9), evaluated(1, 0.5), ends=ends[:1]) == 1
    assert elite(evaluated(0, 0.9), evaluated(1, 0.5), ends=ends) == 0


def test_a_record_about_nobody_is_refused_and_not_written(family, tmp_path):
    path = tmp_path / "lineage.jsonl"
    lineage = lineage_of(family[:3], path)
    before = path.read_bytes()
    for event, message in [
        (born(1), "agent=1 was born before"),
        (born(3, parent=8), "Born: no agent 8 was born"),
        (evaluated(5, 0.5), "Evaluated: no agent 5"),
        (Selected(generation=1, pairs=1, elite=0, survivors=[0], replaced=[1, 6]), "Selected: no agent 6"),
        (Validated(agent=7, generation=0, pairs=1, metrics={}), "Validated: no agent 7"),
        (Final(agent=4, pairs=1, split="test", fitness=1, error=0), "Final: no agent 4"),
    ]:
        with pytest.raises(ValueError, match=message):
            lineage.record(event)
    assert list(lineage) == family[:3]
    assert path.read_bytes() == before
