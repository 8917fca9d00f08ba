"""The parameters that there are: read off the signatures and docstrings of what they configure, and nowhere else."""

import dataclasses
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, get_type_hints

from agiledpo.config.docstrings import first_sentence, in_yaml, parameter_help, plain_text
from agiledpo.config.kinds import allows_null, describe, is_plain


class Required:
    """The default of what has none."""

    def __repr__(self) -> str:
        return "required"


REQUIRED = Required()

_GATHERING = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclass(frozen=True)
class Parameter:
    """A value that can be set.

    Attributes:
        name: As in the signature.
        hint: Its type.
        default: That of the signature, as plain data; `REQUIRED` without one.
        help: What the docstring says.
    """

    name: str
    hint: Any
    default: Any
    help: str

    @property
    def line(self) -> str:
        """What it is, in one sentence."""
        return in_yaml(first_sentence(self.help))

    @property
    def allowed(self) -> str:
        """Which values it takes, in words."""
        return describe(self.hint)


@dataclass(frozen=True)
class Section:
    """Parameters under a name of their own.

    Attributes:
        name: As files write it; empty for the whole configuration.
        help: What they are about, in one sentence.
        entries: Parameters and sections, in order.
        is_optional: null, the default, stands for leaving it all out.
        variant: The parameter whose value decides which others there are; empty without one.
        variants: The entries that come with each of its values.
        shorthand: The parameter that a text or a list in place of the section sets; empty for none.
        alternatives: Groups of parameters of which one at most is not null.
    """

    name: str
    help: str
    entries: Mapping[str, "Entry"]
    is_optional: bool = False
    variant: str = ""
    variants: Mapping[str, Mapping[str, "Entry"]] = field(default_factory=dict)
    shorthand: str = ""
    alternatives: tuple[tuple[str, ...], ...] = ()

    def chosen(self, given: Mapping[str, Any]) -> Mapping[str, "Entry"]:
        """The entries, with those that come with what `given` says of the variant.

        Args:
            given: What a configuration says of the section.
        """
        if not self.variant:
            return self.entries
        entry = self.entries[self.variant]
        assert isinstance(entry, Parameter)
        return {**self.entries, **self.variants.get(str(given.get(self.variant, entry.default)), {})}

    def everything(self) -> Mapping[str, "Entry"]:
        """The entries of all variants."""
        known = dict(self.entries)
        for entries in self.variants.values():
            known |= entries
        return known

    def walk(self, prefix: str = "") -> Iterator[tuple[str, "Entry"]]:
        """All entries below, of all variants, by their full paths."""
        for name, entry in self.everything().items():
            path = f"{prefix}{name}"
            yield path, entry
            if isinstance(entry, Section):
                yield from entry.walk(f"{path}.")


Entry: TypeAlias = Parameter | Section


def parameters_of(
    configured: Callable[..., Any],
    *,
    leave_out: Collection[str] = (),
    defaults: Mapping[str, Any] | None = None,
    hints: Mapping[str, Any] | None = None,
    helps: Mapping[str, str] | None = None,
) -> dict[str, Entry]:
    """The parameters of a function or a constructor.

    Args:
        configured: What they are of.
        leave_out: Parameters that something else gives.
        defaults: Other defaults than the signature's.
        hints: Other types than the signature's.
        helps: Other texts than the docstring's.

    Raises:
        KeyError: The docstring says nothing about a parameter.
    """
    documented = {**parameter_help(configured), **_field_help(configured), **(helps or {})}
    types = get_type_hints(configured if dataclasses.is_dataclass(configured) else _function(configured))
    made = _factories(configured)
    entries: dict[str, Entry] = {}
    for name, parameter in inspect.signature(configured).parameters.items():
        hint = (hints or {}).get(name, types.get(name, Any))
        if name in leave_out or parameter.kind in _GATHERING or not is_plain(hint):
            continue
        default = (defaults or {}).get(name, made.get(name, _default(parameter.default)))
        entries[name] = Parameter(name, hint, default, documented[name])
    return entries


def section(
    name: str, text: str, configured: Callable[..., Any], *, is_optional: bool = False, **options: Any
) -> Section:
    """A section of the parameters of one function or constructor.

    Args:
        name: The section's.
        text: What it is about.
        configured: What the parameters are of.
        is_optional: Whether null leaves it out.
        **options: As for :func:`parameters_of`.
    """
    return Section(name, text, parameters_of(configured, **options), is_optional)


def defaults_of(entries: Mapping[str, Entry]) -> dict[str, Any]:
    """The defaults of entries; of optional sections null."""
    found: dict[str, Any] = {}
    for name, entry in entries.items():
        if isinstance(entry, Parameter):
            found[name] = entry.default
        else:
            found[name] = None if entry.is_optional else defaults_of(entry.chosen({}))
    return found


def accepts_null(entry: Entry) -> bool:
    """Whether an entry may be null."""
    return entry.is_optional if isinstance(entry, Section) else allows_null(entry.hint)


def _default(value: Any) -> Any:
    if value is inspect.Parameter.empty:
        return REQUIRED
    if isinstance(value, tuple):
        return list(value)
    return value


def _function(configured: Callable[..., Any]) -> Callable[..., Any]:
    return configured.__init__ if inspect.isclass(configured) else configured


def _factories(configured: Any) -> dict[str, Any]:
    """Defaults of a dataclass that are made anew for each object."""
    if not dataclasses.is_dataclass(configured):
        return {}
    fields = dataclasses.fields(configured)
    return {one.name: one.default_factory() for one in fields if one.default_factory is not dataclasses.MISSING}


def _field_help(configured: Any) -> dict[str, str]:
    """What a dataclass says about its fields itself, as PEFT's do."""
    if not dataclasses.is_dataclass(configured):
        return {}
    return {
        one.name: plain_text(str(one.metadata["help"]))
        for one in dataclasses.fields(configured)
        if "help" in one.metadata
    }
