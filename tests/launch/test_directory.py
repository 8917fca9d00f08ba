"""The directory of a run, without a run."""

import json
from contextlib import suppress
from pathlib import Path

import pytest

from agiledpo.launch.directory import RunDirectory, fresh_directory


def test_two_runs_of_a_second_have_directories_of_their_own(tmp_path: Path) -> None:
    paths = {fresh_directory("dpo", tmp_path / "runs").path for _ in range(4)}
    assert len(paths) == 4
    assert all(path.is_dir() for path in paths)


def test_time_before_a_kill_counts(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.about.write_text(json.dumps({"status": "running", "seconds": None, "started": "then"}))
    # Two attempts, the second of which was killed in the midst of a line.
    lines = [{"time/elapsed_seconds": seconds} for seconds in (10.0, 100.0, 5.0, 50.0)]
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"time/ela')
    with run.recorded("dpo", processes=1, resumed=True) as about:
        about.taken_up()
    said = json.loads(run.about.read_text())
    assert said["seconds"] == pytest.approx(150, abs=2)
    assert (said["started"], said["status"]) == ("then", "finished")


@pytest.mark.parametrize("taken_up", [False, True])
def test_what_is_said_of_a_run_stays_until_it_is_taken_up(tmp_path: Path, taken_up: bool) -> None:
    run = RunDirectory(tmp_path)
    before = json.dumps({"status": "finished", "seconds": 7.0})
    run.about.write_text(before)
    with suppress(RuntimeError), run.recorded("dpo", processes=1, resumed=True) as about:
        assert run.about.read_text() == before
        if taken_up:
            about.taken_up()
            assert json.loads(run.about.read_text())["status"] == "running"
        raise RuntimeError
    assert (run.about.read_text() == before) is not taken_up
    if taken_up:
        assert json.loads(run.about.read_text())["status"] == "failed"
