"""Python, required libraries and extras."""

import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

from agiledpo.doctor.finding import Finding

_PACKAGE = "agiledpo"
_OLDEST_PYTHON = (3, 11)
# What each extra is for; those of developers are left out.
_EXTRAS = {
    "liger": "use_liger_loss=True",
    "deepspeed": "several processes with ZeRO",
    "vllm": "sampling through a vLLM server",
    "trackers": "TensorBoard, Weights & Biases, MLflow, Trackio",
    "report": "the HTML report",
    "demo": "agiledpo demo, which reads the embedded model",
    "plots": "pictures of family trees",
}


def check_python() -> Iterator[Finding]:
    """The interpreter."""
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < _OLDEST_PYTHON:
        yield Finding("software", "Python", "error", found, "Use Python 3.11 or newer.")
    else:
        yield Finding("software", "Python", "ok", f"{found}, {sys.executable}")


def check_libraries() -> Iterator[Finding]:
    """Required libraries, by the versions that the package asks for; then the extras."""
    try:
        needed = [Requirement(text) for text in requires(_PACKAGE) or ()]
    except PackageNotFoundError:
        yield Finding(
            "software",
            "agiledpo",
            "note",
            "it is imported from a folder and not installed, so nothing says which versions it needs",
            "pip install -e . in its folder.",
        )
        return
    always = [one for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})]
    for requirement in {one.name: one for one in always}.values():
        yield _required(requirement)
    for extra, purpose in _EXTRAS.items():
        parts = [
            one
            for one in needed
            if one.marker is not None
            and one.marker.evaluate({"extra": extra})
            and not one.marker.evaluate({"extra": ""})
        ]
        yield _extra(extra, purpose, parts)


def _required(requirement: Requirement) -> Finding:
    install = f"pip install '{requirement.name}{requirement.specifier}'"
    found = _version(requirement.name)
    if found is None:
        return Finding("software", requirement.name, "error", "not installed", f"{install}.")
    if not requirement.specifier.contains(found, prereleases=True):
        wanted = f"{found}, and agiledpo is made for {requirement.specifier}"
        return Finding("software", requirement.name, "warning", wanted, f"{install}.")
    return Finding("software", requirement.name, "ok", found)


def _extra(extra: str, purpose: str, parts: list[Requirement]) -> Finding:
    found = {part.name: _version(part.name) for part in parts}
    there = ", ".join(f"{name} {number}" for name, number in found.items() if number is not None)
    absent = [name for name, number in found.items() if number is None]
    install = f"pip install 'agiledpo[{extra}]', if you want {purpose}."
    if absent:
        said = f"not installed: {', '.join(absent)}" + (f"; there: {there}" if there else "")
        return Finding("extras", extra, "note", said, install)
    old = [part for part in parts if not part.specifier.contains(str(found[part.name]), prereleases=True)]
    if old:
        wanted = ", ".join(f"{part.name}{part.specifier}" for part in old)
        return Finding("extras", extra, "warning", f"{there}; agiledpo is made for {wanted}", install)
    return Finding("extras", extra, "ok", there)


def check_compilers() -> Iterator[Finding]:
    """What ``torch_compiler`` needs."""
    named = os.environ.get("CXX")
    compiler = next((path for name in (named, "g++", "clang++", "c++") if name and (path := shutil.which(name))), None)
    if compiler is None:
        yield Finding(
            "extras",
            "C++ compiler",
            "note",
            "none",
            "Install g++ (apt-get install g++), if you want torch_compiler on a CPU.",
        )
    else:
        yield Finding("extras", "C++ compiler", "ok", compiler)
    if importlib.util.find_spec("triton") is None:
        yield Finding(
            "extras",
            "triton",
            "note",
            "not installed",
            "Install a torch for CUDA, which brings it, if you want torch_compiler or Liger on a GPU.",
        )
    else:
        yield Finding("extras", "triton", "ok", _version("triton") or "there")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
