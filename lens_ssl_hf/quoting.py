"""Names and texts of others, shown as they are where Markdown, matplotlib or a spreadsheet would act on them."""

import re

_MARKUP = re.compile(r"[^\w .,-]|_|^[-.]|(?<=www)\.", re.IGNORECASE)
_FORMULA = re.compile(r"'*[=+\-@\t\r]")


def in_markdown(text: object) -> str:
    """Inside of a line, for Markdown and HTML alike: what could be markup or a link becomes an entity."""
    plain = " ".join(str(text).split()).encode("utf-8", "replace").decode()
    return _MARKUP.sub(lambda character: f"&#{ord(character.group())};", plain)


def in_figure(text: object) -> str:
    """For matplotlib: `$` begins no formula, `_` hides no line of a legend, and what no font can show is a `�`."""
    shown = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in str(text))
    return re.sub("^_", " _", shown.replace("$", r"\$"))


def in_spreadsheet(cell: object) -> object:
    """For a CSV file: text that spreadsheets would take for a formula gets a `'` in front."""
    return f"'{cell}" if isinstance(cell, str) and _FORMULA.match(cell) else cell
