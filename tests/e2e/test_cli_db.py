"""`inv-design db`: init, indexes, migrate and users as a user calls them."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pytest
from click.testing import CliRunner

from inv_design.cli import main
from inv_design.cli.db import COMMANDS, db
from stores import schema
from stores.connection import connect

if TYPE_CHECKING:
    from click.testing import Result

ROOT = Path(__file__).parents[2]
AVAILABLE = [
    name
    for name, (module, _) in COMMANDS.items()
    if importlib.util.find_spec(f"inv_design.cli.{module.partition(':')[0]}")
]


def call(*words: str) -> Result:
    return CliRunner().invoke(main, ["db", *words])


def first_schema(path: Path) -> None:
    """Write the embedded database that the first version of inv_design left."""
    spec = importlib.util.spec_from_file_location("first_schema", ROOT / "tests" / "stores" / "test_migrations.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with schema.unchecked(), connect(f"embedded:{path}") as connection:
        module.load_dump(connection.db)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INV_DESIGN_DATABASE", f"embedded:{tmp_path / 'lab.sqlite'}")
    monkeypatch.setenv("INV_DESIGN_JOURNAL", str(tmp_path / "journal"))
    return tmp_path


# -- the group --------------------------------------------------------------------------------------------------------


def test_help_lists_all_without_importing_any() -> None:
    result = call("--help")
    assert result.exit_code == 0
    assert all(re.search(rf"^  {name} ", result.stdout, re.MULTILINE) for name in COMMANDS)


@pytest.mark.parametrize("name", AVAILABLE)
def test_every_command_explains_itself_as_listed(name: str) -> None:
    command = db.get_command(click.Context(db), name)
    assert command is not None
    assert command.help is not None
    assert " ".join(command.help.split()).startswith(COMMANDS[name][1].rstrip("."))
    assert call(name, "--help").exit_code == 0


@pytest.mark.parametrize("name", [name for name in AVAILABLE if name != "move"])
def test_every_option_is_documented(name: str) -> None:
    text = (ROOT / "docs" / "reference" / "cli.md").read_text()
    section = re.search(rf"^#### db {name}\n(.*?)(?=^##|\Z)", text, re.MULTILINE | re.DOTALL)
    assert section is not None
    command = db.get_command(click.Context(db), name)
    assert command is not None
    shared = {"--config", "--database", "--verbose", "--debug", "--json"}
    own = {o for p in command.params for o in p.opts if o.startswith("--")} - shared
    shown = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", section.group(1)))
    assert own <= shown, f"docs/reference/cli.md: db {name} lacks {own - shown}"
    assert shown <= own | shared, f"docs/reference/cli.md: db {name} has no {shown - own}"


def test_a_misspelt_command_is_answered_with_the_nearest() -> None:
    result = call("migrte")
    assert result.exit_code == 2
    assert "did you mean 'migrate'?" in result.stderr


# -- init and indexes -------------------------------------------------------------------------------------------------


def test_init_makes_a_database_ready_and_changes_nothing_again(folder: Path) -> None:
    for _ in range(2):
        record = json.loads(call("init", "--json").stdout)
        assert record["schema_version"] == schema.SCHEMA_VERSION
    with connect(f"embedded:{folder / 'lab.sqlite'}", read_only=True) as connection:
        assert connection.db["fw_id_assigner"].find_one({"_id": -1})["next_fw_id"] == 1
        assert "structure_id_1" in connection.db["structures"].index_information()
        assert "files_id_1_n_1" in connection.db["artifacts.chunks"].index_information()


def test_indexes_are_compared_and_created(folder: Path) -> None:
    call("init")
    with connect(f"embedded:{folder / 'lab.sqlite'}") as connection:
        connection.db["structures"].drop_index("formula_1")
        connection.db["structures"].create_index("volume")
    states = {
        (r["collection"], r["fields"]): r["state"] for r in json.loads(call("indexes", "--dry-run", "--json").stdout)
    }
    assert states["structures", "formula"] == "missing"
    assert states["structures", "volume"] == "extra"
    assert states["models", "model_id"] == "ok"
    # a connection for writing sees to the indexes itself: what lacked is there by the time they are compared
    states = {(r["collection"], r["fields"]): r["state"] for r in json.loads(call("indexes", "--json").stdout)}
    assert states["structures", "formula"] in ("ok", "created")
    assert states["structures", "volume"] == "extra"


# -- migrate ----------------------------------------------------------------------------------------------------------


def test_migrate_shows_then_does_then_has_nothing_to_do(folder: Path) -> None:
    first_schema(folder / "lab.sqlite")
    shown = json.loads(call("migrate", "--dry-run", "--json").stdout)
    assert shown["schema_version"] == 1
    assert {s["step"]: s["changes"] for s in shown["steps"]} == {
        "models": 4,
        "summaries": 22,
        "attempts": 1,
        "indexes": 1,
    }
    assert shown["history"] == []
    again = json.loads(call("migrate", "--dry-run", "--json").stdout)
    assert again == shown  # nothing was written
    result = call("migrate", "--json")
    assert result.exit_code == 0, result.stderr
    done = json.loads(result.stdout)
    assert done["schema_version"] == schema.SCHEMA_VERSION
    assert len(done["history"][0]["changes"]["models"]) == 4
    nothing = call("migrate")
    assert nothing.exit_code == 0
    assert "there is nothing to migrate" in nothing.stderr


def test_commands_say_what_to_do_with_an_old_database(folder: Path) -> None:
    first_schema(folder / "lab.sqlite")
    (folder / "campaign.yaml").write_text((Path(__file__).with_name("small_campaign.yaml")).read_text())
    for words in (["run"], ["launch"], ["ingest", "campaign.yaml"], ["db", "init"]):
        result = CliRunner().invoke(main, words)
        assert result.exit_code == 1
        assert "run `inv-design db migrate`" in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1
    before = {
        d["candidate_id"]: d for d in json.loads(CliRunner().invoke(main, ["query", "--json", "--limit", "0"]).stdout)
    }
    assert len(before) == 20  # reading works
    assert call("migrate").exit_code == 0
    after = {
        d["candidate_id"]: d for d in json.loads(CliRunner().invoke(main, ["query", "--json", "--limit", "0"]).stdout)
    }
    assert after.keys() == before.keys()
    for name, candidate in after.items():
        assert candidate["bulk_modulus_vrh"] == pytest.approx(before[name]["bulk_modulus_vrh"])
        assert "density" in candidate  # built anew by the migration
    status = CliRunner().invoke(main, ["status", "--json"])
    assert status.exit_code == 0, status.stderr
    assert [r["generated"] for r in json.loads(status.stdout)["rounds"]] == [10, 10]


@pytest.mark.parametrize(("to", "says"), [("9", "no schema 9"), ("1", "forward only")])
def test_impossible_versions(to: str, says: str) -> None:
    call("init")
    result = call("migrate", "--to", to)
    assert result.exit_code == 1
    assert says in result.stderr


def test_a_newer_database_says_which_version_it_needs(folder: Path) -> None:
    call("init")
    with connect(f"embedded:{folder / 'lab.sqlite'}") as connection:
        connection.db[schema.COLLECTION].update_one({}, {"$set": {"version": 99, "inv_design": "7.0.0"}})
    result = call("init")
    assert result.exit_code == 1
    assert "install inv_design 7.0.0 or newer" in result.stderr


# -- users ------------------------------------------------------------------------------------------------------------


def calls_of(script: str) -> list[Any]:
    """Return (function, arguments) of each line of a script for mongosh, its objects as JSON."""
    found = []
    for name, text in re.findall(r"^db\.(\w+)\((.*?)\)$", script, re.MULTILINE | re.DOTALL):
        plain = re.sub(r"([{ ])(user|pwd|roles): ", r'\1"\2": ', text).replace("passwordPrompt()", '"asked for"')
        arguments = re.sub(r",\s*\]", "]", plain)
        found.append((name, json.loads(f"[{arguments}]")))
    return found


def test_users_prints_commands_for_mongosh() -> None:
    result = call("users", "ada=reader", "bob=worker", "--database", "mongodb://h/alloys")
    assert result.exit_code == 0
    assert result.stdout.startswith('use("alloys")\n')
    calls = calls_of(result.stdout)
    roles = [arguments[0]["role"] for name, arguments in calls if name == "createRole"]
    assert roles == ["invDesignReader", "invDesignWorker", "invDesignCurator"]
    granted = {arguments[0]: arguments[1] for name, arguments in calls if name == "grantPrivilegesToRole"}
    record = json.loads(call("users", "ada=reader", "--database", "mongodb://h/alloys", "--json").stdout)
    assert granted == {role["role"]: role["privileges"] for role in record["roles"]}
    users = [arguments[0] for name, arguments in calls if name == "createUser"]
    assert [(u["user"], u["pwd"], u["roles"][0]["role"]) for u in users] == [
        ("ada", "asked for", "invDesignReader"),
        ("bob", "asked for", "invDesignWorker"),
    ]


@pytest.mark.parametrize("word", ["ada", "ada=", "=reader", "ada=boss", "ada:hush=reader", "a;b=reader"])
def test_wrong_users_are_wrong_usage(word: str) -> None:
    result = call("users", word, "--database", "mongodb://h/alloys")
    assert result.exit_code == 2
    assert "hush" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_file_has_no_users() -> None:
    for words in ([], ["--apply"]):
        result = call("users", *words)
        assert result.exit_code == 1
        assert "has no users" in result.stderr


@pytest.mark.wire
def test_a_server_without_roles_says_so(wire_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INV_DESIGN_NEW_PASSWORD", "hush")
    result = call("users", "ada=reader", "--apply", "--database", f"{wire_server}/no_roles_here")
    assert result.exit_code == 1
    assert "has no users and roles" in result.stderr
    assert "hush" not in result.output


@pytest.mark.parametrize("way", ["file", "environment", "prompt"])
def test_passwords_come_from_a_file_the_environment_or_a_prompt(
    way: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from inv_design.cli.db_users import _Passwords

    monkeypatch.delenv("INV_DESIGN_NEW_PASSWORD", raising=False)
    (folder / "secret").write_text("hush\n")
    if way == "environment":
        monkeypatch.setenv("INV_DESIGN_NEW_PASSWORD", "hush")
    monkeypatch.setattr(click, "prompt", lambda *_, **options: "hush" if options["hide_input"] else "")
    assert _Passwords(folder / "secret" if way == "file" else None)["ada"] == "hush"
