"""`agiledpo report`, as it is called."""

import json

import pytest
from typer.testing import CliRunner

from agiledpo.cli import app


@pytest.fixture
def run(tmp_path):
    place = tmp_path / "first"
    place.mkdir()
    lines = [{"step": 4 * n, "train/agent_0/loss": 1 / n, "eval/agent_0/fitness": 0.5} for n in (1, 2)]
    (place / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return place


def test_a_report_is_written_into_the_run(run):
    result = CliRunner().invoke(app, ["report", str(run)])
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"{run / 'report.html'}: ")
    assert (run / "report.html").read_text().startswith("<!doctype html>")
    assert CliRunner().invoke(app, ["report", str(run)]).exit_code == 0  # again, as the run goes on


def test_several_runs_into_a_file(run, tmp_path):
    output = tmp_path / "there" / "both.html"
    result = CliRunner().invoke(app, ["report", str(run), str(run), "--output", str(output)])
    assert result.exit_code == 0, result.output
    assert "2 runs compared" in output.read_text()


def test_a_comparison_leaves_the_report_of_a_run_alone(run):
    assert CliRunner().invoke(app, ["report", str(run)]).exit_code == 0
    alone = (run / "report.html").read_text()
    assert CliRunner().invoke(app, ["report", str(run), str(run)]).exit_code == 0
    assert (run / "report.html").read_text() == alone
    assert "2 runs compared" in (run / f"report-with-{run.name}.html").read_text()


@pytest.mark.parametrize(("line", "told"), [("{", "metrics.jsonl, line 3: it is not JSON"), (None, "is no directory")])
def test_what_is_wrong_is_said_in_a_sentence(run, line, told):
    if line is None:
        run = run / "nowhere"
    else:
        with (run / "metrics.jsonl").open("a") as file:
            file.write(line + "\n")
    result = CliRunner().invoke(app, ["report", str(run)])
    assert result.exit_code == 1
    assert told in result.stderr
    assert not (run / "report.html").exists()
