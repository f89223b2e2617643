"""What worker processes owe the main process."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time

import psutil

CHECK_EVERY = 0.5  # seconds


def obey_the_main_process() -> None:
    """
    Initializer of a pool's workers, forked or spawned: a worker leaves Ctrl-C to the main process, and ends when that
    terminates it (a fork has that one's handlers) or is gone. A pool's own pipes do not tell that the main process was
    killed, since forked workers hold each other's ends: they would wait for work for ever.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    main = multiprocessing.parent_process()
    if main is not None:
        threading.Thread(target=_leave_with, args=(main.pid,), daemon=True).start()


def leave_with(process: int) -> None:
    """
    End this process when another one is gone, which need not have started it: the workers of a fork server have that
    one as their parent.
    """
    threading.Thread(target=_leave_without, args=(process,), daemon=True).start()


def _leave_without(process: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        watched = psutil.Process(process)
        while watched.is_running() and watched.status() != psutil.STATUS_ZOMBIE:  # whose parent has not noticed yet
            time.sleep(CHECK_EVERY)
    os._exit(1)


def _leave_with(main_process: int) -> None:
    # Orphans get another parent at once; the number of the dead one stays in use until somebody has waited for it.
    while os.getppid() == main_process:
        time.sleep(CHECK_EVERY)
    os._exit(1)
