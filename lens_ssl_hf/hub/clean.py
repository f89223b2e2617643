"""What may be published of records and of what users typed: no local paths."""

import re
import shlex
from typing import Any

_SCHEME = r"(?!(?i:file):)[A-Za-z][A-Za-z0-9+.-]+://"
_URL = re.compile(rf"{_SCHEME}\S+")
_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")  # a drive, or a share of the network
_HOME = re.compile(r"~([^\W\d][\w.-]*)?[\\/]")  # not ~5/6, which is about that much
_FILE = re.compile(r"file:[\\/]", re.I)
# Where a path can begin in a sentence: not behind a bracket that closes, as in x (1)/y, nor behind a unit, as in 2"/s.
_BEGIN = r"""(?<![)>\]}])(?<!\d['"])"""
_IN_QUOTES = re.compile(r"""(?<!\d)(['"])(.+?)\1""")
_TOKEN = re.compile(rf"""{_SCHEME}[^\s'",;()<>|`]+|{_BEGIN}[^\s'"=,;()<>|`\[{{][^\s'"=,;()<>|`]*""")
_USERS = ("home", "users")  # whose folders are named after people


def without_local_paths(value: Any, key: str = "") -> Any:
    """
    Records as they can be published: of paths that begin at the root, in a home directory, on a drive or above the
    working directory only the last part is left. Ids on the Hub, other relative paths and URLs stay.
    """
    if isinstance(value, dict):
        return {name: without_local_paths(one, name) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [without_local_paths(one) for one in value]
    if not isinstance(value, str):
        return value
    if key == "command":
        return _clean_command(value)
    return _last_part(value) if _is_local(value) else _clean_text(value)


def one_line(value: Any) -> Any:
    """Records with every text on one line, without control characters."""
    if isinstance(value, dict):
        return {name: one if name == "command" else one_line(one) for name, one in value.items()}
    if isinstance(value, list):
        return [one_line(one) for one in value]
    return re.sub(r"[\x00-\x1f\x7f\x85\u2028\u2029]", " ", value) if isinstance(value, str) else value


def _clean_command(command: str) -> str:
    lexer = shlex.shlex(command, posix=True)
    lexer.whitespace_split, lexer.escape, lexer.commenters = True, "", ""  # a backslash is one of a path
    try:
        words = list(lexer)
    except ValueError:  # a quote that does not end
        return _clean_text(command)
    return shlex.join(_clean_word(word) for word in words)


def _clean_word(word: str) -> str:
    name, separator, value = word.partition("=")
    if separator and re.fullmatch(r"[\w-]+", name):
        return f"{name}={without_local_paths(value)}"
    return without_local_paths(word)


def _clean_text(text: str) -> str:
    """The paths in a sentence: those in quotes, which may hold blanks, then all others."""
    if not re.search(r"[\\/]", text):
        return text
    text = _IN_QUOTES.sub(lambda found: f"{found[1]}{_shortened(found[2])}{found[1]}", text)
    return _TOKEN.sub(lambda found: _clean_token(found.group()), text)


def _clean_token(token: str) -> str:
    if _URL.match(token):
        return token
    if (short := _shortened(token)) != token:
        return short
    before, colon, after = token.partition(":")  # host:/path, a:/b
    return f"{before}:{_clean_token(after)}" if colon and after else token


def _shortened(text: str) -> str:
    """Of a local path in a sentence the last part; `/s` and `//` have no other and may be something else."""
    return _last_part(text) if _is_local(text) and not re.fullmatch(r"[\\/]+[^\\/]*", text) else text


def _is_local(text: str) -> bool:
    if _FILE.match(text) or _WINDOWS.match(text) or _HOME.match(text):
        return True
    return bool(re.match(r"/+[^/\s]", text)) or (not _URL.match(text) and ".." in re.split(r"[\\/]", text))


def _last_part(path: str) -> str:
    parts = [part for part in re.split(r"[\\/]+", path) if part.lower() not in ("", ".", "..", "file:")]
    if not parts or (len(parts) > 1 and parts[-2].lower() in _USERS) or (len(parts) == 1 and parts[0][0] == "~"):
        return "~" if parts else "."
    return parts[-1]
