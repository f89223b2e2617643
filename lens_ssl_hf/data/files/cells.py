"""One value of a table or an attribute, as Python has it."""

import math
from typing import Any

import numpy as np

EMPTY = ("", "nan", "none", "null", "<na>", "--")


def plain(value: Any, with_words: bool = False) -> Any:
    """
    A cell as `str`, `int`, `float`, `bool` or `None` where it is missing; lists and the like as they are. The words of
    `EMPTY` stand for a missing value, except `with_words`.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace").rstrip("\0")
    if isinstance(value, str):
        value = value.strip()
        return None if value.lower() in (EMPTY[:1] if with_words else EMPTY) else value
    if isinstance(value, float) and math.isnan(value):
        return None
    is_known = value is None or isinstance(value, bool | int | float | list | tuple | dict | np.ndarray)
    return value if is_known else str(value)
