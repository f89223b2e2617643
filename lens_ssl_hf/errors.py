"""The one exception for mistakes that a user can fix, and how scripts end on it."""

import contextlib
import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn


class InputError(ValueError):
    """A mistake in what the user gave: one sentence that names the file, column or argument and the fix."""


def check_at_least(least: float, **values: float | None) -> None:
    """
    Raises:
        [`InputError`]: one of the values is smaller, or NaN; the sentence gives its name. `None` is left alone.
    """
    for name, value in values.items():
        if value is not None and not value >= least:
            raise InputError(f"{name} is {value}: give at least {least}")


class Interrupted(KeyboardInterrupt):
    """
    What was told to stop, by Ctrl-C or SIGTERM; a training has saved what it had.

    Args:
        message (`str`): what was saved and how to go on, if anything.
        signal_number (`int`): the signal.
    """

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.signal_number = signal_number


def exit_on_input_error(main: Callable[[], None]) -> Callable[[], None]:
    """
    Make `main` print an [`InputError`], or that access is denied, as one line on stderr and exit with status 2 instead
    of a traceback; and leave on Ctrl-C and SIGTERM, once what it has begun is closed, as shells expect it, with 128 +
    the signal's number. Of several processes the main one speaks.
    """

    @functools.wraps(main)
    def wrapper() -> None:
        previous = signal.signal(signal.SIGTERM, _interrupt)
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="surrogateescape")  # names of files need not be UTF-8
        try:
            main()
        except (InputError, PermissionError) as error:
            _leave_it_to_the_main_process(2)
            if isinstance(error, PermissionError):
                error = (
                    f"cannot access {error.filename} ({error.strerror}): give yourself access, or choose another place"
                )
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt as interrupt:
            _leave_it_to_the_main_process(128 + getattr(interrupt, "signal_number", signal.SIGINT))
            print(f"\ninterrupted{f': {interrupt}' if str(interrupt) else ''}", file=sys.stderr)
            sys.exit(128 + getattr(interrupt, "signal_number", signal.SIGINT))
        except BrokenPipeError:  # `lens-ssl ... | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing more is flushed at the exit
            sys.exit(128 + signal.SIGPIPE)
        finally:
            signal.signal(signal.SIGTERM, previous)

    return wrapper


@contextlib.contextmanager
def handling_stop_signals(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Ctrl-C and SIGTERM go to `handler`; in the main thread alone, as Python handles signals nowhere else."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with contextlib.ExitStack() as restore:  # each handler comes back, also where a signal raises between the two
        for number in (signal.SIGINT, signal.SIGTERM):
            restore.callback(signal.signal, number, signal.signal(number, handler))
        yield


@contextlib.contextmanager
def interrupted_later() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait until what is inside is done. A process that is forked inside never sees them."""
    came: list[int] = []
    try:
        with handling_stop_signals(lambda number, frame: came.append(number)):
            yield
    finally:  # also where what is inside fails
        for number in came:
            signal.raise_signal(number)


def _leave_it_to_the_main_process(status: int) -> None:
    """
    What ends all processes of a launch is said by one. The launcher ends the others as soon as that one has left; a
    process that is alone with its mistake says it after some seconds.
    """
    if os.environ.get("RANK", "0") != "0":
        try:
            time.sleep(5)
        except KeyboardInterrupt:
            sys.exit(status)


def _interrupt(number: int, frame: object) -> NoReturn:
    raise Interrupted("", number)
