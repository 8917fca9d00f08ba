"""A full or failing disk is an OSError; everything else stays what it is."""

import pytest

from agiledpo.disk import disk_errors


def test_other_errors_are_left_alone(tmp_path):
    with pytest.raises(RuntimeError, match="out of memory") as caught, disk_errors(tmp_path):
        raise RuntimeError("CUDA out of memory")
    assert type(caught.value) is RuntimeError
