"""Exit codes, and errors as one line that says what is wrong with which value and what to do."""

from __future__ import annotations

import difflib
import os
import sys
import traceback

import click

DONE, FAILED, WRONG_USAGE, NOTHING_MATCHED, INTERRUPTED = 0, 1, 2, 3, 130


class NothingMatched(Exception):  # noqa: N818 - an outcome, not an error
    """A query that found nothing: exit code 3."""


class CommandFailed(Exception):  # noqa: N818 - reads as what happened
    """A command that did its work in part or not at all, with a line that says so: exit code 1."""


def exit_code(error: BaseException) -> int:
    """Return the exit code that an error stands for."""
    from inv_design.config import ConfigError

    if isinstance(error, NothingMatched):
        return NOTHING_MATCHED
    if isinstance(error, click.Abort | KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, click.UsageError | ConfigError):
        return WRONG_USAGE
    return FAILED


def describe(error: BaseException) -> str:
    """Return one line for an error: the text of an expected one, type and text of any other."""
    text = one_line(str(error))
    expected = (ValueError, OSError, RuntimeError, LookupError, ImportError, NothingMatched, CommandFailed)
    if isinstance(error, click.Abort | KeyboardInterrupt):
        text = "interrupted; what was finished is kept, and the same command goes on from there"
    elif isinstance(error, click.ClickException):
        text = one_line(error.format_message()).rstrip(".")
        ctx = getattr(error, "ctx", None)
        if ctx is not None:
            text = f"{ctx.command_path}: {text}; see `{ctx.command_path} --help`"
    elif isinstance(error, KeyError):  # its text is the bare key, in quotes
        text = f"no entry {text}"
    elif isinstance(error, FileNotFoundError) and error.filename:
        text = f"{error.filename} does not exist; check the path"
    elif refused := _refusal(error):
        text = refused
    elif isinstance(error, PermissionError) and (refused := _refusal(error.__cause__)):
        text = f"{refused}; {text.rpartition('; ')[2]}"  # and where the records are kept
    elif isinstance(error, PermissionError) and error.filename:
        text = f"no right to write or read {error.filename}; choose another place, or have the rights changed"
    elif isinstance(error, IsADirectoryError) and error.filename:
        text = f"{error.filename} is a folder; give a file"
    elif not (isinstance(error, expected) and text):
        text = f"{type(error).__name__}{': ' + text if text else ''} (run again with --debug for the trace)"
    return text


def _refusal(error: BaseException | None) -> str | None:
    """Return which role a user lacks whom the server refused a command, or ``None``."""
    if error is None or not type(error).__module__.startswith("pymongo"):
        return None
    from stores.roles import refusal

    return refusal(error)


def report(error: Exception, *, debug: bool) -> int:
    """Write an error to standard error, with its trace if asked for, and return the exit code."""
    if debug or os.environ.get("INV_DESIGN_DEBUG", "") not in ("", "0"):
        traceback.print_exception(error)
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return WRONG_USAGE
    prefix = "" if isinstance(error, NothingMatched | click.Abort) else "error: "
    print(f"{prefix}{blame(error) or describe(error)}", file=sys.stderr)
    return exit_code(error)


UNFORESEEN = (TypeError, AttributeError, KeyError, IndexError, ArithmeticError, RecursionError)
"""What Python raises on data of another shape than was expected."""


def blame(error: BaseException) -> str | None:
    """Return one line on the record behind an error that nobody foresaw, ``None`` without an open database.

    A command that reads trips over a record that was changed behind the program's back; which one, the check tells.
    """
    foreseen = not isinstance(error, UNFORESEEN) or (isinstance(error, KeyError) and " " in str(error))
    if foreseen or "stores.connection" not in sys.modules:
        return None
    from stores.connection import current
    from stores.integrity import problems

    try:
        problem = next(problems(current(), shapes_only=True), None)
    except Exception:  # no database, or one that does not answer: it is the first error that counts
        return None
    if problem is not None:
        return f"a record is damaged: {one_line(str(problem))} (`inv-design db check` finds all)"
    what = one_line(f"{type(error).__name__}: {error}")
    return f"{what}; if somebody changed records, `inv-design db check` tells which, and --debug shows the trace"


def one_line(text: str) -> str:
    """Return ``text`` on one line."""
    return " ".join(text.split())


def nearest(name: str, known: list[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest known name, or a list of what is known."""
    by_lower = {item.lower(): item for item in known}
    close = difflib.get_close_matches(name.lower(), list(by_lower), n=1, cutoff=0.5)
    return f"; did you mean {by_lower[close[0]]!r}?" if close else f"; known: {', '.join(known)}"
