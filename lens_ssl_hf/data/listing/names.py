"""Paths that tables name, and names of cutouts that tell nothing of the machine where they lie."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlparse

from ...hub.clean import without_local_paths

_PATH = re.compile(r"\s*[\"']?(?:/\S|\\\\|[A-Z]:[\\/]|file:/|~(?!\d)[\w.-]*[\\/])", re.I)


def local_path(text: str, folder: Path) -> Path:
    """The file that a cell of a table in `folder` names: relative to it, absolute, `~/...` or `file:///...`."""
    if re.match(r"file:", text, re.I):
        text = unquote(urlparse(text).path)
    try:
        return folder / Path(text).expanduser()
    except RuntimeError:  # ~name of nobody
        return folder / text


def harmless_names(texts: Sequence[str], folder: Path | None = None) -> list[str]:
    """
    The same texts, with those that are paths of this machine (absolute, `~/...`, `file:///...`, `../...`) relative to
    `folder` or, outside of it, by their last part alone, and so those within other texts: datasets are published.
    Equal texts stay equal and others stay different.
    """
    texts = list(texts)
    private = {text for text in set(texts) if _is_private(text)}
    taken = set(texts) - private
    names: dict[str, str] = {text: text for text in taken}
    shorts = {text: _short(text, folder) for text in sorted(private)}
    count = Counter(shorts.values())
    for text, short in shorts.items():
        if short in taken or count[short] > 1:
            digest = hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=4).hexdigest()
            stem, dot, suffix = short.partition(".")
            short = f"{stem}-{digest}{dot}{suffix}"
        names[text] = short
    return [names[text] for text in texts]


def _is_private(text: str) -> bool:
    """Whether a text is or holds a path that tells of a machine: absolute, of a home, file:/..., above its folder."""
    return _is_path(text) or without_local_paths(text) != text


def _is_path(text: str) -> bool:
    return bool(_PATH.match(text)) or ".." in re.split(r"[\\/]", text)


def _short(text: str, folder: Path | None) -> str:
    if not _is_path(text):
        return without_local_paths(text)
    if folder is not None and (name := _inside(text, folder)):
        return name
    return "home" if without_local_paths(text.strip()) == "~" else _last_part(text)  # whose name is its owner's


def _inside(text: str, folder: Path) -> str | None:
    """The path relative to `folder`, where it lies inside."""
    for absolute in (os.path.abspath, os.path.realpath):
        relative = os.path.relpath(absolute(local_path(text.strip(), folder)), absolute(folder))
        if not _is_private(relative) and relative != ".":
            return relative
    return None


def _last_part(text: str) -> str:
    parts = [part for part in re.split(r"[\\/]", unquote(text)) if part.strip("~. ")]
    return parts[-1].lstrip("~. ") if len(parts) > 1 or re.search(r"[\\/]", text) else "path"
