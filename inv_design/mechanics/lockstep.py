"""Many computations in lockstep: each asks for evaluations as it goes, and one pass of the calculator answers all."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, TypeVar

from inv_design.mechanics.evaluate import evaluate

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from ase import Atoms
    from ase.calculators.calculator import Calculator

    from inv_design.mechanics.evaluate import Evaluation

    History = list[list[Evaluation]]
    """The answers that a computation was sent, in order."""

R = TypeVar("R")

Work = Generator["Sequence[Atoms]", "list[Evaluation]", R]
"""A computation on one crystal: yields configurations, is sent their evaluations, returns its result.

It handles its own failures: an exception that leaves it stops the others too.
"""


class Memory:
    """Keeps what computations were answered: one that begins again is sent that, and goes on from there.

    A computation follows from its answers alone, so that it ends as if it had never been stopped. This class forgets.
    """

    def recall(self, index: int) -> History:
        """Return what the computation of an index was answered before."""
        del index
        return []

    def offer(self, histories: Mapping[int, History]) -> None:
        """Keep the answers of all computations under way if it is time to; it may raise to stop them here."""


_memory: ContextVar[Memory | None] = ContextVar("memory", default=None)


@contextmanager
def remembering(memory: Memory) -> Iterator[None]:
    """Let the computations of the block, if they run in this process, begin from and be kept in a memory."""
    token = _memory.set(memory)
    try:
        yield
    finally:
        _memory.reset(token)


BATCH = 16
"""Computations under way together where the calculator does not say otherwise."""


def run_together(
    works: Iterable[Work[R]], calculator: Calculator, *, batch: int | None = None
) -> Iterator[tuple[int, R]]:
    """Yield (index, result) of each computation as it finishes; ``batch`` of them are under way at any time.

    By default so many as suit the calculator's device: its ``batch``, or :data:`BATCH`.

    What the running computations ask for is evaluated together. A calculator that answers one by one gains nothing
    from that, so that only one computation is under way there, and its result comes as early as it can.
    """
    if getattr(calculator, "evaluate_batch", None) is None:
        batch = 1
    elif batch is None:
        batch = getattr(calculator, "batch", BATCH)
    memory = _memory.get()
    pending = enumerate(works)
    running: dict[int, tuple[Work[R], Sequence[Atoms]]] = {}
    histories: dict[int, History] = {}
    while True:
        while len(running) < batch and (item := next(pending, None)) is not None:
            index, work = item
            histories[index] = []
            try:
                running[index] = work, _begun(work, memory.recall(index) if memory else [], histories[index])
            except StopIteration as stop:
                del histories[index]
                yield index, stop.value
        if not running:
            return
        if memory is not None:
            memory.offer(histories)
        evaluations = iter(evaluate(calculator, [atoms for _, asked in running.values() for atoms in asked]))
        answers = {index: [next(evaluations) for _ in asked] for index, (_, asked) in running.items()}
        for index, answer in answers.items():
            work, _ = running[index]
            if memory is not None:
                histories[index].append(answer)
            try:
                running[index] = work, work.send(answer)
            except StopIteration as stop:
                del running[index], histories[index]
                yield index, stop.value


def _begun(work: Work[R], known: History, history: History) -> Sequence[Atoms]:
    """Return what a computation asks for first that is not known; what is known goes into its history."""
    asked = next(work)
    for answer in known:
        if [len(atoms) for atoms in asked] != [len(evaluation.forces) for evaluation in answer]:
            break  # of another computation: what fitted is as good as asked for
        history.append(answer)
        asked = work.send(answer)
    return asked


def run_in_order(works: Iterable[Work[R]], calculator: Calculator, *, batch: int | None = None) -> Iterator[R]:
    """Yield the result of each computation in the order given; see :func:`run_together`."""
    finished: dict[int, R] = {}
    following = 0
    for index, result in run_together(works, calculator, batch=batch):
        finished[index] = result
        while following in finished:
            yield finished.pop(following)
            following += 1
