"""Whether the terminal can show what is printed."""

import locale
import shutil
import sys
from collections.abc import Iterator

from agiledpo.doctor.finding import Finding

_NARROW = 80


def check_terminal() -> Iterator[Finding]:
    """Encoding and width."""
    encoding = sys.stdout.encoding or "unknown"
    said = f"{encoding}, locale {locale.setlocale(locale.LC_CTYPE)}"
    if encoding.lower().replace("-", "") != "utf8":
        yield Finding("terminal", "encoding", "note", said, "Some characters print as '?': set PYTHONIOENCODING=utf-8.")
    else:
        yield Finding("terminal", "encoding", "ok", said)
    width = shutil.get_terminal_size().columns
    where = "a terminal" if sys.stdout.isatty() else "no terminal"
    if width < _NARROW:
        yield Finding(
            "terminal", "width", "note", f"{width} columns, {where}", "Tables are made for 80 columns or more."
        )
    else:
        yield Finding("terminal", "width", "ok", f"{width} columns, {where}")
