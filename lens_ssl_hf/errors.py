"""The one exception for mistakes that a user can mend, and how scripts end on it."""

import functools
import sys
from collections.abc import Callable


class InputError(ValueError):
    """A mistake in what the user gave: one sentence that names the file, column or argument and the mend."""


def exit_on_input_error(main: Callable[[], None]) -> Callable[[], None]:
    """Make `main` print an [`InputError`] as one line on stderr and exit with status 2 instead of a traceback."""

    @functools.wraps(main)
    def wrapper() -> None:
        try:
            main()
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)

    return wrapper
