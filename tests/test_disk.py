"""A full or failing disk is an OSError; everything else stays what it is."""

import os
import stat

import pytest

from agiledpo.disk import complete_or_absent, disk_errors


def test_other_errors_are_left_alone(tmp_path):
    with pytest.raises(RuntimeError, match="out of memory") as caught, disk_errors(tmp_path):
        raise RuntimeError("CUDA out of memory")
    assert type(caught.value) is RuntimeError


def test_a_file_is_complete_or_absent(tmp_path):
    path = tmp_path / "new" / "file"

    def interrupted():
        with complete_or_absent(path, overwrite=True) as file:
            file.write(b"half")
            assert not path.exists()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert os.listdir(path.parent) == []
    with complete_or_absent(path, overwrite=False) as file:
        file.write(b"whole")
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    with pytest.raises(FileExistsError, match="appeared"), complete_or_absent(path, overwrite=False) as file:
        file.write(b"other")
    assert path.read_bytes() == b"whole"
    with complete_or_absent(path, overwrite=True) as file:
        file.write(b"other")
    assert (path.read_bytes(), os.listdir(path.parent)) == (b"other", ["file"])
