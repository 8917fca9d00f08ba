"""Directories that are complete or absent, and that several processes fill."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from agiledpo.checkpoint.directory import written_atomically
from agiledpo.checkpoint.errors import CheckpointError
from agiledpo.distributed.team import Team


@contextmanager
def drafted(team: Team, path: Path, kind: str = "agent") -> Iterator[Path]:
    """Write a directory that is complete or absent, all processes of a team together.

    The leader makes it and gives it its name. Inside, nothing may fail in some processes only: files are the leader's
    to write, by :meth:`Team.leader_does`, and what each process adds it adds by :meth:`Team.everyone_does` after
    :func:`check_shared`.

    Args:
        team: The processes.
        path: Where it shall be, for the leader; the others need not see it.
        kind: What it will be: ``"agent"`` or ``"run"``.

    Yields:
        The leader's empty directory beside ``path``, in every process.

    Raises:
        FileExistsError: Something is at ``path`` that is not such a checkpoint; in every process.
        OSError: It could not be made or put in its place; in every process.
    """
    if team.is_alone:
        with written_atomically(path, kind) as draft:
            yield draft
        return
    with ExitStack() as unfinished:  # only the leader's has something in it: where an error comes by, it is removed
        draft = team.leader_does(lambda: unfinished.enter_context(written_atomically(path, kind)))
        yield draft
        team.leader_does(unfinished.pop_all().close)


def check_shared(team: Team, draft: Path) -> None:
    """Check that all processes see a directory that the leader made, before each writes into it.

    Args:
        team: The processes.
        draft: What :func:`drafted` yields.

    Raises:
        CheckpointError: One does not, in every process.
    """

    def look() -> None:
        if not draft.is_dir():  # its name is drawn at random, so it is no other host's
            raise CheckpointError(
                f"{draft.parent} must be on a file system that all processes share, because each writes its part of "
                "the checkpoint there, and this one does not see what the leader has made in it. Choose another place."
            )

    team.everyone_does(look)
