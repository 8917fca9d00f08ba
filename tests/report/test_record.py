"""Reading what a run left: the same numbers, and errors that say where."""

import json
import math

import pytest

from agiledpo.hpo import Lineage
from agiledpo.report import ReportError, RunRecord


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_number_of_the_log(population_run):
    run = RunRecord.load(population_run)
    expected: dict[str, list[tuple[float, float]]] = {}
    for line in lines(population_run / "metrics.jsonl"):
        for name, value in line.items():
            if name != "step":
                expected.setdefault(name, []).append((line["step"], float(value)))
    assert set(run.series) == set(expected)
    for name, points in expected.items():
        assert [repr(point) for point in zip(run.series[name].steps, run.series[name].values, strict=True)] == [
            repr((float(step), value)) for step, value in points
        ]
    assert run.rows == 32
    assert run.attempts == []
    assert run.seconds == 83.4
    assert (run.algorithm, run.unit, run.name) == ("DPO", "pairs", "population")
    assert run.config["lora"] == {"r": 4}
    assert run.missing == []
    told = lines(population_run / "samples.jsonl")
    assert [vars(answer) for answer in run.answers] == told
    assert run.lineage is not None
    assert list(run.lineage) == list(Lineage.read(population_run / "lineage.jsonl"))
    assert run.indices == sorted(run.lineage.agents)


def test_an_algorithm_that_nobody_told(grpo_run):
    run = RunRecord.load(grpo_run)
    assert (run.algorithm, run.unit) == ("GRPO", "prompts")
    elapsed = [
        line["time/elapsed_seconds"] for line in lines(grpo_run / "metrics.jsonl") if "time/elapsed_seconds" in line
    ]
    assert run.seconds == elapsed[-1]
    assert any("about.json is missing" in sentence for sentence in run.missing)


def test_time_of_several_attempts_adds_up(tmp_path):
    log = tmp_path / "metrics.jsonl"
    times = [3.0, 7.0, 2.0, 5.0]
    log.write_text("".join(json.dumps({"step": i, "time/elapsed_seconds": t}) + "\n" for i, t in enumerate(times)))
    assert RunRecord.load(tmp_path).seconds == 12.0


@pytest.mark.parametrize(("told", "seconds"), [(None, 33.0), (20.0, 33.0), (40.0, 40.0)])
def test_time_before_a_kill_counts(tmp_path, told, seconds):
    # Each line: rows, seconds since its attempt began, seconds since the line before or since training went on. The
    # second attempt, whose figures come later than the first one's last, took 4 s to load; the third is the shortest.
    attempts = [(4, 5.0, 5.0), (8, 10.0, 5.0), (12, 15.0, 11.0), (16, 20.0, 5.0), (20, 3.0, 3.0)]
    text = [
        {"step": step, "time/elapsed_seconds": elapsed, "time/rows_per_second": 4 / since}
        for step, elapsed, since in attempts
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in text))
    (tmp_path / "about.json").write_text(json.dumps({"seconds": told}))
    assert RunRecord.load(tmp_path).seconds == seconds


@pytest.mark.parametrize(
    ("files", "told"),
    [
        (["metrics.jsonl"], ["lineage.jsonl is missing", "samples.jsonl", "config.yaml", "about.json"]),
        (["lineage.jsonl"], ["metrics.jsonl is missing", "samples.jsonl", "config.yaml", "about.json"]),
        (["about.json"], ["metrics.jsonl", "lineage.jsonl", "samples.jsonl", "config.yaml"]),
    ],
)
def test_says_what_is_missing(population_run, copied, files, told):
    missing = RunRecord.load(copied(population_run, *files)).missing
    assert len(missing) == len(told)
    assert all(any(word in sentence for sentence in missing) for word in told)


def test_last_lines_that_are_cut_off(population_run, copied):
    place = copied(population_run)
    whole = RunRecord.load(place)
    for file in ("metrics.jsonl", "samples.jsonl", "lineage.jsonl"):
        text = (place / file).read_bytes()
        (place / file).write_bytes(text[:-7])
    cut = RunRecord.load(place)
    for file in ("metrics.jsonl", "samples.jsonl", "lineage.jsonl"):
        (sentence,) = [sentence for sentence in cut.missing if file in sentence]
        number = len((place / file).read_bytes().split(b"\n"))
        assert f"line {number}" in sentence
    assert len(cut.answers) == len(whole.answers) - 1
    assert "final/fitness" in whole.series
    assert "final/fitness" not in cut.series


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("metrics.jsonl", "{", r"metrics.jsonl, line 2: it is not JSON"),
        ("metrics.jsonl", "[1]", r"metrics.jsonl, line 2: it is a list"),
        ("metrics.jsonl", '{"train/agent_0/loss": 1}', r"metrics.jsonl, line 2: step=None is no number"),
        ("metrics.jsonl", '{"step": 99, "a": "much"}', r"metrics.jsonl, line 2: a='much' is no number"),
        ("metrics.jsonl", '{"step": 0}', r"line 2: step=0 comes after 4. Two runs"),
        ("samples.jsonl", "{}", r"samples.jsonl, line 2: it lacks step, agent"),
        ("lineage.jsonl", '{"event": "party"}', r"lineage.jsonl, line 2: it is no record"),
        ("config.yaml", "a: [", r"config.yaml, line \d+: it is not YAML"),
        ("about.json", "{", r"about.json, line \d+: it is not JSON"),
    ],
)
def test_damaged_files_are_named_with_the_line(population_run, copied, file, line, message):
    place = copied(population_run)
    parts = (place / file).read_text().split("\n")
    parts[1] = line
    (place / file).write_text("\n".join(parts))
    with pytest.raises(ReportError, match=message):
        RunRecord.load(place)


def test_an_answer_of_the_wrong_type(population_run, copied):
    place = copied(population_run)
    first = lines(place / "samples.jsonl")[0]
    (place / "samples.jsonl").write_text(json.dumps({**first, "answer": 3}) + "\n")
    with pytest.raises(ReportError, match=r"samples.jsonl, line 1: answer is 3"):
        RunRecord.load(place)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.yaml", b"lr: 1\nname: a\x07b\n", r"config.yaml, line 2: it is not YAML: .*#x0007"),
        ("config.yaml", b"lr: 1\nname: \xff\n", r"config.yaml, line 2: it is not UTF-8"),
        ("config.yaml", b"made: 2026-13-45\n", r"config.yaml: it is not YAML: month must be"),
        ("about.json", b'{"error": "\xff"}', r"about.json, line 1: it is not UTF-8"),
        ("lineage.jsonl", b"\xff\n", r"lineage.jsonl, line 1: "),
        ("metrics.jsonl", b'{"step": 1%s}\n' % (b"0" * 400), r"metrics.jsonl, line 1: step=10*\.\.\. is no number"),
    ],
)
def test_files_that_hold_something_odd(tmp_path, file, content, message):
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ReportError, match=message):
        RunRecord.load(tmp_path)


@pytest.mark.parametrize("prompt", [["x"], [{"role": "user", "content": "x"}, None]])
def test_a_prompt_that_is_no_conversation(tmp_path, prompt):
    line = {"step": 0, "agent": None, "row": 0, "prompt": prompt, "answer": "", "tokens": 1, "finished": True}
    (tmp_path / "samples.jsonl").write_text(json.dumps({**line, "kl_per_token": 0.0, "chosen": None}) + "\n")
    with pytest.raises(ReportError, match=r"samples.jsonl, line 1: prompt holds .* chat messages are objects"):
        RunRecord.load(tmp_path)


def test_no_run(tmp_path):
    with pytest.raises(ReportError, match="holds no run"):
        RunRecord.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="is no directory"):
        RunRecord.load(tmp_path / "nowhere")


def test_numbers_that_are_none(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "a": "NaN", "b": "Infinity", "c": "-Infinity"}\n')
    series = RunRecord.load(tmp_path).series
    assert math.isnan(series["a"].values[0])
    assert (series["b"].values[0], series["c"].values[0]) == (math.inf, -math.inf)
