"""Paths that tables name, and names of cutouts that tell nothing of the machine where they lie."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlparse

_PRIVATE = re.compile(
    r"^\s*[\"']?(?:/\S|\\\\|[A-Z]:[\\/])|(?:^|[\s,;=:\"'(])(?:file:/|~[\w.-]*[\\/]|/(?:home|users|root)/)", re.I
)


def local_path(text: str, folder: Path) -> Path:
    """The file that a cell of a table in `folder` names: relative to it, absolute, `~/...` or `file:///...`."""
    if re.match(r"file:", text, re.I):
        text = unquote(urlparse(text).path)
    try:
        return folder / Path(text).expanduser()
    except RuntimeError:  # ~name of nobody
        return folder / text


def harmless_names(texts: Sequence[str], folder: Path) -> list[str]:
    """
    The same texts, with those that are paths of this machine (absolute, `~/...`, `file:///...`, `../...`) relative to
    `folder` or, outside of it, by their last part alone: datasets are published. Equal texts stay equal and others
    stay different.
    """
    texts = list(texts)
    if not any(map(_is_private, texts)):
        return texts
    taken = {text for text in texts if not _is_private(text)}
    names: dict[str, str] = {text: text for text in taken}
    inside = {text: _inside(text, folder) for text in sorted(set(texts) - taken)}
    shorts = {text: name or _last_part(text) for text, name in inside.items()}
    count = Counter(shorts.values())
    for text, short in shorts.items():
        if short in taken or count[short] > 1:
            digest = hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=4).hexdigest()
            stem, dot, suffix = short.partition(".")
            short = f"{stem}-{digest}{dot}{suffix}"
        names[text] = short
    return [names[text] for text in texts]


def _is_private(text: str) -> bool:
    """Whether a text is a path that tells of a machine: absolute, of a home, a URL of a file, above its folder."""
    return bool(_PRIVATE.search(text)) or ".." in re.split(r"[\\/]", text)


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
