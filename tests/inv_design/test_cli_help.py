from __future__ import annotations

import subprocess
import sys
import time

import click
import pytest
from click.testing import CliRunner

from inv_design import __version__
from inv_design.cli import COMMANDS, errors, main

HEAVY = ("torch", "pymatgen", "mongoengine", "pymongo", "numpy", "matplotlib", "sklearn", "ase", "rich", "pydantic")


def test_help_answers_within_half_a_second() -> None:
    best = float("inf")
    for _ in range(3):  # the best of three: a busy machine is not the program's fault
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "inv_design.cli", "--help"], capture_output=True, text=True, check=False
        )
        best = min(best, time.perf_counter() - start)
        assert done.returncode == 0
        assert "Commands:" in done.stdout
    assert best < 0.5, f"--help took {best:.2f} s"


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from inv_design.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        f"print(sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_version() -> None:
    result = CliRunner().invoke(main, ["--version"])
    assert result.exit_code == 0
    assert __version__ in result.output


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_explains_itself_as_listed(name: str) -> None:
    command = main.get_command(click.Context(main), name)
    assert command is not None
    result = CliRunner().invoke(main, [name, "--help"])
    assert result.exit_code == 0
    summary = COMMANDS[name][1]
    assert command.help is not None
    assert " ".join(command.help.split()).startswith(summary.rstrip(".")), "the list and the command's help differ"


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["qery"], "did you mean 'query'?"),
        (["--nonsense"], "--nonsense"),
        (["predict"], "FILE..."),
        (["generate", "-o", "x.extxyz"], "--target"),
        (["init", "x", "--template", "nope"], "nope"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(args: list[str], text: str) -> None:
    result = CliRunner().invoke(main, args)
    assert result.exit_code == errors.WRONG_USAGE
    assert text in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert result.stdout == ""


def test_debug_shows_the_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    args = ["elastic", "x.cif", "--calculator", "no_such_module:calculator"]
    quiet = CliRunner().invoke(main, args)
    assert quiet.exit_code == errors.FAILED
    assert "no_such_module" in quiet.stderr
    assert "Traceback" not in quiet.stderr
    assert "Traceback" in CliRunner().invoke(main, [*args, "--debug"]).stderr
    monkeypatch.setenv("INV_DESIGN_DEBUG", "1")
    assert "Traceback" in CliRunner().invoke(main, args).stderr


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (errors.NothingMatched("no candidate"), 3, "no candidate"),
        (ValueError("K = -1\nis wrong"), 1, "K = -1 is wrong"),
        (KeyError("x"), 1, "no entry 'x'"),
        (FileNotFoundError(2, "No such file", "a.cif"), 1, "a.cif does not exist; check the path"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (ZeroDivisionError("division"), 1, "ZeroDivisionError: division (run again with --debug for the trace)"),
        (ConnectionError("no server"), 1, "no server"),
    ],
)
def test_errors_have_a_code_and_one_line(error: BaseException, code: int, text: str) -> None:
    assert errors.exit_code(error) == code
    assert text in errors.describe(error)
    assert "\n" not in errors.describe(error)


def test_a_wrong_campaign_file_is_wrong_usage() -> None:
    from inv_design.config import ConfigError

    assert errors.exit_code(ConfigError("x")) == errors.WRONG_USAGE


def test_ctrl_c_ends_with_130_and_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def stuck() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(type(main), "get_command", lambda *_: stuck)
    result = CliRunner().invoke(main, ["run"])
    assert result.exit_code == errors.INTERRUPTED
    assert "interrupted" in result.stderr
    assert "Traceback" not in result.stderr


def test_errors_of_the_file_system_say_what_to_do(tmp_path):
    from inv_design.cli.errors import describe

    denied = describe(PermissionError(13, "Permission denied", "/far/campaign.yaml"))
    assert denied == "no right to write or read /far/campaign.yaml; choose another place, or have the rights changed"
    with pytest.raises(IsADirectoryError) as folder:
        tmp_path.open()
    assert describe(folder.value) == f"{tmp_path} is a folder; give a file"
