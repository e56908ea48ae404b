"""A pool of worker processes for the per-crystal computations of a firework."""

from __future__ import annotations

import atexit
import os
import threading
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_pool: ProcessPoolExecutor | None = None
_ATTEMPTS = 2


def worker_count() -> int:
    """Return the number of worker processes: ``INV_DESIGN_WORKERS``, else the cores this process may use."""
    text = os.environ.get("INV_DESIGN_WORKERS", "")
    if text:
        if not text.isdigit() or int(text) < 1:
            raise ValueError(f"INV_DESIGN_WORKERS is {text!r}; give a whole number of at least 1")
        return int(text)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def map_unordered(
    function: Callable[..., dict[str, Any]], arguments: Sequence[dict[str, Any]]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (index, result) of ``function(**arguments[index])`` as they finish.

    A worker that dies takes down the pool: what it had not finished is tried once more in a new pool, and what then
    still fails comes back as a failed record.
    """
    from inv_design.mechanics.stages import failed

    todo = list(range(len(arguments)))
    if worker_count() == 1 or len(todo) <= 1:
        for index in todo:
            yield index, function(**arguments[index])
        return
    for attempt in range(_ATTEMPTS):
        futures = {}
        try:
            futures = {_executor().submit(function, **arguments[index]): index for index in todo}
            for future in as_completed(futures):
                index = futures[future]
                result = future.result()
                todo.remove(index)
                yield index, result
            return
        except BrokenProcessPool:
            close()
            if attempt == _ATTEMPTS - 1:
                for index in todo:
                    yield index, failed("the worker process died twice (out of memory?)")
        except BaseException:  # Ctrl-C or a closed generator: do not leave a queue behind
            for future in futures:
                future.cancel()
            raise


def close() -> None:
    """Shut the pool down; a later call starts a new one."""
    global _pool  # noqa: PLW0603
    if _pool is not None:
        _pool.shutdown(wait=False, cancel_futures=True)
        _pool = None


def _executor() -> ProcessPoolExecutor:
    global _pool  # noqa: PLW0603
    if _pool is None:
        from multiprocessing import get_context

        _pool = ProcessPoolExecutor(
            max_workers=worker_count(), mp_context=get_context("spawn"), initializer=_start, initargs=(os.getpid(),)
        )
        atexit.register(close)
    return _pool


def _start(parent: int) -> None:
    """Set one thread per worker, leave Ctrl-C to the parent, and die with it (also after ``kill -9``)."""
    import signal
    import warnings

    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", SPGLIB_WARNING="OFF")
    warnings.filterwarnings("ignore")
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
