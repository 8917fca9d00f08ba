"""What an examination finds, and how its parts are put together."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

# "error": training cannot work. "warning": something that is there does not work, or slows everything down. "note":
# something optional is not there.
Status = Literal["ok", "note", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        area: Which part of the machine or the software.
        name: What was looked at.
        status: How it is.
        said: What was found.
        remedy: What to do about it; empty where nothing is to be done.
    """

    area: str
    name: str
    status: Status
    said: str
    remedy: str = ""


@dataclass(frozen=True)
class Examination:
    """Everything that was looked at.

    Attributes:
        findings: In the order of the areas.
    """

    findings: tuple[Finding, ...]

    @property
    def can_train(self) -> bool:
        """Whether nothing was found with which training cannot work."""
        return all(finding.status != "error" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Everything in plain values."""
        return {"can_train": self.can_train, "findings": [asdict(finding) for finding in self.findings]}


# Where these cannot be looked at, nothing can be trained.
_VITAL = ("software", "training")


def guarded(area: str, check: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """Run a check; one that fails is a finding itself after those that it made, and the others go on.

    Args:
        area: What it is about.
        check: The check.
    """
    found: list[Finding] = []
    try:
        for finding in check():
            found.append(finding)  # one by one: what comes before a failure is kept
    except Exception as error:  # whatever is wrong with the machine is what is looked for
        reason = (str(error).strip().splitlines() or ["no message"])[0]
        status: Status = "error" if area in _VITAL else "warning"
        remedy = "Look at the message; where it does not help, install agiledpo anew."
        found.append(Finding(area, "could not be looked at", status, f"{type(error).__name__}: {reason}", remedy))
    return found
