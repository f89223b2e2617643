"""A command line as dataclasses: options, a file of options, recipes below both, and `--help`."""

import difflib
import inspect
import re
import shutil
import sys
import textwrap
from dataclasses import MISSING, Field, fields
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, NoReturn

import yaml

from ..errors import InputError
from ..training.arguments import FORMER_OPTIONS, FORMER_VALUES, recipe

MOST_USED = "Most used"
# Options whose help begins with one of these words are a group of their own.
_KINDS = {"Simulated:": "Simulated cutouts", "Table:": "Tables"}
_CONFIG_HELP = "A YAML file with some of these options, as name: value; the command line wins."
_YES_OR_NO = ("yes", "no", "true", "false", "t", "f", "y", "n", "1", "0")


def parse(
    *dataclasses: type,
    description: str | None = None,
    positional: tuple[str, ...] = (),
    most_used: tuple[str, ...] = (),
    groups: dict[str, tuple[str, ...]] | None = None,
) -> list[Any]:
    """
    Parse the command line into dataclasses. The file that `--config` names sets defaults, and below it the
    recipe of a pretraining's method; the command line wins. `--help` shows the defaults that hold for the rest of the
    command line.

    Args:
        dataclasses: field metadata `help` is shown by `--help`, under the first words of the class's docstring.
        positional (`tuple[str, ...]`, *optional*): fields that may be given without their names, in this order; one
            whose default is `None` may be left out.
        most_used (`tuple[str, ...]`, *optional*): fields that `--help` shows first, in this order.
        groups (`dict[str, tuple[str, ...]]`, *optional*): further titles, and the fields that `--help` shows under
            them.

    Raises:
        [`InputError`]: an unknown option, a value that does not fit, or a missing one.
    """
    from transformers import HfArgumentParser

    parser = HfArgumentParser(dataclasses, add_help=False)
    parser.error = _refuse
    parser.add_argument("--config", help=_CONFIG_HELP)
    for action in parser._actions:
        action.required = False  # it may be in the file, or a word without a name
    words = [word for word in sys.argv[1:] if word not in ("-h", "--help")]
    wants_help = len(words) < len(sys.argv) - 1
    plain = _with_plain_flags(words, parser)
    typed, rest = parser.parse_known_args(plain)
    config = _read_config(typed.config, parser, dataclasses) if typed.config else {}
    parser.set_defaults(**config)
    if hasattr(typed, "method"):
        parser.set_defaults(**recipe(parser.parse_known_args(plain)[0].method) | config)
    if wants_help:
        print(_help(parser, dataclasses, description, positional, {MOST_USED: most_used, **(groups or {})}))
        sys.exit()
    plain += _name_words(rest, words, typed, parser, positional)
    _check_nothing_is_missing(parser.parse_known_args(plain)[0], dataclasses, positional)
    found = parser.parse_args_into_dataclasses(args=plain, return_remaining_strings=True, look_for_args_file=False)
    return list(found[: len(dataclasses)])


def _refuse(message: str) -> NoReturn:
    if lacking := re.match("argument (--[^:]+): expected .*one argument", message):
        names = lacking[1].split("/")
        given = ("=".join(two) for two in pairwise(sys.argv) if two[0] in names and re.match("-[^-]", two[1]))
        if word := next(given, None):
            message += f" (a value that begins with - is given as {word})"
    raise InputError(f"{message}: see --help")


def _check_nothing_is_missing(known: Any, dataclasses: tuple[type, ...], positional: tuple[str, ...]) -> None:
    for item in (item for cls in dataclasses for item in fields(cls)):
        if item.name in positional and not getattr(known, item.name) and item.default is not None:
            raise InputError(f"{item.name} is missing: see --help")
        if _is_required(item) and getattr(known, item.name) is None:
            raise InputError(f"--{item.name} is missing: give it (--help explains it)")


def _is_required(item: Field) -> bool:
    return item.default is MISSING and item.default_factory is MISSING


def read_yaml(file: str, option: str) -> dict[str, Any]:
    """The entries of a YAML file that an option names."""
    try:
        entries = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise InputError(f"cannot read {file} ({reason}): give a YAML file as --{option}") from error
    if not isinstance(entries, dict):
        raise InputError(f"{file} holds no options: write one on each line, such as epochs: 60")
    return entries


def _read_config(file: str, parser: Any, dataclasses: tuple[type, ...]) -> dict[str, Any]:
    """The options in a YAML file, or under `arguments` in a run's run.json, checked as those of a command line are."""
    options = read_yaml(file, "config")
    names = [item.name for cls in dataclasses for item in fields(cls)]
    if isinstance(options.get("arguments"), dict):
        options = {name: value for name, value in FORMER_VALUES.items() if name in names} | options["arguments"]
    actions = {action.dest: action for action in reversed(parser._actions)}  # of --flip and --no_flip the first
    words, given = [], []
    for key, value in options.items():
        name = str(key).replace("-", "_")
        if value == FORMER_OPTIONS.get(name, MISSING):
            continue  # in the run.json of an earlier version
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1, cutoff=0.75)
            raise InputError(f"{file}: unknown option {key}: {f'did you mean {close[0]}?' if close else 'see --help'}")
        if value is None and actions[name].default is None:
            continue  # as run.json has options that were not given
        if value is None or value == []:
            raise InputError(f"{file}: {key} has no value: give one, or leave the line out")
        words += _words_of(name, value, actions[name], file)
        given.append(name)
    try:
        known = parser.parse_known_args(words)[0]
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    return {name: getattr(known, name) for name in given}


def _words_of(name: str, value: Any, action: Any, file: str) -> list[str]:
    """An option of a YAML file as a command line has it."""
    if isinstance(value, list) and action.nargs == "+" and not any(isinstance(one, list | dict) for one in value):
        return [f"--{name}", *map(str, value)]
    if isinstance(value, list | dict):
        raise InputError(f"{file}: {name} is {value}: give one value")
    if isinstance(value, bool) and action.nargs == "?" and action.const is not True:
        return [f"--{name}={action.const}"] if value else []
    if isinstance(value, bool):
        value = "yes" if value else "no"  # YAML reads yes and no as true and false
    return [f"--{name}={value}"]


def _with_plain_flags(words: list[str], parser: Any) -> list[str]:
    """
    The command line with a value in every flag that has none, so that argparse takes no other word for it: yes in
    `--private RUN`, an empty one in `--dry_run RUN`.
    """
    found = []
    for word, following in zip(words, [*words[1:], ""]):
        action = parser._option_string_actions.get(word)
        if action is None or action.nargs != "?" or (action.const is True and following.lower() in _YES_OR_NO):
            found.append(word)
        else:
            found.append(f"{word}={'yes' if action.const is True else action.const}")
    return found


def _name_words(rest: list[str], words: list[str], typed: Any, parser: Any, positional: tuple[str, ...]) -> list[str]:
    """
    The words without a name as options: positional ones, and a folder behind `--dry_run` where one word is left; with
    `--all` a run is not needed.
    """
    free = [word for word in rest if not word.startswith("-")]
    missing = [name for name in positional if not getattr(typed, name)]
    needed = 0 if getattr(typed, "all", False) else len(missing)
    named = []
    for flag, word in pairwise(words):
        if flag in ("--dry_run", "--dry-run") and word in free and len(free) > needed:
            free.remove(word)
            named.append(f"--dry_run={word}")
    for word in [word for word in rest if word.startswith("-")] + free[len(missing) :]:
        options = {option.lstrip("-"): option for option in parser._option_string_actions}
        close = difflib.get_close_matches(word.split("=")[0].lstrip("-"), options, n=1, cutoff=0.75)
        raise InputError(f"unknown argument {word}: {f'did you mean {options[close[0]]}?' if close else 'see --help'}")
    return named + [f"--{name}={word}" for name, word in zip(missing, free)]


def _help(
    parser: Any,
    dataclasses: tuple[type, ...],
    description: str | None,
    positional: tuple[str, ...],
    groups: dict[str, tuple[str, ...]],
) -> str:
    """Every option with the default that holds: those most used, then the others by subject."""
    usage = " ".join(["usage:", parser.prog, *map(str.upper, positional), "[options]"])
    actions = {action.dest: action for action in reversed(parser._actions)}  # of --flip and --no_flip the first
    texts: dict[str, dict[str, list[str]]] = {MOST_USED: {name: [] for name in groups[MOST_USED]}}
    for cls in dataclasses:
        for item in fields(cls):
            lines = _explain(f"--{item.name}", item.metadata["help"] + _default(item, actions[item.name]))
            if f"--no_{item.name}" in parser._option_string_actions:
                lines += _explain(f"--no_{item.name}", f"The same as --{item.name} no.")
            texts.setdefault(_group(item, cls, groups), {})[item.name] = lines
    texts[MOST_USED]["config"] = _explain("--config", _CONFIG_HELP)
    if len(texts[MOST_USED]) == 1:  # of a command with few options
        texts["Options of every command"] = texts.pop(MOST_USED)
    blocks = ["\n".join([f"{title}:", *chain(*of.values())]) for title, of in texts.items()]
    return "\n\n".join([usage, (description or "").strip(), *blocks, "Names may be written with - instead of _."])


def _group(item: Field, cls: type, groups: dict[str, tuple[str, ...]]) -> str:
    """The title that an option is shown under."""
    for title, names in groups.items():
        if item.name in names:
            return title
    owner = next(base for base in reversed(cls.__mro__) if item.name in inspect.get_annotations(base))
    return _KINDS.get(item.metadata["help"].split(" ")[0]) or _title(owner)


def _title(cls: type) -> str:
    doc = inspect.cleandoc(cls.__doc__ or "")
    return "Options" if doc.startswith(f"{cls.__name__}(") else re.split(r"[.;]", doc)[0]


def _explain(option: str, text: str) -> list[str]:
    indent = 26
    width = max(60, min(120, shutil.get_terminal_size().columns - 2))
    lines = textwrap.wrap(text, width - indent, break_on_hyphens=False)
    first = [f"  {option.ljust(indent - 3)} {lines[0]}"] if len(option) < indent - 2 else [f"  {option}"]
    return first + [" " * indent + line for line in (lines if first[0].strip() == option else lines[1:])]


def _default(item: Field, action: Any) -> str:
    """`" (default: 32)"`, with the choices if there are some; nothing where the help itself says what happens."""
    value = action.default
    if _is_required(item) and value is None:
        return " (required)"
    choices = f"one of {', '.join(action.choices)}; " if action.choices else ""
    if value in (None, ""):
        return f" ({choices[:-2]})" if choices else ""
    if isinstance(value, bool):
        value = "yes" if value else "no"
    return f" ({choices}default: {' '.join(map(str, value)) if isinstance(value, list) else value})"
