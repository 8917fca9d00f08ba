"""Links between Markdown files that work in the repository, made to work in the site."""

import logging
import os
import re
from pathlib import Path, PurePosixPath

_LOG = logging.getLogger("mkdocs.hooks.links")  # a warning fails a strict build
_CODE = re.compile(r"(^ {0,3}(?:```|~~~)[^\n]*\n.*?^ {0,3}(?:```|~~~)[ \t]*$)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<!!)\[(?P<text>[^\[\]]*(?:\[[^\]]*\][^\[\]]*)*)\]\((?P<target>[^)\s]+)\)")

# Where files outside docs/ are shown in the site.
_PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "benchmarking/results": "benchmarks/index.md"}


def rewrite_links(markdown: str, source: str, root: Path) -> str:
    """Lead relative links out of docs/ to the page that shows the file, or leave only their text where none does.

    Args:
        markdown: Text of a page.
        source: The page's path under docs/, such as ``concepts/batch.md``. Pages that are made of a file elsewhere are
            read from where that file is: ``benchmarks/x.md`` from ``benchmarking/results/x.md``.
        root: The repository. A link to something that is not in it is left alone, so that a strict build refuses it.

    Returns:
        The text with links for the site.
    """
    parts = _CODE.split(markdown)
    return "".join(part if _CODE.fullmatch(part) else _rewritten(part, source, root) for part in parts)


def _rewritten(text: str, source: str, root: Path) -> str:
    def replace(match: re.Match[str]) -> str:
        target, _, anchor = match["target"].partition("#")
        if not target or "://" in match["target"] or target.startswith("mailto:"):
            return match[0]
        path = _in_repository(target, source, root)
        if path is None or path.startswith("docs/"):
            page = path.removeprefix("docs/") if path else None
            if page is None or _home(source) == "docs":
                return match[0]
        elif path in _PAGES:
            page = _PAGES[path]
        elif path.startswith("benchmarking/results/") and path.endswith(".md"):
            page = "benchmarks/" + PurePosixPath(path).name
        else:
            return match["text"]  # there is no public address of the repository to lead to
        relative = os.path.relpath(page, PurePosixPath(source).parent)
        return f"[{match['text']}]({relative}{'#' + anchor if anchor else ''})"

    return _LINK.sub(replace, text)


def _home(source: str) -> str:
    """The directory of the repository in which a page's links are meant."""
    if source == "contributing.md":
        return ""
    if source.startswith("benchmarks/") and source != "benchmarks/index.md":
        return "benchmarking/results"
    return "docs"


def _in_repository(target: str, source: str, root: Path) -> str | None:
    """The path in the repository that a link means; None if there is no such file."""
    home = _home(source)
    folder = PurePosixPath(source).parent if home == "docs" else PurePosixPath()
    path = os.path.normpath(PurePosixPath(home) / folder / target)
    if path.startswith("..") or not (root / path).exists():
        return None
    return path
