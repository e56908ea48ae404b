"""The README's snippets: Python is executed, shell commands are parsed by the commands that they name."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from inv_design.cli import COMMANDS, main

README = Path(__file__).parents[2] / "README.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), flags=re.DOTALL)


def commands() -> list[list[str]]:
    lines = [line.split("#")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    return [shlex.split(line) for line in lines if line.startswith("inv-design ")]


@pytest.mark.parametrize("snippet", blocks("python"))
def test_python_snippets_run(snippet: str, written_campaign: tuple[Path, dict[str, Any]]) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "INV_DESIGN_DATABASE"}
    done = subprocess.run(
        [sys.executable, "-c", snippet],
        cwd=written_campaign[0],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "surrogate" in done.stdout  # the label's method is named


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_shell_commands_parse(words: list[str]) -> None:
    group = click.Context(main)
    assert words[1] in COMMANDS
    command = main.get_command(group, words[1])
    assert command is not None
    given = [word for word in words[2:] if word.startswith("-")]
    if words[1] == "lpad":
        return
    known = {option for parameter in command.params for option in parameter.opts}
    assert set(given) <= known, f"{words[1]} has no {set(given) - known}"


def test_the_query_of_the_readme_finds_what_it_says(inv_design: Any) -> None:
    line = next(words for words in commands() if words[1] == "query")
    result = inv_design(*line[1:], "--json")
    assert result.exit_code == 0, result.output
    assert '"formula": "ReW"' in result.output or '"ReW"' in result.output


def test_make_targets_of_the_readme_exist() -> None:
    makefile = (README.parent / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", "\n".join(blocks("bash")), flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
