"""Griffe's extension for the roles in docstrings, which Markdown does not know."""

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|meth|func|mod|attr|data|exc|obj):`~?(?P<target>[^`]+)`")
_MATH = re.compile(r":math:`(?P<formula>[^`]+)`")


class Roles(griffe.Extension):
    """Turns ``:class:`DPO``` and its like into links, or into code where the target has no place in the reference."""

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **kwargs: Any) -> None:
        """Rewrite the docstrings of everything in a package, once it is loaded."""
        _rewrite(pkg)


def _rewrite(obj: griffe.Object) -> None:
    if obj.docstring is not None:
        obj.docstring.value = with_links(obj.docstring.value, obj)
    for member in obj.members.values():
        if not member.is_alias:
            _rewrite(member)  # type: ignore[arg-type]


def with_links(text: str, obj: griffe.Object) -> str:
    """The text of an object's docstring with links in place of roles."""

    def link(match: re.Match[str]) -> str:
        target = match["target"]
        # "optional": what is in no page stays code, without a warning.
        return f'<autoref optional identifier="{_path(target, obj)}"><code>{target}</code></autoref>'

    return _MATH.sub(r"`\g<formula>`", _ROLE.sub(link, text))


def _path(target: str, obj: griffe.Object) -> str:
    """The full name of what a docstring of ``obj`` calls ``target``."""
    if target.startswith(f"{obj.package.name}."):
        return target
    first, *rest = target.split(".")
    scope: griffe.Object | None = obj
    while scope is not None:
        members = scope.all_members if scope.is_class else scope.members
        if first in members:
            return ".".join([_where(members[first]), *rest])
        scope = scope.parent if isinstance(scope.parent, griffe.Object) else None
    return target


def _where(member: griffe.Object | griffe.Alias) -> str:
    """The full name of a member where it is defined, or of what is imported from another package."""
    try:
        return member.canonical_path
    except griffe.AliasResolutionError:
        return member.path
