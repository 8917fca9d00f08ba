"""The documentation site: built strictly, complete, and without a request to anywhere else."""

import ast
import importlib.util
import os
import re
import subprocess
import sys
import textwrap
import zlib
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType

import griffe
import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from agiledpo.embedded import model as embedded

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SOURCES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]


def tool(name: str) -> ModuleType:
    """A module of scripts/docs, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


links, reference, roles, pictures = (tool(name) for name in ("site_links", "site_reference", "site_roles", "pictures"))


class Elements(HTMLParser):
    """The start tags of a page and its text outside code."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    result = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)],
        cwd=ROOT, capture_output=True, text=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, check=False,
    )  # fmt: skip
    said = result.stdout + result.stderr
    assert result.returncode == 0, said
    assert "WARNING" not in said
    return out


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Elements]:
    return {str(path.relative_to(site)): Elements(path.read_text()) for path in sorted(site.rglob("*.html"))}


def test_every_page_is_in_the_navigation(site: Path, pages: dict[str, Elements]) -> None:
    entries = {
        os.path.normpath(attributes["href"])
        for tag, attributes in pages["index.html"].tags
        if tag == "a" and "md-nav__link" in attributes.get("class", "")
    }
    wanted = {
        os.path.normpath(path.relative_to(DOCS).with_suffix("")).removesuffix("/index") for path in DOCS.rglob("*.md")
    }
    wanted |= {f"benchmarks/{path.stem}" for path in (ROOT / "benchmarking" / "results").glob("*.md")}
    assert wanted - entries == {"index"}  # which is "."
    assert "." in entries


def test_pages_load_nothing_from_elsewhere(site: Path, pages: dict[str, Elements]) -> None:
    loading = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}
    found = [
        (page, tag, attributes[loading[tag]])
        for page, elements in pages.items()
        for tag, attributes in elements.tags
        if tag in loading and re.match(r"(https?:)?//", attributes.get(loading[tag], ""))
    ]
    assert found == []
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", sheet.read_text()), sheet


def test_all_public_names_are_in_the_reference(site: Path, pages: dict[str, Elements]) -> None:
    anchors = {
        f"{page.removesuffix('index.html')}#{attributes['id']}"
        for page, elements in pages.items()
        for _, attributes in elements.tags
        if "id" in attributes
    }
    # A name that a package takes from its module has one place, and both names lead to it.
    places = inventory(site / "objects.inv")
    shown = {name for name, place in places.items() if place in anchors}
    packages = [f"agiledpo.{path.parent.name}" for path in (ROOT / "agiledpo").glob("*/__init__.py")]
    exported = {f"{package}.{name}" for package in packages for name in reference.exports(ROOT, package)}
    imported = {name for path in SOURCES for _, _, block in blocks(path) for name in names_imported(block)}
    assert len(exported) > 100
    assert len(imported) > 30
    assert sorted((exported | imported) - shown) == []


def inventory(path: Path) -> dict[str, str]:
    """Where each name is, by the inventory that other sites link by: four lines, then compressed ones."""
    lines = zlib.decompress(path.read_bytes().split(b"\n", 4)[4]).decode().splitlines()
    entries = [line.split(" ", 4) for line in lines]
    return {name: uri.replace("$", name) for name, _, _, uri, _ in entries}


def test_no_role_is_left(site: Path) -> None:
    role = re.compile(r":(class|meth|func|mod|attr|data|exc|obj|math|ref):(`|<code|<a)")
    left = {str(path): found[0] for path in site.rglob("*.html") if (found := role.search(path.read_text()))}
    assert left == {}


def test_a_benchmark_page_shows_its_result_and_its_pictures(site: Path, pages: dict[str, Elements]) -> None:
    html = (site / "benchmarks" / "scaling" / "index.html").read_text()
    assert "How AgileDPO scales" in html
    assert "python -m benchmarking.scaling --axis population" in re.sub(r"<[^>]+>", "", html)
    drawn = [attributes["src"] for tag, attributes in pages["benchmarks/scaling/index.html"].tags if tag == "img"]
    assert len(drawn) == 5
    assert all((site / "benchmarks" / "scaling" / source).resolve().is_file() for source in drawn)


# Code in the pages --------------------------------------------------------------------------------------------------


def blocks(path: Path) -> list[tuple[int, str | None, str]]:
    """Python blocks of a page: line, what a comment before it says of running it, and code."""
    pattern = re.compile(
        r"(?:^[ ]*<!-- run(?P<how>[^\n]*?) ?-->\n)?^(?P<indent>[ ]*)```python\n(?P<code>.*?)^(?P=indent)```",
        re.M | re.S,
    )
    text = path.read_text()
    return [
        (
            text.count("\n", 0, match.start("code")) + 1,
            match["how"],
            textwrap.dedent(match["code"]),
        )
        for match in pattern.finditer(text)
    ]


def names_imported(code: str) -> list[str]:
    """Full names of what a block imports from agiledpo."""
    return [
        f"{statement.module}.{alias.name}"
        for statement in ast.walk(ast.parse(code))
        if isinstance(statement, ast.ImportFrom) and (statement.module or "").split(".")[0] == "agiledpo"
        for alias in statement.names
    ]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_python_blocks_compile(path: Path) -> None:
    for line, _, code in blocks(path):
        compile("\n" * (line - 1) + code, str(path), "exec")


def test_blocks_that_say_so_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    marked = [(path, line, how, code) for path in SOURCES for line, how, code in blocks(path) if how is not None]
    assert len(marked) >= 2
    monkeypatch.chdir(tmp_path)
    for path, line, how, code in marked:
        if how == ": tiny":
            tiny = tiny_embedded_model()
            monkeypatch.setattr(embedded, "load_embedded_model", lambda dtype, tiny=tiny: tiny)
            for number in ("64", "32"):
                code = code.replace(f"range({number})", "range(8)")
        exec(compile("\n" * (line - 1) + code, str(path), "exec"), {})
    assert (tmp_path / "checkpoints/first/actor/adapter_model.safetensors").is_file()


def tiny_embedded_model() -> tuple[LlamaForCausalLM, object]:
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(embedded.embedded_model_path(), local_files_only=True)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return LlamaForCausalLM(config), tokenizer


# What makes the pages -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "text", "expected"),
    [
        ("performance.md", "[p](../benchmarking/results/precision.md)", "[p](benchmarks/precision.md)"),
        ("concepts/batch.md", "[p](../../benchmarking/results/precision.md#a)", "[p](../benchmarks/precision.md#a)"),
        ("performance.md", "[all](../benchmarking/results)", "[all](benchmarks/index.md)"),
        ("distributed.md", "[`ray`](../examples/ray_train.py)", "`ray`"),
        ("distributed.md", "[gone](../examples/no_such_file.py)", "[gone](../examples/no_such_file.py)"),
        ("data.md", "[here](#length), [v](validation.md), [o](https://a.b/c)", None),
        ("contributing.md", "[d](docs/data.md)", "[d](data.md)"),
        ("benchmarks/chain.md", "![picture](scaling_batch.png)", None),
        ("data.md", "```\n[code](../examples/ray_train.py)\n```", None),
    ],
)
def test_links_lead_to_pages_of_the_site(source: str, text: str, expected: str | None) -> None:
    assert links.rewrite_links(text, source, ROOT) == (text if expected is None else expected)


def test_roles_become_links(tmp_path: Path) -> None:
    (tmp_path / "a_package.py").write_text(
        textwrap.dedent(
            '''
            """See :class:`Child` and :mod:`a_package`."""

            class Parent:
                def save(self):
                    """Save."""

            class Child(Parent):
                """As :meth:`save` or :meth:`Parent.save`, of :math:`n/k`; :func:`nothing` and ``code``."""
            '''
        )
    )
    extensions = griffe.load_extensions(roles.Roles)
    loader = griffe.GriffeLoader(search_paths=[tmp_path], extensions=extensions, allow_inspection=False)
    module = loader.load("a_package")

    def link(path: str, text: str) -> str:
        return f'<autoref optional identifier="{path}"><code>{text}</code></autoref>'

    assert module.docstring.value == f"See {link('a_package.Child', 'Child')} and {link('a_package', 'a_package')}."
    assert module["Child"].docstring.value == (
        f"As {link('a_package.Parent.save', 'save')} or {link('a_package.Parent.save', 'Parent.save')}, of `n/k`; "
        f"{link('nothing', 'nothing')} and ``code``."
    )


def test_the_pictures_are_as_the_script_draws_them() -> None:
    for draw in pictures.PICTURES:
        picture = draw()
        assert (DOCS / "images" / f"{picture.name}.svg").read_text() == picture.svg()
