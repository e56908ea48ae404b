"""A pool of worker processes for the per-crystal computations of a firework."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Future

LOG = logging.getLogger(__name__)

_pool: ProcessPoolExecutor | None = None
CHUNK = 8
"""Crystals that a worker computes in one batch."""


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

    A worker that dies takes down the pool: what it had not finished is tried once more, each alone in the pool, and
    what then still kills its worker comes back as a failed record.
    """
    if worker_count() == 1 or len(arguments) <= 1:
        for index in range(len(arguments)):
            yield index, function(**arguments[index])
        return
    yield from _map_chunks(function, arguments, [[i] for i in range(len(arguments))])


def map_structures(
    measure: Callable[..., Iterator[tuple[int, dict[str, Any]]]],
    structures: Sequence[Any],
    *,
    calculator: str,
    **options: Any,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (index, record) of ``measure(structures, calculator=calculator, **options)`` as they finish.

    Each worker process gets chunks of ``CHUNK`` crystals if the calculator evaluates batches, else one by one: a
    process that is killed loses its running chunk at most. Dead workers as in :func:`map_unordered`. Where batches are
    evaluated on a GPU, this process does it all: they are larger there, and each process would need its own memory.

    A process under which a GPU failed has lost it for good. A worker ends then, and counts as dead; what this process
    has not finished is computed in a process of its own, one crystal at a time.
    """
    from inv_design.calculators.registry import runs_on_gpu, supports_batches
    from inv_design.mechanics.evaluate import DeviceLost

    arguments = [{"structure": s, "calculator": calculator, **options} for s in structures]
    if (workers := worker_count()) == 1 or len(structures) <= 1 or runs_on_gpu(calculator):
        left = list(range(len(structures)))
        try:
            for index, record in measure(structures, calculator=calculator, **options):
                left.remove(index)
                yield index, record
        except DeviceLost as error:
            LOG.warning("%s; %d crystals are computed in another process", error, len(left))
        yield from _map_alone(measure, arguments, left, window=1)
        return
    size = min(CHUNK, -(-len(structures) // workers)) if supports_batches(calculator) else 1
    chunks = [list(range(i, min(i + size, len(structures)))) for i in range(0, len(structures), size)]
    yield from _map_chunks(measure, arguments, chunks)


def _map_chunks(
    function: Callable[..., Any], arguments: Sequence[dict[str, Any]], chunks: list[list[int]]
) -> Iterator[tuple[int, dict[str, Any]]]:
    todo = {index for chunk in chunks for index in chunk}
    futures: dict[Future[list[Any]], list[int]] = {}
    try:
        futures = {_executor().submit(_run_chunk, function, [arguments[i] for i in c]): c for c in chunks}
        for future in as_completed(futures):
            for index, result in zip(futures[future], future.result(), strict=True):
                todo.remove(index)
                yield index, result
        return
    except BrokenProcessPool:
        close()
    except BaseException:  # Ctrl-C or a closed generator: do not leave a queue behind
        for future in futures:
            future.cancel()
        raise
    yield from _map_alone(function, arguments, sorted(todo), window=worker_count())


def _map_alone(
    function: Callable[..., Any], arguments: Sequence[dict[str, Any]], left: Sequence[int], *, window: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (index, result) of what is left after a process died, ``window`` of them at a time."""
    from inv_design.mechanics.stages import failed

    for start in range(0, len(left), window):
        part = list(left[start : start + window])
        alone = {}
        try:
            alone = {_executor().submit(_run_chunk, function, [arguments[index]]): index for index in part}
            for future in as_completed(alone):
                (result,) = future.result()
                part.remove(alone[future])
                yield alone[future], result
        except BrokenProcessPool:
            close()
        except BaseException:
            for future in alone:
                future.cancel()
            raise
        for index in part:  # of a broken window one at a time: only who kills the worker is blamed for it
            try:
                (result,) = _executor().submit(_run_chunk, function, [arguments[index]]).result()
            except BrokenProcessPool:
                close()
                result = failed("the worker process died twice (out of memory?)")
            yield index, result


def _run_chunk(function: Callable[..., Any], arguments: list[dict[str, Any]]) -> list[Any]:
    """Return the results of one chunk, in its order; of a function for many crystals by one call.

    The process ends where its GPU failed: the next one has it anew.
    """
    from inspect import isgeneratorfunction

    from inv_design.mechanics.evaluate import DeviceLost

    try:
        if not isgeneratorfunction(function):
            return [function(**arguments[0])]
        structures = [a["structure"] for a in arguments]
        found = dict(function(structures, **{k: v for k, v in arguments[0].items() if k != "structure"}))
        return [found[index] for index in range(len(structures))]
    except DeviceLost as error:
        LOG.error("%s; this worker process ends", error)
        os._exit(1)


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
