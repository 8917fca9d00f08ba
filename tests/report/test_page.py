"""What the page holds: the log's numbers, whatever files there are, and nothing that comes from elsewhere."""

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import plotly.graph_objects as go
import pytest

from agiledpo.hpo import Lineage
from agiledpo.hpo.records import Born, Evaluated, Selected
from agiledpo.report import RunRecord, Series, write_report
from agiledpo.report.lives import Lives
from agiledpo.report.seen import Seen
from agiledpo.report.summary import Summary, duration, number


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def figures(page: Path) -> dict:
    (text,) = re.findall(r'<script type="application/json" id="figures">(.*?)</script>', page.read_text())
    return json.loads(text)


class Words(HTMLParser):
    """The text that a reader sees, without scripts and styles."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.text, self.tags, self._skipped = "", [], 0
        self.feed(page.read_text())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._skipped += tag in ("script", "style")
        self.text += " " if tag in ("th", "td") else ""

    def handle_endtag(self, tag):
        self._skipped -= tag in ("script", "style")

    def handle_data(self, data):
        if not self._skipped:
            self.text += data


def points(traces) -> set[tuple[int | None, float, float]]:
    """Agent, step and value of everything that is drawn of agents."""
    return {
        (agent, x, y)
        for trace in traces
        if "customdata" in trace
        for agent, x, y in zip(trace["customdata"], trace["x"], trace["y"], strict=True)
        if y is not None
    }


def test_the_curves_are_the_log(population_run, tmp_path):
    drawn = figures(write_report(RunRecord.load(population_run), tmp_path / "report.html"))
    log = lines(population_run / "metrics.jsonl")

    def logged(phase: str, metric: str) -> set[tuple[int, float, float]]:
        pattern = re.compile(rf"{phase}/agent_(\d+)/{re.escape(metric)}")
        return {
            (int(match[1]), line["step"], value)
            for line in log
            for name, value in line.items()
            if (match := pattern.fullmatch(name))
        }

    assert points(drawn["fitness"]["data"]) == logged("eval", "fitness")
    assert points(drawn["grad-norm"]["data"]) == logged("train", "grad_norm")
    assert points(drawn["rewards-accuracies"]["data"]) == logged("train", "rewards/accuracies")
    assert points(drawn["parameter-lr"]["data"]) == logged("train", "lr")
    training = [trace for trace in drawn["loss"]["data"] if trace["name"] != "held out"]
    assert points(training) == logged("train", "loss")
    # Bars are the standard errors, point by point.
    errors = {(agent, step): error for agent, step, error in logged("eval", "fitness_error")}
    best = next(trace for trace in drawn["fitness"]["data"] if "error_y" in trace and "customdata" in trace)
    assert best["error_y"]["array"] == [errors[point] for point in zip(best["customdata"], best["x"], strict=True)]
    final = next(trace for trace in drawn["fitness"]["data"] if trace["name"] == "final split")
    assert (final["y"], final["error_y"]["array"]) == ([log[-1]["final/fitness"]], [log[-1]["final/fitness_error"]])
    # Validation: a share p of n pairs has the standard error sqrt(p (1 - p) / (n - 1)).
    (validation,) = drawn["validation"]["data"]
    shares = [line["validation-other_accuracy"] for line in log if "validation-other_accuracy" in line]
    assert validation["y"] == shares
    assert validation["error_y"]["array"] == pytest.approx([math.sqrt(p * (1 - p) / 4) for p in shares])
    kl = next(trace for trace in drawn["sample-kl"]["data"] if trace["mode"] == "markers")
    assert kl["y"] == [line["kl_per_token"] for line in lines(population_run / "samples.jsonl")]


def test_plotly_takes_every_chart(population_run, grpo_run, tmp_path):
    for number_, run in enumerate((population_run, grpo_run)):
        for figure in figures(write_report(RunRecord.load(run), tmp_path / f"{number_}.html")).values():
            text = re.sub(r'"@[\w-]+"', '"#123456"', json.dumps(figure))
            plain = json.loads(text)
            go.Figure(plain["data"], plain["layout"])  # refuses names and values that plotly.js would ignore


def test_the_verdict(population_run):
    summary = Summary.of(RunRecord.load(population_run))
    log = [line for line in lines(population_run / "metrics.jsonl") if "eval/best_fitness" in line]
    assert summary.first is not None
    assert summary.last is not None
    assert (summary.first.value, summary.first.step) == (log[0]["eval/best_fitness"], log[0]["step"])
    assert (summary.last.value, summary.last.step) == (log[-1]["eval/best_fitness"], log[-1]["step"])
    assert summary.last.error == log[-1][f"eval/agent_{summary.last.agent}/fitness_error"]
    assert summary.verdict.startswith("Preference accuracy on held-out pairs ")
    assert summary.verdict.endswith(f"it is {summary.final}.")
    assert "after 32 pairs per agent, in 1 min 23 s" in summary.verdict


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ([(0.5, 0.05), (0.7, 0.05)], "rose from 0.500 ± 0.050 (first measured after 4 rows) to 0.700 ± 0.050"),
        ([(0.7, 0.05), (0.5, 0.05)], "fell from"),
        ([(0.5, 0.05), (0.55, 0.05)], "is within its error of where it was first measured"),
        ([(0.5, 0.05)], "is 0.500 ± 0.050 after 4 rows per agent; it was measured once"),
        ([("NaN", "NaN"), (0.5, 0.05)], "went from"),
    ],
)
def test_the_verdict_says_only_what_the_errors_allow(tmp_path, values, told):
    text = [
        {"step": 4 * place, "eval/agent_0/fitness": value, "eval/agent_0/fitness_error": error}
        for place, (value, error) in enumerate(values, start=1)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in text))
    run = RunRecord.load(tmp_path)
    if told == "went from":
        assert Summary.of(run).first is None  # nobody was fit then
    else:
        assert told in Summary.of(run).verdict


def test_lines_end_where_agents_were_replaced(population_run):
    run = RunRecord.load(population_run)
    lives, agents = Lives.of(run), run.lineage.agents
    assert list(lives.shares) == run.lineage.ancestry(run.lineage.elite)
    drawn = lives.lines(run.agents["train", "loss"])
    for index, series in drawn.gone.items():
        assert series.steps[-1] == agents[index].died
    for index in drawn.living:
        assert agents[index].alive
    steps = [step for _, series in drawn.elite for step in series.steps]
    assert steps == sorted(set(steps)) == list(range(4, 33, 4))  # an unbroken line from the founder to the best


def written(place: Path, *told: dict) -> RunRecord:
    (place / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in told))
    return RunRecord.load(place)


def test_an_error_that_is_not_known_is_not_zero(tmp_path):
    run = written(
        tmp_path,
        {"step": 4, "eval/agent_0/fitness": 0.5, "eval/agent_0/fitness_error": "NaN"},
        {"step": 8, "eval/agent_0/fitness": 0.6, "eval/agent_0/fitness_error": 0.125},
        {"step": 12, "eval/agent_0/fitness": 0.7},
        {"step": 12, "final/fitness": 0.8, "final/fitness_error": "NaN"},
    )
    best, final = figures(write_report(run))["fitness"]["data"]
    assert best["error_y"]["array"] == [None, 0.125, None]
    assert ["±" in hover for hover in best["hovertemplate"]] == [False, True, False]
    assert "± 0.12<" in best["hovertemplate"][1]
    assert "error_y" not in final
    assert "±" not in final["hovertemplate"]


def test_a_mean_leaves_out_what_is_not_finite(tmp_path):
    line = {"step": 0, "agent": None, "prompt": "a", "answer": "\ud800", "tokens": 1, "finished": True, "chosen": None}
    drift = ["Infinity", "-Infinity", 0.25, 0.75, "NaN"]
    (tmp_path / "samples.jsonl").write_text(
        "".join(json.dumps({**line, "row": row, "kl_per_token": kl}) + "\n" for row, kl in enumerate(drift))
    )
    (tmp_path / "about.json").write_text('{"seconds": Infinity}')
    run = RunRecord.load(tmp_path)
    dots, means = figures(write_report(run))["sample-kl"]["data"]
    assert dots["y"] == [None, None, 0.25, 0.75, None]
    assert means["y"] == [0.5]
    assert Summary.of(run).figures()["KL of sample answers, after"] == "0.500 nats per token, 2 of 5 answers"
    assert run.seconds is None


def test_validation_sets_are_drawn_once(tmp_path):
    run = written(
        tmp_path,
        {"step": 4, "validation-x_loss": 2.0, "validation-x_accuracy": 0.25, "validation-x_mean_token_accuracy": 0.25},
    )
    drawn = figures(write_report(run))["validation"]["data"]
    assert [(trace["name"], trace["y"]) for trace in drawn] == [("x", [0.25])]


def test_an_ancestors_line_goes_on_beside_its_child():
    lineage = Lineage()
    for event in (
        Born(agent=0, parent=None, generation=0, pairs=0, hyperparameters={}),
        Born(agent=1, parent=None, generation=0, pairs=0, hyperparameters={}),
        Selected(generation=1, pairs=8, elite=0, survivors=[0], replaced=[1]),
        Born(agent=2, parent=0, generation=1, pairs=8, hyperparameters={}),
    ):
        lineage.record(event)
    loss = {0: Series([4, 8, 12], [4, 8, 12]), 1: Series([4, 8], [5, 9]), 2: Series([12], [14])}
    lineage.record(Evaluated(agent=2, generation=1, pairs=12, fitness=0.9, error=0.1, tie_break=0.0))
    lives = Lives.of(RunRecord(path=Path("run"), name="run", lineage=lineage))
    assert lives == Lives(2, {0: (-math.inf, 8.0), 2: (8.0, math.inf)}, frozenset({0, 2}))
    drawn = lives.lines(loss)
    assert [(index, list(part.steps)) for index, part in drawn.elite] == [(0, [4, 8]), (2, [12])]
    assert list(drawn.living[0].steps) == [8, 12]  # from where they part
    assert {index: list(part.steps) for index, part in drawn.gone.items()} == {1: [4, 8]}


@pytest.mark.parametrize("file", ["config.yaml", "about.json", "metrics.jsonl", "lineage.jsonl", "samples.jsonl"])
def test_any_file_may_be_missing(population_run, copied, file):
    files = [each.name for each in population_run.iterdir() if each.name not in (file, "report.html")]
    page = write_report(RunRecord.load(copied(population_run, *files)))
    assert f"{file} is missing" in Words(page).text


@pytest.mark.parametrize("file", ["config.yaml", "about.json", "metrics.jsonl", "lineage.jsonl", "samples.jsonl"])
def test_any_file_may_be_all_there_is(population_run, copied, file):
    assert file == "metrics.jsonl" or not figures(write_report(RunRecord.load(copied(population_run, file)))).get(
        "loss"
    )


def test_a_run_that_was_killed_at_any_byte(population_run, copied):
    place = copied(population_run)
    names = ("metrics.jsonl", "lineage.jsonl", "samples.jsonl")
    whole = {name: (place / name).read_bytes() for name in names}
    for share in (0.0, 0.013, 0.31, 0.77):
        for name, content in whole.items():
            (place / name).write_bytes(content[: int(share * len(content))])
        assert Words(write_report(RunRecord.load(place))).text


def test_agents_that_diverged_leave_gaps(population_run, copied):
    place = copied(population_run)
    told = lines(place / "metrics.jsonl")
    names = [name for name in told[1] if name.startswith("train/agent_")]
    told[1] |= {name: "NaN" for name in names}
    (place / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in told))
    page = write_report(RunRecord.load(place))
    assert any(y is None for trace in figures(page)["loss"]["data"] for y in trace["y"])
    assert "NaN" not in json.dumps(figures(page))


def test_nothing_comes_from_elsewhere_and_answers_are_text(population_run, copied):
    place = copied(population_run)
    probe = "<script>alert(1)</script><img src=x onerror=alert(2)>\n\n  </script> &amp;"
    told = [{**line, "answer": probe, "prompt": probe, "chosen": probe} for line in lines(place / "samples.jsonl")]
    (place / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in told))
    (place / "config.yaml").write_text(f"note: '{probe.splitlines()[0]}'\n")
    words = Words(write_report(RunRecord.load(place)))
    assert probe in words.text
    assert probe.splitlines()[0] in words.text.split("Configuration")[1]
    scripts = [attributes for tag, attributes in words.tags if tag == "script"]
    assert scripts == [{"type": "application/json", "id": "figures"}, {}, {}]
    assert not [tag for tag, attributes in words.tags if tag in ("img", "iframe", "object") or "onerror" in attributes]
    links = [attributes.get("href", "") for tag, attributes in words.tags if "href" in attributes]
    assert all(link.startswith(("#", "data:")) for link in links)
    assert not [attributes for _, attributes in words.tags if "src" in attributes]
    (policy,) = [a["content"] for tag, a in words.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none';")
    assert "'unsafe-inline'" not in policy.split("script-src")[1]


def test_two_runs_side_by_side(population_run, grpo_run, copied, tmp_path):
    other = copied(population_run, name="population")
    (other / "config.yaml").write_text((other / "config.yaml").read_text().replace("lr: 0.01", "lr: 0.002"))
    runs = [RunRecord.load(population_run), RunRecord.load(other)]
    page = write_report(runs, tmp_path / "report.html")
    words = Words(page).text
    # Runs whose directories have one name are told apart by the directories above.
    names = [f"{run.path.parent.name}/population" for run in runs]
    assert all(name in words for name in names)
    differing = words.split("Settings that differ")[1].split("On held-out data")[0].split()
    assert differing[2:5] == ["lr", "0.01", "0.002"]
    # Prompts agree, so each of the two is shown once with both runs' answers.
    assert words.split("Held-out prompts, which")[1].count("Before training") == 2 * 2
    colours = {trace["line"]["color"].split("-")[0] for trace in figures(page)["grad-norm"]["data"]}
    assert colours == {"@run0", "@run1"}
    mixed = figures(write_report([runs[0], RunRecord.load(grpo_run)], tmp_path / "mixed.html"))
    assert {"mean-reward", "rewards-margins"} <= set(mixed)


def test_how_many_runs(population_run):
    with pytest.raises(ValueError, match="of 1 to 6 runs, got 0"):
        write_report([])
    with pytest.raises(ValueError, match="of 1 to 6 runs, got 7"):
        write_report([RunRecord.load(population_run)] * 7)


def test_a_large_population_stays_small(tmp_path):
    steps = [8.0 * step for step in range(1, 2001)]
    metrics = ("loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "grad_norm", "tokens_per_second", "lr")
    series = {
        f"train/agent_{agent}/{metric}": Series(steps, [math.sin(step / 7 + agent) + 2 for step in steps])
        for agent in range(64)
        for metric in metrics
    }
    page = write_report(RunRecord(path=tmp_path, name="large", series=series), tmp_path / "report.html")
    assert page.stat().st_size < 8e6
    assert "Thinned out" in Words(page).text
    drawn = [y for trace in figures(page)["loss"]["data"] for y in trace["y"] if y is not None]
    values = [value for name, one in series.items() if name.endswith("/loss") for value in one.values]
    assert (min(drawn), max(drawn)) == (min(values), max(values))
    assert len(drawn) < 6000


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.52345, "0.523"), (1234567.0, "1.23e+06"), (0.0, "0"), (-3.14159, "-3.14"), (math.nan, "nan"), (2e-5, "2e-05")],
)
def test_numbers_as_text(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(3.14, "3.1 s"), (59.4, "59 s"), (83.4, "1 min 23 s"), (7199.9, "2 h 0 min")]
)
def test_time_spans_as_text(seconds, text):
    assert duration(seconds) == text


def test_runs_know_their_colours(population_run):
    run = RunRecord.load(population_run)
    assert Seen(run, Lives.of(run), 1, "b: ").colour == "@run1"
