"""Text that somebody else wrote, such as a model, made fit for a terminal or a log."""

import unicodedata


def printable(text: str, encoding: str = "utf-8") -> str:
    """Replace control characters, which could clear or rewrite a screen, and what an encoding lacks.

    Args:
        text: Any text; line breaks and tabs stay.
        encoding: Of where it goes.
    """
    plain = "".join(
        " " if unicodedata.category(character) == "Cc" and character not in "\n\t" else character for character in text
    )
    return plain.encode(encoding, "replace").decode(encoding)


def one_line(text: str, width: int) -> str:
    """The beginning of a text on one line of at most so many characters."""
    line = " ".join(printable(text[: 4 * width + 100]).split())
    return line if len(line) <= width else line[: max(1, width - 1)] + "…"
