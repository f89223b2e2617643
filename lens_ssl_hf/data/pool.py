"""Work on many cutouts in several processes, with the results and the errors of one."""

import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any

from ..errors import InputError, interrupted_later
from ..processes import obey_the_main_process

CHUNK = 16
FEW = 300  # below so many items a pool costs more than it saves


def number_of_processes(num_proc: int | None, num_items: int, chunk: int = CHUNK) -> int:
    """`num_proc`, by default one for each core on Linux (one for few items, and elsewhere); never more than chunks."""
    if num_proc is None:
        num_proc = len(os.sched_getaffinity(0)) if sys.platform == "linux" and num_items >= FEW else 1
    return max(1, min(num_proc, -(-num_items // chunk)))


def map_chunks(
    function: Callable[[list], list],
    items: Sequence[Any],
    num_proc: int | None = None,
    settings: tuple = (),
    ahead: int = 0,
    chunk: int = CHUNK,
) -> Iterator[Any]:
    """
    The results of `function(chunk, *settings)`, a list for each chunk of items, one after the other and in order.

    Args:
        function (`Callable`): a function of a module, which processes can find by its name.
        items (`Sequence`): what it is applied to.
        num_proc (`int`, *optional*): see [`number_of_processes`].
        settings (`tuple`): its further arguments.
        ahead (`int`): items that the processes may finish before their results are taken.
        chunk (`int`): items that travel together between processes.

    Raises:
        [`InputError`]: a process was killed; and whatever `function` raises, where its chunk is due.
    """
    chunks = [list(items[i : i + chunk]) for i in range(0, len(items), chunk)]
    num_proc = number_of_processes(num_proc, len(items), chunk)
    if num_proc == 1:
        for part in chunks:
            yield from function(part, *settings)
        return
    # A forked child starts at once, where a spawned one would import the package again. It is safe beside torch's
    # threads, which a fork loses, since the children call numpy and never torch.
    context = get_context("fork" if sys.platform == "linux" else "spawn")
    with ProcessPoolExecutor(num_proc, mp_context=context, initializer=obey_the_main_process) as executor:
        pending: deque[Future] = deque()
        try:
            for part in chunks:
                with interrupted_later():  # a pool that is cut off while it starts leaves its workers behind
                    pending.append(executor.submit(function, part, *settings))
                if len(pending) > max(2 * num_proc, ahead // chunk):
                    yield from pending.popleft().result()
            while len(pending) > 1:
                yield from pending.popleft().result()
            last = pending.popleft().result()
        except BrokenProcessPool as error:
            raise InputError(
                "a process that made cutouts was killed (too little memory?): give fewer with num_proc"
            ) from error
        finally:
            for future in pending:
                future.cancel()
    # Once the pool is closed: who takes as many results as there are items leaves the generator here. If the pool were
    # closed when the generator is collected, Python would drop a Ctrl-C that comes meanwhile.
    yield from last
