"""Whoever dies, the others say so and end."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from agiledpo.distributed.vigil import Vigil

ROOT = Path(__file__).parents[2]
HOST = socket.gethostname()


class Ended:
    """How a crew ended: the exit codes and what each said."""

    def __init__(self, codes, seconds, directory):
        self.codes, self.seconds = codes, seconds
        self.said = [(directory / f"stderr_{rank}").read_text() for rank in range(len(codes))]


@pytest.fixture(scope="module")
def zygote():
    command = [sys.executable, str(Path(__file__).parent / "crew.py")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("MASTER_ADDR", None)
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env=environment
    )
    yield process
    process.stdin.close()
    process.wait(20)


@pytest.fixture
def crew(zygote, tmp_path):
    """Make processes that keep a vigil together: one for each deed, by rank."""

    def run(*deeds, patience=3.0, repeated=0, checkpoint="/runs/step_40"):
        order = {
            "deeds": deeds,
            "patience": patience,
            "repeated": repeated,
            "checkpoint": checkpoint,
            "directory": str(tmp_path),
        }
        zygote.stdin.write(json.dumps(order) + "\n")
        return Ended(**json.loads(zygote.stdout.readline()), directory=tmp_path)

    return run


@pytest.mark.parametrize("deed", ["is killed", "exits", "leaves a child behind"])
@pytest.mark.parametrize("dying", [0, 2])
def test_who_vanishes_is_named_by_all_others_at_once(crew, deed, dying):
    deeds = ["stays"] * 3
    deeds[dying] = deed
    ended = crew(*deeds)
    assert ended.codes.pop(dying) == (3 if deed == "exits" else -9)
    assert ended.codes == [1, 1]
    assert ended.said.pop(dying) == ""
    assert ended.seconds < 2.5  # less than patience: it is the connection's end that tells, no time limit
    for said in ended.said:
        assert f"rank {dying} (host {HOST}, pid " in said
        assert "has died without a word" in said
        assert "last complete checkpoint is /runs/step_40; go on with resume_from='latest'" in said


@pytest.mark.parametrize("failing", [0, 1])
def test_who_fails_is_named_with_the_reason(crew, failing):
    deeds = ["stays"] * 3
    deeds[failing] = "raises"
    ended = crew(*deeds, checkpoint=None)
    assert ended.codes == [1, 1, 1]
    assert "Traceback" in ended.said[failing]  # its own exception is raised as always
    assert "The run cannot go on" not in ended.said.pop(failing)
    for said in ended.said:
        assert f"rank {failing} (host {HOST}, pid " in said
        assert "has died: ValueError: no such pair: 17\nand more of it." in said
        assert "No checkpoint has been saved." in said
        assert "Traceback" not in said


def test_a_collective_that_breaks_does_not_hide_who_died(crew):
    ended = crew("waits for all", "waits for all", "is killed")
    assert ended.codes == [1, 1, -9]
    for said in ended.said[:2]:
        assert "rank 2 (host" in said
        assert "Connection closed by peer" not in said


def test_who_was_cut_off_waits_for_the_cause(crew):
    ended = crew("stays", "is cut off", "never comes", patience=1.5)
    assert ended.codes == [1, 1, -9]
    for said in ended.said[:2]:
        assert "rank 2 has not come to the run within 1.5 seconds" in said
        assert "Connection closed by peer" not in said


def test_a_broken_connection_that_nobody_explains_is_reported_itself(crew):
    ended = crew("stays", "is cut off", "stays", patience=1.0)
    assert ended.codes == [1, 1, 1]
    assert "Traceback" in ended.said[1]
    for said in (ended.said[0], ended.said[2]):
        assert f"rank 1 (host {HOST}" in said
        assert "has lost the others: RuntimeError: [third_party/gloo" in said


@pytest.mark.parametrize(
    "deeds",
    [
        ("leaves", "leaves late", "leaves"),
        ("leaves late", "leaves", "leaves"),
        ("stands still", "leaves", "leaves late"),
        ("leaves late", "stands still", "leaves late"),
    ],
)
def test_who_leaves_is_not_missed_and_who_stands_still_is_not_dead(crew, deeds):
    ended = crew(*deeds, patience=1.0, repeated=2)
    assert ended.codes == [0, 0, 0]
    assert ended.said == ["has gone on\n"] * 3


def test_when_all_are_told_to_stop_nobody_has_died(crew):
    ended = crew("is stopped", "is stopped late", "is stopped")
    assert ended.codes == [143, 143, 143]
    assert ended.said == ["", "", ""]


def test_when_one_is_told_to_stop_the_others_do_not_stay_for_ever(crew):
    ended = crew("stays", "is interrupted", "stays", patience=1.5)
    assert ended.codes == [1, 1, 1]
    assert "KeyboardInterrupt" in ended.said[1]
    for said in (ended.said[0], ended.said[2]):
        assert "has left: KeyboardInterrupt" in said


def test_when_all_fail_alike_each_raises_its_own_error(crew):
    ended = crew("raises", "raises", "raises", patience=30.0)
    assert ended.codes == [1, 1, 1]
    assert ended.seconds < 10
    for said in ended.said:
        assert said.count("ValueError: no such pair: 17") == 1
        assert "The run cannot go on" not in said


def test_one_process_needs_nobody():
    def nobody(value):
        raise AssertionError("asked for the others")

    with pytest.raises(KeyError), Vigil(0, 1, same=nobody, last_checkpoint=lambda: None):
        raise KeyError


@pytest.mark.parametrize("patience", [0.0, -1.0, float("nan")])
def test_patience_is_positive(patience):
    with pytest.raises(ValueError, match=f"patience={patience} is not positive"):
        Vigil(0, 2, same=lambda value: value, last_checkpoint=lambda: None, patience=patience)


def test_who_cannot_reach_rank_0_says_where_it_looked(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        place = [port, "token", "node-1", 17]
        vigil = Vigil(1, 2, same=lambda value: place, last_checkpoint=lambda: None)
        with pytest.raises(ConnectionError, match=rf"rank 1 .* no connection to rank 0 .*127\.0\.0\.1, port {port}"):
            vigil.__enter__()
