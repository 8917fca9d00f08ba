"""What a checkpoint consists of: versions, the base model it belongs to, and the checksum of every file."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Self, get_args

from agiledpo.checkpoint.directory import FORMAT, MANIFEST
from agiledpo.checkpoint.errors import CheckpointError
from agiledpo.checkpoint.identity import BaseModelIdentity

FORMAT_VERSION = 2

Kind = Literal["agent", "run"]

# Suffixes under which pickles travel. A checkpoint has none that its manifest does not list.
PICKLES = frozenset({".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt", ".joblib"})

_LIBRARIES = ("agiledpo", "torch", "transformers", "peft")
_AGAIN = "Take another checkpoint, or copy this one again from where it was written."


def library_versions() -> dict[str, str]:
    """Versions of the libraries that write checkpoints, by name."""
    return {name: _version(name) for name in _LIBRARIES}


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "not installed"


@dataclass(frozen=True)
class FileRecord:
    """One file of a checkpoint.

    Args:
        bytes: Its size.
        sha256: SHA-256 of its content, 64 hexadecimal digits.
    """

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The table of contents of a checkpoint.

    Args:
        kind: ``"agent"`` or ``"run"``; a run holds agents in directories of its own.
        algorithm: Class that wrote it.
        base_model: Base model that it belongs to.
        tokenizer: SHA-256 of what the tokenizer does; None if none was saved.
        metrics: Figures of the run when it was written, by name; finite.
        versions: Libraries that wrote it.
        created: Time of writing, ISO 8601, UTC.
        run: Name of the run that a run's checkpoint is of; None for an agent's.
        files: Every file but this one, by its path from here. Of a directory that is a checkpoint itself only the
            manifest is listed, which lists the rest.
        format_version: Version of the format.
    """

    kind: Kind
    algorithm: str
    base_model: BaseModelIdentity | None = None
    tokenizer: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=library_versions)
    created: str = field(default_factory=lambda: now())
    run: str | None = None
    files: Mapping[str, FileRecord] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def write(self, draft: Path) -> Self:
        """Write the manifest of a directory in which everything else has been written.

        Args:
            draft: The directory.

        Returns:
            The manifest with the files in it.
        """
        files = {_relative(file, draft): _record(file) for file in _listed(draft)}
        written = replace(self, files=dict(sorted(files.items())))
        content = {"format": FORMAT, **asdict(written)}
        # JSON has no NaN or infinity.
        content["metrics"] = {name: float(value) for name, value in self.metrics.items() if math.isfinite(value)}
        text = json.dumps({**content, "checksum": _checksum(content)}, indent=1)
        (draft / MANIFEST).write_text(text + "\n", encoding="utf-8")
        return written

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a manifest without looking at the files that it lists.

        Args:
            path: The checkpoint's directory.

        Raises:
            CheckpointError: It is missing, damaged, or of a newer format.
        """
        file = path / MANIFEST
        try:
            content = json.loads(file.read_bytes())
        except FileNotFoundError:
            raise CheckpointError(f"{file} is missing, so {path} is no complete checkpoint. {_AGAIN}") from None
        except OSError as error:
            raise CheckpointError(f"{file} cannot be read: {error.strerror}.") from error
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{file} is damaged: {error}. {_AGAIN}") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise CheckpointError(
                f"{file} is not the manifest of a checkpoint of agiledpo. Look for another directory."
            )
        number = content.get("format_version")
        if isinstance(number, int) and number > FORMAT_VERSION:
            raise CheckpointError(
                f"{file} has format version {number}, and this is agiledpo {_version('agiledpo')}, which reads up to "
                f"{FORMAT_VERSION}. Install the version of agiledpo that wrote it, or a later one."
            )
        return cls._from_json(content, file)

    @classmethod
    def _from_json(cls, content: dict[str, Any], file: Path) -> Self:
        claimed = content.pop("checksum", None)
        try:
            fits = claimed == _checksum(content)
        except RecursionError as error:
            raise CheckpointError(f"{file} is damaged: {error}. {_AGAIN}") from error
        if not fits:
            raise CheckpointError(f"{file} is damaged: its own checksum does not fit. {_AGAIN}")
        try:
            del content["format"]
            base = content.pop("base_model")
            files = {name: FileRecord(**record) for name, record in content.pop("files").items()}
            manifest = cls(**content, base_model=None if base is None else BaseModelIdentity(**base), files=files)
        except (AttributeError, KeyError, TypeError) as error:
            raise CheckpointError(f"{file} is not as agiledpo writes it: {error}. {_AGAIN}") from error
        if manifest.kind not in get_args(Kind):
            raise CheckpointError(f"{file} is of kind {manifest.kind!r}; known are {', '.join(get_args(Kind))}.")
        return manifest

    @classmethod
    def verify(cls, path: Path) -> Self:
        """Read a manifest and check every file that it lists, those of nested checkpoints too.

        Args:
            path: The checkpoint's directory.

        Raises:
            CheckpointError: A file is missing, truncated, changed, of a newer format, leads out of the directory, or
                could be a pickle that is not listed; it is named.
        """
        manifest = cls.read(path)
        for name, record in manifest.files.items():
            _check_file(path, name, record)
        _check_unlisted(path, manifest)
        for directory in manifest.nested:
            Manifest.verify(path / directory)
        return manifest

    @classmethod
    def verify_part(cls, path: Path, part: str) -> Self:
        """Read a manifest and check what is in one directory of the checkpoint, and nothing else.

        Args:
            path: The checkpoint's directory.
            part: Name of a directory in it.

        Raises:
            CheckpointError: A file in it is missing, truncated, changed, not listed, or leads out of the checkpoint;
                it is named.
        """
        manifest = cls.read(path)
        for name, record in manifest.files.items():
            if PurePosixPath(name).is_relative_to(part):
                _check_file(path, name, record)
        for file in sorted((path / part).rglob("*")):
            if not file.is_dir() and _relative(file, path) not in manifest.files:
                raise CheckpointError(f"{file} is not listed by {path / MANIFEST}: it was added since. Remove it.")
        return manifest

    @property
    def nested(self) -> tuple[str, ...]:
        """Paths of the directories in this one that are checkpoints themselves."""
        return tuple(str(PurePosixPath(name).parent) for name in self.files if PurePosixPath(name).name == MANIFEST)


def now() -> str:
    """The time, ISO 8601, UTC, in a form that sorts as text."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def later(time: str) -> str:
    """The least time that sorts after another one.

    Args:
        time: What :func:`now` gave, here or on another machine.
    """
    return (datetime.fromisoformat(time) + timedelta(microseconds=1)).isoformat(timespec="microseconds")


def file_sha256(file: Path) -> str:
    """SHA-256 of a file's content, read piece by piece."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _record(file: Path) -> FileRecord:
    return FileRecord(file.stat().st_size, file_sha256(file))


def _listed(directory: Path, *, top: bool = True) -> Iterator[Path]:
    """Files to list: all but our manifest, and of nested checkpoints the manifest only."""
    if not top and (directory / MANIFEST).exists():
        yield directory / MANIFEST
        return
    for entry in sorted(directory.iterdir()):
        if entry.is_dir() and not entry.is_symlink():
            yield from _listed(entry, top=False)
        elif not top or entry.name != MANIFEST:
            yield entry


def _check_file(path: Path, name: str, record: FileRecord) -> None:
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts or "\\" in name or "\0" in name or not name:
        raise CheckpointError(f"{path / MANIFEST} lists {name!r}, which is outside the directory. Do not load it.")
    file = path / relative
    _check_inside(path, file)
    if not file.is_file():
        raise CheckpointError(f"{file} is missing. {_AGAIN}")
    size = file.stat().st_size
    if size != record.bytes:
        raise CheckpointError(
            f"{file} has {size} bytes instead of {record.bytes}: it is truncated or changed. {_AGAIN}"
        )
    if file_sha256(file) != record.sha256:
        raise CheckpointError(f"{file} has changed since it was written: its checksum does not fit. {_AGAIN}")


def _check_inside(path: Path, file: Path) -> None:
    if not file.resolve().is_relative_to(path.resolve()):
        raise CheckpointError(f"{file} leads out of the checkpoint, to {file.resolve()}. Do not load it.")


def _check_unlisted(path: Path, manifest: Manifest) -> None:
    # What is in a nested checkpoint is for its own manifest to list.
    nested = [path / directory for directory in manifest.nested]
    for file in path.rglob("*"):
        if file.is_symlink():
            _check_inside(path, file)
        if file.suffix.lower() not in PICKLES or file.is_dir() or any(file.is_relative_to(p) for p in nested):
            continue
        if _relative(file, path) not in manifest.files:
            raise CheckpointError(
                f"{file} could be a pickle, which runs code when it is read, and the manifest does not list it. "
                "Remove it if you know what it is; do not load the checkpoint otherwise."
            )


def _relative(file: Path, directory: Path) -> str:
    return file.relative_to(directory).as_posix()


def _checksum(content: Mapping[str, Any]) -> str:
    """SHA-256 over what a manifest says, however it is laid out."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
