"""Names and texts of others, shown as they are where Markdown, matplotlib or a spreadsheet would act on them."""

import re

_FORMULA = re.compile(r"'*[=+\-@\t\r]")


def in_markdown(text: object) -> str:
    """On one line, for Markdown and HTML alike: whatever is no letter, digit, space or point becomes an entity."""
    plain = " ".join(str(text).split()).encode("utf-8", "replace").decode()
    return re.sub(r"[^\w .]|_", lambda character: f"&#{ord(character.group())};", plain, flags=re.UNICODE)


def in_figure(text: object) -> str:
    """For matplotlib: `$` begins no formula, `_` hides no line of a legend, and what no font can show is a `�`."""
    shown = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in str(text))
    return re.sub("^_", " _", shown.replace("$", r"\$"))


def in_spreadsheet(cell: object) -> object:
    """For a CSV file: text that spreadsheets would take for a formula gets a `'` in front."""
    return f"'{cell}" if isinstance(cell, str) and _FORMULA.match(cell) else cell


def from_spreadsheet(cell: str) -> str:
    """The inverse of [`in_spreadsheet`]."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell
