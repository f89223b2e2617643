"""What may be published of records and of what users typed: no local paths."""

import re
import shlex
from typing import Any

_URL = re.compile(r"(?!file:)[A-Za-z][A-Za-z0-9+.-]+://\S+")
_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")  # a drive, or a share of the network
_HOME = re.compile(r"~[\w.-]*[\\/]")
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
    text = re.sub(r"""(['"])(.+?)\1""", lambda found: _clean_quoted(found[1], found[2]), text)
    return re.sub(r"""[^\s'"=,;()<>|`]+""", lambda found: _clean_token(found.group()), text)


def _clean_quoted(quote: str, text: str) -> str:
    return f"{quote}{_last_part(text) if _is_local(text) else text}{quote}"


def _clean_token(token: str) -> str:
    if _URL.match(token):
        return token
    if _is_local(token):
        return _last_part(token)
    before, colon, after = token.partition(":")  # host:/path, a:/b
    return f"{before}:{_clean_token(after)}" if colon and after else token


def _is_local(text: str) -> bool:
    if text.startswith("file:") or _WINDOWS.match(text) or _HOME.match(text):
        return True
    return len(text) > 1 and (text.startswith("/") or (not _URL.match(text) and ".." in re.split(r"[\\/]", text)))


def _last_part(path: str) -> str:
    parts = [part for part in re.split(r"[\\/]+", path) if part not in ("", ".", "..", "file:")]
    if not parts or (len(parts) > 1 and parts[-2].lower() in _USERS) or (len(parts) == 1 and parts[0][0] == "~"):
        return "~" if parts else "."
    return parts[-1]
