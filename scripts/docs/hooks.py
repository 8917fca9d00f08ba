"""What MkDocs calls while it builds the site: pages made of the benchmarks and of the code, and links that lead out."""

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from site_benchmarks import benchmark_pages, benchmark_pictures
from site_links import rewrite_links
from site_reference import reference_pages

ROOT = Path(__file__).resolve().parents[2]


def made_pages() -> dict[str, str]:
    """Markdown of every page that is not a file in docs/, by its path there; sections in order."""
    return benchmark_pages(ROOT) | reference_pages(ROOT) | {"contributing.md": (ROOT / "CONTRIBUTING.md").read_text()}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages that are made into the navigation, where it names their directory."""
    made = list(made_pages())
    config.nav = [_expanded(entry, made) for entry in config.nav or []]
    return config


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages that are made."""
    for path, text in made_pages().items():
        files.append(File.generated(config, path, content=text))
    for path, picture in benchmark_pictures(ROOT).items():
        files.append(File.generated(config, path, abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links to files of the repository to their pages."""
    return rewrite_links(markdown, page.file.src_uri, ROOT)


def on_page_content(html: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Make our own pictures part of the page, so that they follow its light or dark scheme."""

    def inline(match: re.Match[str]) -> str:
        picture = Path(config.docs_dir, "images", match["name"]).read_text()
        # Those of pictures.py; others have colours of their own.
        return f'<div class="picture-frame">{picture}</div>' if 'class="picture' in picture else match[0]

    return re.sub(r'<p><img [^>]*src="[^"]*images/(?P<name>[\w-]+\.svg)"[^>]*></p>', inline, html)


def _expanded(entry: Any, made: list[str]) -> Any:
    if not isinstance(entry, dict):
        return entry
    [(title, target)] = entry.items()
    if isinstance(target, str) and target.endswith("/"):
        # A section's index comes first, as its own page.
        pages = [path for path in made if path.startswith(target)]
        return {title: [f"{target}index.md", *(path for path in pages if path != f"{target}index.md")]}
    return entry
