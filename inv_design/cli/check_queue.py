"""What is wrong with a queue adapter before `qlaunch` uses it: the script that it writes, its files and its times."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inv_design.cli.check import Finding, _try
from inv_design.cli.check_worker import read_worker
from inv_design.cli.errors import describe, one_line
from inv_design.cli.render import duration, quiet

if TYPE_CHECKING:
    from collections.abc import Iterator

SECONDS = 60.0
"""How long sbatch may take to answer."""
FILE_OPTIONS = {"-l": "launchpad", "--launchpad_file": "launchpad", "-w": "worker", "--fworker_file": "worker"}
UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def examine_queue(path: Path) -> Iterator[Finding]:
    """Yield the findings on a ``my_qadapter.yaml``; nothing is submitted."""
    try:
        adapter, script, unknown = render_script(path)
    except Exception as error:  # FireWorks raises whatever a file makes it raise
        yield Finding(
            "adapter", "failed", describe(error), "correct the file; `inv-design init --cluster` writes examples"
        )
        return
    kind = getattr(adapter, "q_type", type(adapter).__name__)
    yield _adapter(path, adapter, kind, unknown)
    yield _try("files", lambda: _files(path, adapter), f"correct rocket_launch and pre_rocket in {path}")
    yield _walltime(path, adapter, kind)
    yield _submission(path, adapter, kind, script)


def render_script(path: Path) -> tuple[Any, str, list[str]]:
    """Return the adapter of a file, the script that `qlaunch` would submit, and the keys that are not in it.

    Raises
    ------
    Exception
        As FireWorks does; ValueError if the file is of something else.
    """
    from fireworks.queue.queue_adapter import QueueAdapterBase
    from fireworks.utilities.fw_serializers import SAVED_FW_MODULES, load_object_from_file

    if not path.is_file():
        raise FileNotFoundError(2, "no such file", str(path))
    # where FireWorks itself finds it, after importing all modules of its packages, its tutorials' tests too
    SAVED_FW_MODULES.setdefault("CommonAdapter", "fireworks.user_objects.queue_adapters.common_adapter")
    try:
        with quiet():
            adapter = load_object_from_file(str(path))
    except KeyError as error:
        raise ValueError(f"{path} is no queue adapter: it has no {error}") from None
    if not isinstance(adapter, QueueAdapterBase):
        raise ValueError(f"{path} is no queue adapter but a {type(adapter).__name__}")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        script = adapter.get_script_str(str(Path.cwd()))
    unknown = [found.group(1) for w in caught if (found := re.match(r"Key (\S+) has been specified", str(w.message)))]
    return adapter, script, unknown


def _adapter(path: Path, adapter: Any, kind: str, unknown: list[str]) -> Finding:
    if unknown:
        text = f"{path}: {kind}'s template of FireWorks has no {', '.join(unknown)}, which no job gets"
        return Finding("adapter", "failed", text, f"choose among the keys of {adapter.template_file}")
    if kind == "PBS" and not adapter.get("queue"):  # FireWorks counts by it alone
        text = f"{path}: without `queue` qlaunch counts no jobs, and submits more than its -m"
        return Finding("adapter", "failed", text, "give the queue")
    where = f"queue {adapter['queue']}" if adapter.get("queue") else "the cluster's default queue"
    return Finding("adapter", "ok", f"{path}: {kind}, {where}")


def _files(path: Path, adapter: Any) -> str:
    """Return which files a job's worker reads; raise ValueError if it would not find them, or find another folder's."""
    words = _words(adapter)
    programs = [word for word in words if Path(word).name == "rlaunch"]
    if not programs:
        raise ValueError(f"rocket_launch calls no rlaunch: {' '.join(words) or 'it is empty'}")
    if "/" in programs[0] and shutil.which(programs[0]) is None:  # else pre_rocket may bring it onto the PATH
        raise ValueError(f"{programs[0]} is no program on this machine")
    named = {kind: Path(words[n + 1]) for n, word in enumerate(words[:-1]) if (kind := FILE_OPTIONS.get(word))}
    if found := re.search(r"JOBFLOW_CONFIG_FILE=(\S+)", str(adapter.get("pre_rocket") or "")):
        named["jobflow"] = Path(_expanded(found.group(1)))
    folder = path.resolve().parent
    for file in named.values():
        if not file.is_absolute():
            raise ValueError(f"{file} is searched for where a job starts; give its whole path, {folder / file}")
        if not file.is_file():
            raise ValueError(f"{file} does not exist{_copied(folder / file.name)}")
        if file.resolve().parent != folder and (folder / file.name).exists():
            raise ValueError(f"{file} is of another folder{_copied(folder / file.name)}")
    takes = ""
    if "worker" in named:
        name, categories = read_worker(named["worker"])
        takes = f"; worker {name!r} takes {', '.join(categories)}"
    return f"{', '.join(str(file) for file in named.values()) or 'none named'}{takes}"


def _words(adapter: Any) -> list[str]:
    """Return the words of rocket_launch, as a shell here would read them."""
    return [_expanded(word) for word in shlex.split(str(adapter.get("rocket_launch") or ""))]


def _expanded(text: str) -> str:
    return os.path.expandvars(text)


def _copied(beside: Path) -> str:
    return f"; the one beside the adapter is {beside}" if beside.exists() else ""


def _walltime(path: Path, adapter: Any, kind: str) -> Finding:
    """Compare the job's time with how long its worker takes fireworks, and with `timeout`, which ends it."""
    given = adapter.get("walltime")
    try:
        words = _words(adapter)
        limit = seconds_of_walltime(str(given), kind) if given is not None else None
        takes = _option_seconds(words, "--timeout")
        ends = _timeout_seconds(words)
    except ValueError as error:
        return Finding("walltime", "failed", f"{path}: {error}", 'write walltime as "HH:MM:SS", in quotes')
    if limit is None:
        return Finding("walltime", "info", "no walltime: the queue's own limit ends the job")
    text = f"the job ends after {duration(limit)}"
    for what, seconds in (("takes fireworks for", takes), ("is ended after", ends)):
        if seconds is not None and seconds >= limit:
            text = f"{text}, but its worker {what} {duration(seconds)}"
            return Finding("walltime", "failed", text, f"a timeout below {limit:.0f} s in rocket_launch of {path}")
    if takes is None:
        return Finding(
            "walltime", "info", f"{text}; without --timeout in rocket_launch its worker takes work to the end"
        )
    if kind == "SLURM" and not adapter.get("signal"):
        return Finding("walltime", "info", f"{text}; without `signal` a worker gives nothing back before that")
    return Finding("walltime", "ok", f"{text}, its worker takes fireworks for {duration(takes)}")


def seconds_of_walltime(text: str, kind: str) -> float | None:
    """Return a wall time in seconds, as Slurm or PBS reads it; ``None`` for no limit.

    Raises
    ------
    ValueError
        If it is none.
    """
    if text.upper() in ("INFINITE", "UNLIMITED"):
        return None
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text.strip())
    if found is None or (found.group(1) and kind != "SLURM"):
        raise ValueError(f"walltime {text!r} is no time")
    days, *rest = found.groups()
    parts = [int(part) for part in rest if part is not None]
    if days is not None:  # days-hours:minutes:seconds
        parts += [0] * (3 - len(parts))
    elif kind == "SLURM" and len(parts) == 1:  # minutes
        parts = [0, parts[0], 0]
    else:
        parts = [0] * (3 - len(parts)) + parts
    return int(days or 0) * 86400.0 + parts[0] * 3600 + parts[1] * 60 + parts[2]


def _option_seconds(words: list[str], option: str) -> float | None:
    """Return the number after the last of an option, or with ``=``; ``None`` without."""
    joined = [word.removeprefix(f"{option}=") for word in words if word.startswith(f"{option}=")]
    apart = [words[n + 1] for n, word in enumerate(words[:-1]) if word == option]
    return _seconds((apart or joined)[-1]) if apart or joined else None


def _timeout_seconds(words: list[str]) -> float | None:
    """Return after how long the program `timeout` ends the worker; ``None`` without."""
    start = next((n for n, word in enumerate(words) if Path(word).name == "timeout"), None)
    if start is None:
        return None
    return next((_seconds(word) for word in words[start + 1 :] if not word.startswith("-")), None)


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text)
    if found is None:
        raise ValueError(f"{text!r} is no number of seconds")
    return float(found.group(1)) * UNITS[found.group(2)]


def _submission(path: Path, adapter: Any, kind: str, script: str) -> Finding:
    """Ask Slurm whether it would take the script; other schedulers cannot be asked."""
    if kind != "SLURM":
        text = (
            f"{kind} has no test of a script; `qlaunch -q {path} singleshot` submits one, and FW_submit.script keeps it"
        )
        return Finding("script", "info", text)
    submit = adapter.q_commands[kind]["submit_cmd"]
    if shutil.which(submit) is None:
        return Finding("script", "failed", f"{submit} is not on PATH", "load the scheduler's module")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "FW_submit.script"
        file.write_text(script)
        try:
            done = subprocess.run(
                [submit, "--test-only", str(file)], capture_output=True, text=True, check=False, timeout=SECONDS
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return Finding("script", "failed", f"{submit} does not answer: {error}", "ask the cluster's support")
    said = one_line(done.stderr.replace(f"{submit}: ", "")) or one_line(done.stdout) or f"exit code {done.returncode}"
    if done.returncode != 0:
        cure = f"correct queue, account and what is asked for in {path}; `sinfo -l` tells what there is"
        return Finding("script", "failed", f"{submit} refuses it: {said}", cure)
    return Finding("script", "ok", f"{submit} would take it: {said}")
