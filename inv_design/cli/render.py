"""Tables, progress and JSON lines: rich on a terminal, plain text elsewhere."""

from __future__ import annotations

import contextlib
import io
import json
import math
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import Console
    from rich.progress import Progress, TaskID

QUIET_SECONDS = 10.0
"""Seconds between two progress lines where standard error is not a terminal."""

WIDE = 240
"""Columns of a table that does not go to a terminal: wide enough that nothing is cut off."""


def console(*, stderr: bool = False) -> Console:
    """Return a rich console on standard output or error; one that is no terminal does not wrap."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    terminal = stream.isatty()
    return Console(file=stream, width=None if terminal else WIDE, highlight=False, soft_wrap=not terminal, emoji=False)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what libraries print to themselves, so that standard output holds the command's own lines only."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def say(text: str) -> None:
    """Write a line of information to standard error, so that standard output stays data."""
    print(text, file=sys.stderr, flush=True)


def table(
    rows: Sequence[Sequence[Any]], columns: Sequence[str], *, right: Sequence[str] = (), cut: str | None = None
) -> None:
    """Print rows under column names.

    Parameters
    ----------
    right
        Columns that are aligned to the right.
    cut
        The column that is cut off where the terminal is too narrow, so that no other is (ids are there to be copied).
    """
    texts = [[cell if hasattr(cell, "plain") else number(cell) for cell in row] for row in rows]
    out = console()
    if not out.is_terminal:
        _plain_table(texts, columns, right)
        return
    from rich import box
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(columns):
        width = max([len(name), *(len(str(row[i])) for row in texts)])
        whole = cut is not None and name != cut
        grid.add_column(
            name,
            justify="right" if name in right else "left",
            no_wrap=cut is not None,
            min_width=width if whole else None,
            max_width=None if whole or cut is None else max(20, out.width - _whole_width(texts, columns, cut)),
        )
    for row in texts:
        grid.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    out.print(grid)


def _whole_width(rows: Sequence[Sequence[Any]], columns: Sequence[str], cut: str) -> int:
    """Return the terminal columns that everything but the cut column takes."""
    widths = [max([len(name), *(len(str(row[i])) for row in rows)]) for i, name in enumerate(columns) if name != cut]
    return sum(widths) + 3 * len(columns)


def _plain_table(rows: Sequence[Sequence[Any]], columns: Sequence[str], right: Sequence[str]) -> None:
    """Print aligned columns two spaces apart, nothing cut off, nothing after the last word of a line."""
    lines = [list(columns), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    for line in lines:
        cells = [
            cell.rjust(width) if name in right else cell.ljust(width)
            for cell, width, name in zip(line, widths, columns, strict=True)
        ]
        print("  ".join(cells).rstrip())


def number(value: Any, digits: int = 4) -> str:
    """Return a cell's text: floats with ``digits`` significant digits, nothing as ``-``."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.{digits}g}" if abs(value) < 10**digits else f"{value:.0f}"
    return str(value)


def json_line(value: Any) -> None:
    """Print a value as one line of strict JSON (NaN becomes null) at once."""
    print(json.dumps(plain(value), ensure_ascii=False, allow_nan=False), flush=True)


def json_document(value: Any) -> None:
    """Print a value as indented strict JSON."""
    print(json.dumps(plain(value), ensure_ascii=False, allow_nan=False, indent=2))


def plain(value: Any) -> Any:
    """Return a value in JSON types: arrays as lists, times as ISO text, NaN and infinities as null."""
    if hasattr(value, "tolist"):  # numpy arrays and scalars
        value = value.tolist()
    if isinstance(value, dict):
        value = {str(key): plain(item) for key, item in value.items()}
    elif isinstance(value, list | tuple):
        value = [plain(item) for item in value]
    elif isinstance(value, set | frozenset):
        value = sorted(plain(item) for item in value)
    elif isinstance(value, float):
        value = value if math.isfinite(value) else None
    elif value is not None and not isinstance(value, bool | int | str):
        value = value.isoformat() if hasattr(value, "isoformat") else str(value)
    return value


class Bar:
    """A running progress display; ``total`` may be None where it is not known."""

    def __init__(self, description: str, total: int | None, progress: Progress | None) -> None:
        self.description = description
        self.total = total
        self.done = 0
        self._progress = progress
        self._task: TaskID | None = progress.add_task(description, total=total, text="") if progress else None
        self._start = time.monotonic()
        self._said = self._start
        self._said_done = -1

    def update(self, done: int | None = None, text: str = "", *, total: int | None = None) -> None:
        """Set how much is done, what is going on, and the total if it changed."""
        self.done = self.done if done is None else done
        self.total = self.total if total is None else total
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=self.done, total=self.total, text=text)
        elif time.monotonic() - self._said >= QUIET_SECONDS:
            self._line(text)

    def __call__(self, done: int, total: int, text: str = "") -> None:
        """Serve as the ``progress`` callback of predictors, generators and calculations."""
        self.update(done, text, total=total)

    def advance(self, text: str = "") -> None:
        """Count one more."""
        self.update(self.done + 1, text)

    def finish(self) -> None:
        """Write the last line where there is no terminal."""
        if self._progress is None and self.done not in (self._said_done, 0):
            self._line("")

    def _line(self, text: str) -> None:
        seconds = time.monotonic() - self._start
        of = f"/{self.total}" if self.total is not None else ""
        rate = f", {number(self.done / seconds, 2)}/s" if seconds > 0 and self.done else ""
        left = ""
        if self.total and 0 < self.done < self.total:
            left = f", {duration(seconds / self.done * (self.total - self.done))} to go"
        note = f", {text}" if text else ""
        say(f"{self.description}: {self.done}{of} in {duration(seconds)}{rate}{left}{note}")
        self._said, self._said_done = time.monotonic(), self.done


@contextmanager
def progress(description: str, total: int | None = None) -> Iterator[Bar]:
    """Show progress on standard error: a bar with rate and time to go on a terminal, a line now and then elsewhere.

    Examples
    --------
    >>> with progress("Relax", total=10) as bar:  # doctest: +SKIP
    ...     bar.update(3, "Re3W")
    """
    if not sys.stderr.isatty():
        bar = Bar(description, total, None)
        try:
            yield bar
        finally:
            bar.finish()
        return
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.text import Text

    class Figures(ProgressColumn):
        def render(self, task: Task) -> Text:
            of = f"/{task.total:.0f}" if task.total is not None else ""
            rate = f"  {number(task.speed, 2)}/s" if task.speed else ""
            seconds = "" if task.elapsed is None else f"  {duration(task.elapsed)}"
            left = "" if task.time_remaining is None or task.finished else f"  {duration(task.time_remaining)} to go"
            return Text(f"{task.completed:.0f}{of}{rate}{seconds}{left}")

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        Figures(),
        TextColumn("{task.fields[text]}", style="dim"),
    )
    with Progress(*columns, console=console(stderr=True), transient=False) as display:
        yield Bar(description, total, display)


def duration(seconds: float) -> str:
    """Return a short text for a time: ``12 s``, ``3 min 05 s``, ``2 h 10 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
