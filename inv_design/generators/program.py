"""One run of a program of someone else: argv from a template, a time limit, no shell, and what is known afterwards."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import string
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

ALLOW = "INV_DESIGN_ALLOW_PROGRAMS"
"""Set to 1, every external program that a model file names may run."""
GRACE = 5.0
"""Seconds between the request to end and the kill."""
TAIL_BYTES = 64 * 1024
TAIL_LINES = 20


@dataclass(frozen=True)
class Run:
    """What is known of a run that has ended.

    Attributes
    ----------
    argv
        The arguments, the program first.
    exit_code
        As the system gave it; negative for a signal.
    timed_out
        Whether it was ended because its time was up.
    seconds
        Wall time.
    tail
        The last lines of its standard output and standard error, as they came.
    """

    argv: list[str]
    exit_code: int
    timed_out: bool
    seconds: float
    tail: str

    @property
    def failed(self) -> bool:
        """Whether it did not end by itself with exit code 0."""
        return self.timed_out or self.exit_code != 0

    @property
    def ending(self) -> str:
        """How it ended, in a few words with the last line that it printed."""
        how = f"was ended after {self.seconds:.0f} s" if self.timed_out else f"ended with exit code {self.exit_code}"
        last = self.tail.splitlines()[-1:] if self.tail else []
        return f"{how}: {last[0][:300]}" if last else how


def check_template(template: Sequence[str], fields: Iterable[str], *, name: str) -> tuple[str, ...]:
    """Return an argv template as a tuple.

    Parameters
    ----------
    fields
        Names that may stand in braces.
    name
        Of the setting, for the message.

    Raises
    ------
    ValueError
        If it is no list of texts, is empty, or has another field.
    """
    if isinstance(template, str) or not all(isinstance(part, str | int | float) for part in template) or not template:
        raise ValueError(f"{name} = {template!r}; give the program and its arguments as a list")
    known = set(fields)
    for part in map(str, template):
        try:
            found = [field for _, field, _, _ in string.Formatter().parse(part) if field is not None]
        except ValueError as error:
            raise ValueError(f"{name}: {part!r} is no template ({error}); write {{{{ and }}}} for braces") from None
        unknown = [field for field in found if field not in known]
        if unknown:
            raise ValueError(
                f"{name}: {part!r} has the field {unknown[0]!r}; known are {', '.join(sorted(known))}, "
                "and {{ and }} stand for braces"
            )
    return tuple(str(part) for part in template)


def fill(template: Sequence[str], values: Mapping[str, Any]) -> list[str]:
    """Return the argv of a template; a leading ``~`` is the home folder. A value never becomes two arguments."""
    return [(str(Path(part).expanduser()) if part.startswith("~") else part).format(**values) for part in template]


def run_program(
    argv: Sequence[str], *, folder: Path, timeout: float, environment: Mapping[str, str] | None = None
) -> Run:
    """Run a program in a folder, and end it with all its children when its time is up.

    It gets the environment of this process without the settings of inv_design (the database's password is one).

    Parameters
    ----------
    timeout
        Seconds.
    environment
        Variables to add.

    Raises
    ------
    ValueError
        If the program cannot be started.
    """
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("INV_DESIGN_")}
    started = time.perf_counter()
    try:
        process = subprocess.Popen(  # no shell, a session of its own
            list(argv), cwd=folder, env=inherited | dict(environment or {}), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise ValueError(
            f"cannot start {argv[0]!r} ({error.strerror or error}); give the full path of the program"
        ) from None
    assert process.stdout is not None
    tail = bytearray()
    reader = Thread(target=_keep_tail, args=(process.stdout, tail), daemon=True)
    reader.start()
    timed_out = False
    try:
        process.wait(timeout)
    except subprocess.TimeoutExpired:
        timed_out = True
    finally:
        _end_group(process)
        reader.join(1.0)  # a child that left the group may hold the pipe open
    lines = bytes(tail).decode("utf-8", "replace").splitlines()[-TAIL_LINES:]
    return Run(list(argv), int(process.returncode), timed_out, time.perf_counter() - started, "\n".join(lines))


def _keep_tail(stream: IO[bytes], tail: bytearray) -> None:
    with suppress(ValueError, OSError):
        while chunk := os.read(stream.fileno(), 8192):
            tail += chunk
            del tail[:-TAIL_BYTES]
        stream.close()


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End what is left of the program's process group, asked first and killed if it stays."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGTERM)
        if process.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def file_hash(path: str | Path) -> str:
    """Return the SHA-256 of a file, or of the names and contents of all files of a folder."""
    path = Path(path)
    if path.is_dir():
        digest = hashlib.sha256()
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            digest.update(f"{file.relative_to(path).as_posix()}\0{file_hash(file)}\n".encode())
        return digest.hexdigest()
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def files_hash(files: Mapping[str, bytes]) -> str:
    """Return what :func:`file_hash` returns of these files, by relative path; ``.`` is a single file."""
    if "." in files:
        return hashlib.sha256(files["."]).hexdigest()
    digest = hashlib.sha256()
    for name in sorted(files, key=Path):
        digest.update(f"{name}\0{hashlib.sha256(files[name]).hexdigest()}\n".encode())
    return digest.hexdigest()


def program_hashes(template: Sequence[str]) -> dict[str, str]:
    """Return path -> SHA-256 of the program and of every argument that is a file, such as a script."""
    found = {}
    for i, part in enumerate(template):
        name = str(Path(part).expanduser())
        if i == 0:
            name = shutil.which(name) or name
        with suppress(OSError):
            if "{" not in name and Path(name).is_file():
                found[name] = file_hash(name)
    return found


# A model file of an external generator names programs. Whoever loads one that a stranger made must not run them
# unawares: only what was once set up on this account (fitted from campaign.yaml or Python) runs, as direnv does it.


def command_hash(commands: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the settings that decide about what is run."""
    return hashlib.sha256(json.dumps(commands, sort_keys=True).encode()).hexdigest()


def allow(commands: Mapping[str, Any]) -> None:
    """Remember that these commands may run on this account."""
    path, line = _allowed_file(), command_hash(commands)
    with suppress(OSError):  # a home that cannot be written: loaded models then need the variable
        if not _listed(line):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a") as file:
                file.write(line + "\n")


def is_allowed(commands: Mapping[str, Any]) -> bool:
    """Return whether these commands were set up on this account, or the variable :data:`ALLOW` is 1."""
    return os.environ.get(ALLOW) == "1" or _listed(command_hash(commands))


def _listed(line: str) -> bool:
    with suppress(OSError):
        return line in _allowed_file().read_text().split()
    return False


def _allowed_file() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(state) / "inv_design" / "allowed_programs"
