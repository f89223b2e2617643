"""Names and texts of others, shown as they are where Markdown, matplotlib or a spreadsheet would act on them."""

import re

# Of Markdown and HTML: emphasis (`_` opens none within a word), code, links, tables, formulas, starts of blocks.
_MARKUP = re.compile(
    r"[\\`*\[\]<&|~^$#@]|(?<!\w)_+|(?:^|(?<=^ ))(?:[-+=](?=[-=\s]|$)|>)|:(?=//)|(?<=www)\.", re.IGNORECASE
)
_FORMULA = re.compile(r"'*[=+\-@\t\r]")


def in_markdown(text: object) -> str:
    """Inside of a line or of a table's cell, for Markdown and HTML alike: what could be markup becomes an entity."""
    line = _printable(re.sub(r"\s+", " ", str(text)))
    return _MARKUP.sub(lambda found: "".join(f"&#{ord(one)};" for one in found.group()), line)


def fenced(code: str, language: str) -> str:
    """A Markdown block of code, whatever the code holds."""
    longest = max((len(run) for run in re.findall("`+", code)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{code}\n{fence}"


def in_figure(text: object) -> str:
    """For matplotlib: `$` begins no formula, `_` hides no line of a legend, and what no font can show is a `�`."""
    return re.sub("^_", " _", _printable(text).replace("$", r"\$"))


def _printable(text: object) -> str:
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in str(text))


def in_spreadsheet(cell: object) -> object:
    """For a CSV file: text that spreadsheets would take for a formula gets a `'` in front."""
    return f"'{cell}" if isinstance(cell, str) and _FORMULA.match(cell) else cell
