"""Many computations in lockstep: each asks for evaluations as it goes, and one pass of the calculator answers all."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, TypeVar

from inv_design.mechanics.evaluate import evaluate

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from ase import Atoms
    from ase.calculators.calculator import Calculator

    from inv_design.mechanics.evaluate import Evaluation

R = TypeVar("R")

Work = Generator["Sequence[Atoms]", "list[Evaluation]", R]
"""A computation on one crystal: yields configurations, is sent their evaluations, returns its result.

It handles its own failures: an exception that leaves it stops the others too.
"""


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
    pending = enumerate(works)
    running: dict[int, tuple[Work[R], Sequence[Atoms]]] = {}
    while True:
        while len(running) < batch and (item := next(pending, None)) is not None:
            index, work = item
            try:
                running[index] = work, next(work)
            except StopIteration as stop:
                yield index, stop.value
        if not running:
            return
        evaluations = iter(evaluate(calculator, [atoms for _, asked in running.values() for atoms in asked]))
        answers = {index: [next(evaluations) for _ in asked] for index, (_, asked) in running.items()}
        for index, answer in answers.items():
            work, _ = running[index]
            try:
                running[index] = work, work.send(answer)
            except StopIteration as stop:
                del running[index]
                yield index, stop.value


def run_in_order(works: Iterable[Work[R]], calculator: Calculator, *, batch: int | None = None) -> Iterator[R]:
    """Yield the result of each computation in the order given; see :func:`run_together`."""
    finished: dict[int, R] = {}
    following = 0
    for index, result in run_together(works, calculator, batch=batch):
        finished[index] = result
        while following in finished:
            yield finished.pop(following)
            following += 1
