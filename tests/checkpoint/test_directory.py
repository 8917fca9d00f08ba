"""Directories that are complete or absent, whatever happens while they are written."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import agiledpo
from agiledpo.checkpoint import check_destination, check_writable, directory, settle, written_atomically
from agiledpo.checkpoint.directory import FORMAT

# Writes to the same place for ever, and says so each time.
_WRITER = """
import json, sys, time
from pathlib import Path
from agiledpo.checkpoint import written_atomically
number = 0
while True:
    number += 1
    with written_atomically(Path(sys.argv[1])) as draft:
        (draft / "manifest.json").write_text(json.dumps({"format": "agiledpo-checkpoint"}))
        for part in range(20):
            (draft / f"{part}.txt").write_text(str(number))
            time.sleep(0.0005)
    print(number, flush=True)
"""


def content(path: Path) -> dict[str, str]:
    return {str(file.relative_to(path)): file.read_text() for file in sorted(path.rglob("*")) if file.is_file()}


def write(path: Path, text: str) -> None:
    with written_atomically(path) as draft:
        (draft / "manifest.json").write_text(f'{{"format": "{FORMAT}"}}')
        (draft / "inner").mkdir()
        (draft / "inner" / "text").write_text(text)


@pytest.fixture(params=[True, False], ids=["exchange", "step aside"])
def way(request, monkeypatch):
    """Both ways of replacing a checkpoint; a file system without exchange takes the second."""
    if not request.param:
        monkeypatch.setattr(directory, "_exchange", lambda *_: False)


@pytest.mark.usefixtures("way")
def test_the_new_one_replaces_the_old_one_with_nothing_left_over(tmp_path):
    write(tmp_path / "a" / "b", "one")
    write(tmp_path / "a" / "b", "two")
    assert content(tmp_path / "a" / "b")["inner/text"] == "two"
    assert os.listdir(tmp_path / "a") == ["b"]


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), SystemExit(1)])
def test_an_error_while_writing_leaves_the_old_one(tmp_path, error):
    write(tmp_path / "c", "one")

    def fail():
        with written_atomically(tmp_path / "c") as draft:
            (draft / "manifest.json").write_text("half")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert content(tmp_path / "c")["inner/text"] == "one"
    assert os.listdir(tmp_path) == ["c"]


def test_an_error_while_stepping_aside_puts_the_old_one_back(tmp_path, monkeypatch):
    monkeypatch.setattr(directory, "_exchange", lambda *_: False)
    write(tmp_path / "c", "one")
    rename = Path.rename

    def failing(self, target):
        if ".draft." in self.name:
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path / "c", "two")
    assert content(tmp_path / "c")["inner/text"] == "one"
    assert os.listdir(tmp_path) == ["c"]


def test_a_process_that_is_killed_while_writing_leaves_a_whole_one(tmp_path):
    """SIGKILL at many moments: what is there is whole, and the next write clears up."""
    path = tmp_path / "c"
    environment = {**os.environ, "PYTHONPATH": str(Path(agiledpo.__file__).parent.parent), "HF_HUB_OFFLINE": "1"}
    drafts = 0
    writer = subprocess.Popen(
        [sys.executable, "-c", _FORKING_WRITER, str(path)], env=environment, stdout=subprocess.PIPE, text=True
    )
    with writer:
        for _ in range(40):
            child = int(writer.stdout.readline())
            time.sleep(0.003 + 0.0007 * (_ % 25))
            os.kill(child, signal.SIGKILL)
            assert writer.stdout.readline().strip() == "gone"
            if path.exists():
                assert len({text for name, text in content(path).items() if name != "manifest.json"}) == 1
                assert len(content(path)) == 21
            drafts += any(".draft." in name for name in os.listdir(tmp_path))
        writer.kill()
    assert drafts > 5  # it was hit in the middle
    write(path, "the last")
    assert os.listdir(tmp_path) == ["c"]


# A process that can be killed over and over without importing torch each time.
_FORKING_WRITER = """
import os, sys
import agiledpo.checkpoint
while True:
    child = os.fork()
    if not child:
        sys.stdout = open(os.devnull, "w")
        exec(WRITER)
    print(child, flush=True)
    os.waitpid(child, 0)
    print("gone", flush=True)
""".replace("WRITER", repr(_WRITER))


def test_settling_puts_back_what_had_stepped_aside(tmp_path):
    write(tmp_path / "c", "one")
    aside = tmp_path / ".c.aside.{}.{}.{}.0a".format(*dead())
    aside.mkdir()
    (tmp_path / "c").rename(aside / "checkpoint")
    settle(tmp_path / "c")
    assert content(tmp_path / "c")["inner/text"] == "one"
    assert os.listdir(tmp_path) == ["c"]


def dead() -> tuple[str, int, int]:
    """Host, number and start of a process that is gone."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    return directory._host(), gone.pid, 1


def test_only_drafts_of_processes_that_are_gone_are_removed(tmp_path):
    host, process = directory._host(), os.getpid()
    started = directory._started(process)
    assert started > 0
    living = {
        f".c.draft.{host}.{process}.{started}.0a",  # ours, of another thread
        f".c.draft.elsewhere.{dead()[1]}.1.0b",  # another machine's
        f".d.draft.{host}.{dead()[1]}.1.0c",  # another checkpoint's
        ".c.draft.notes",
        ".c.draft.mine.txt",
    }
    gone = {
        ".c.draft.{}.{}.{}.0d".format(*dead()),
        f".c.draft.{host}.{process}.{started - 1}.0e",  # an earlier process of the same number
        ".c.draft.elsewhere.1.1.0f",
    }
    for name in living | gone:
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("half")
    old = tmp_path / ".c.draft.elsewhere.1.1.0f"
    for file in (old / "file", old):
        os.utime(file, (time.time() - 2 * 24 * 3600,) * 2)
    write(tmp_path / "c", "one")
    assert set(os.listdir(tmp_path)) == living | {"c"}


@pytest.mark.parametrize("made", ["file", "notes", "other manifest"])
def test_what_is_not_a_checkpoint_is_never_replaced(tmp_path, made):
    path = tmp_path / "mine"
    if made == "file":
        path.write_text("keep")
    else:
        path.mkdir()
        (path / ("manifest.json" if made == "other manifest" else "notes.txt")).write_text('{"name": "my app"}')
    before = path.read_text() if made == "file" else content(path)
    with pytest.raises(FileExistsError, match="not a checkpoint"):
        check_destination(path)
    with pytest.raises(FileExistsError, match="not a checkpoint"):
        write(path, "new")
    assert (path.read_text() if made == "file" else content(path)) == before


def test_an_empty_directory_and_a_link_to_a_checkpoint_are_written_to(tmp_path):
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty", "one")
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    write(tmp_path / "link", "two")
    assert (tmp_path / "link").is_symlink()
    assert content(tmp_path / "empty")["inner/text"] == "two"


def test_a_directory_is_checked_before_it_is_needed(tmp_path):
    check_writable(tmp_path / "new" / "deep")
    assert os.listdir(tmp_path / "new" / "deep") == []
    (tmp_path / "file").write_text("")
    for impossible in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/agiledpo")):
        with pytest.raises(OSError, match="cannot be written to"):
            check_writable(impossible)
