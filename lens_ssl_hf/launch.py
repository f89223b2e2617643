"""Scripts that are launched on several processes though one is enough."""

import functools
import os
from collections.abc import Callable

# Of torchrun and `accelerate launch`, and of the MPIs that Accelerate knows.
_RANKS = ("RANK", "LOCAL_RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


def one_process(main: Callable[[], None]) -> Callable[[], None]:
    """
    Make a script write from one process wherever it is launched on several: the first one goes on as if there were no
    others, which leave without a word.
    """

    @functools.wraps(main)
    def wrapper() -> None:
        if any(int(os.environ.get(name, "0")) > 0 for name in _RANKS if name != "LOCAL_RANK"):
            return
        for name in (*_RANKS, *_SIZES):
            os.environ.pop(name, None)  # else torch waits for the others
        main()

    return wrapper
