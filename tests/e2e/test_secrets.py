"""A campaign on a server with users and roles: the password is nowhere but where it was given, the roles are enough."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote_plus

import pytest
import yaml
from click.testing import CliRunner

from stores.roles import FILES, LAUNCHPAD, privileges

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

pytestmark = pytest.mark.wire

NEEDLE = "Hush7Hush"
PASSWORD = f"{NEEDLE}/{NEEDLE}@{NEEDLE} {NEEDLE}:{NEEDLE}%{NEEDLE}"
"""The password; whatever is done to its odd characters, and wherever it is cut, a needle stays."""
WRONG = f"{NEEDLE}-but-wrong"

READS = (
    ["status"],
    ["status", "--json"],
    ["query", "--json"],
    ["query", "-o", "found.csv"],
    ["show", "CANDIDATE"],
    ["why", "CANDIDATE"],
    ["lineage", "CANDIDATE"],
    ["lineage", "MODEL", "--down"],
    ["report", "-o", "report.html"],
    ["predict", "POSCAR", "--model", "MODEL"],
    ["lpad", "get_fws", "-d", "all"],
    ["db", "indexes", "--dry-run"],
    ["db", "migrate", "--dry-run"],
    ["export", "-o", "campaign.zip"],
)
"""What a reader does."""

REFUSED = {("run",): "worker", ("ingest", "POSCAR"): "worker", ("launch",): "worker", ("db", "init"): "curator"}
"""What a reader may not do, and the role that it needs."""


def proxy_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "authenticating_proxy", Path(__file__).with_name("authenticating_proxy.py")
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass
class Lab:
    """A shared database and what happened on it."""

    proxy: Any
    name: str
    folder: Path
    private: Path
    outputs: dict[str, str] = field(default_factory=dict)
    codes: dict[str, int] = field(default_factory=dict)

    def uri(self, user: str, password: str = PASSWORD, port: int | None = None) -> str:
        place = f"127.0.0.1:{port or self.proxy.port}/{self.name}"
        return f"mongodb://{user}:{quote_plus(password)}@{place}?authMechanism=SCRAM-SHA-256"

    def process(self, name: str, *words: str, uri: str = "") -> None:
        """Run a program in the campaign's folder."""
        environment = os.environ | {"INV_DESIGN_WORKERS": "1", "OMP_NUM_THREADS": "1"}
        environment["INV_DESIGN_DATABASE"] = uri
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", *words],
            cwd=self.folder, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        self.note(name, done.returncode, done.stdout + done.stderr)

    def command(self, name: str, *words: str) -> None:
        """Call the command line in this process."""
        from inv_design.cli import main

        result = CliRunner().invoke(main, list(words))
        self.note(name, result.exit_code, result.output)

    def note(self, name: str, code: int, output: str) -> None:
        assert name not in self.outputs
        self.codes[name], self.outputs[name] = code, output


@pytest.fixture(scope="module")
def lab(wire_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Give a lab whose worker has run a campaign, whose reader has looked at it, and where things have gone wrong."""
    from pymongo import MongoClient

    root = tmp_path_factory.mktemp("lab")
    users = {role: (PASSWORD, role) for role in ("reader", "worker", "curator")}
    proxy = proxy_module().AuthenticatingProxy(wire_server.removeprefix("mongodb://").partition("/")[0], users)
    lab = Lab(proxy, f"inv_design_lab_{uuid.uuid4().hex[:8]}", root / "campaign", root / "private")
    lab.folder.mkdir()
    lab.private.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(lab.folder)
        patch.setenv("INV_DESIGN_JOURNAL", str(lab.folder / "journal"))
        patch.setenv("INV_DESIGN_PATIENCE", "5")
        patch.setattr("stores.connection.TIMEOUT_MS", 2000)
        work(lab)
        patch.setenv("INV_DESIGN_DATABASE", lab.uri("reader"))
        read(lab)
        go_wrong(lab)
    yield lab
    proxy.stop()
    client: MongoClient[Any] = MongoClient(wire_server)
    client.drop_database(lab.name)
    client.close()


def work(lab: Lab) -> None:
    """Set the database up, launch a tiny campaign, let a worker take some of it, and finish it."""
    raw = yaml.safe_load(Path(__file__).with_name("small_campaign.yaml").read_text())
    raw["data"]["max_entries"] = 12
    raw["generator"] |= {"samples_per_round": 4, "chunk": 4}
    raw["stages"]["dft"]["budget_per_round"] = 1
    raw |= {"evaluation": {"targets": [150], "samples": 1}, "rounds": 0}
    (lab.folder / "campaign.yaml").write_text(yaml.safe_dump(raw))
    launchpad = lab.private / "my_launchpad.yaml"  # what the template asks to keep readable by oneself alone
    launchpad.write_text(yaml.safe_dump({"host": lab.uri("worker"), "uri_mode": True, "name": lab.name}))
    lab.command("too early", "launch", "--database", lab.uri("worker"))
    lab.command("db init", "db", "init", "--database", lab.uri("curator"))
    lab.process("launch", "inv_design.cli", "launch", "--database", lab.uri("worker"))
    lab.process("launch to a file", "inv_design.cli", "launch", "-o", "workflows.yaml", uri=lab.uri("worker"))
    lab.process("rlaunch", "fireworks.scripts.rlaunch_run", "-l", str(launchpad), "rapidfire", "--nlaunches", "2")
    lab.process("run", "inv_design.cli", "run", "-v", uri=lab.uri("worker"))


def read(lab: Lab) -> None:
    """Do all that a reader does, and try what one may not."""
    from pymatgen.core import Lattice, Structure

    Structure(Lattice.cubic(2.9), ["Al", "Ni"], [[0, 0, 0], [0.5, 0.5, 0.5]]).to(filename="POSCAR", fmt="poscar")
    found = direct(lab)
    names = {
        "CANDIDATE": found["candidates"].find_one()["candidate_id"],
        "MODEL": found["models"].find_one({"kind": "predictor"})["model_id"],
    }
    for words in READS:
        lab.command(f"reader: {' '.join(words)}", *(names.get(word, word) for word in words))
    for words in REFUSED:
        lab.command(f"refused: {' '.join(words)}", *words)
        lab.command(f"refused: {' '.join(words)} --debug", *words, "--debug")


def go_wrong(lab: Lab) -> None:
    """Give a wrong password, an unknown user, a URI with a mistake; ask a server that is away."""
    away = proxy_module().AuthenticatingProxy("127.0.0.1:9", {})
    away.stop()
    wrong = {
        "wrong password": lab.uri("reader", WRONG),
        "unknown user": lab.uri("nobody"),
        "server away": lab.uri("reader", port=away.port),
        "odd port": lab.uri("reader").replace(str(lab.proxy.port), "port"),
        "unescaped": f"mongodb://reader:{PASSWORD}@127.0.0.1:{lab.proxy.port}/{lab.name}",
        "odd scheme": lab.uri("reader").replace("mongodb:", "mongo:"),
        "bad option": lab.uri("reader") + "&authSource=",
    }
    for what, uri in wrong.items():
        away_too = (["status"], ["status", "--debug"], ["run"])  # each is waited for
        for words in away_too if what == "server away" else (*away_too, ["db", "init"], ["db", "users"]):
            lab.command(f"{what}: {' '.join(words)}", *words, "--database", uri)
    lab.command("wrong password: check", "check", "--database", wrong["wrong password"])
    lab.command("apply", "db", "users", "ada=reader", "--apply", "--database", lab.uri("curator"))
    lab.command("print", "db", "users", "ada=reader", "--database", lab.uri("curator"))


def direct(lab: Lab) -> Any:
    """Return the database behind the proxy."""
    from pymongo import MongoClient

    host, port = lab.proxy.upstream
    return MongoClient(host, port)[lab.name]


# -- the password -----------------------------------------------------------------------------------------------------


def test_the_campaign_ran(lab: Lab) -> None:
    for name in ("db init", "launch", "rlaunch", "run"):
        assert lab.codes[name] == 0, lab.outputs[name][-2000:]
    found = direct(lab)
    assert found["evaluations"].count_documents({}) > 0
    assert found["fireworks"].distinct("state") == ["COMPLETED"]
    assert found["launches"].distinct("fworker.name") != []


def test_the_needle_would_be_found(lab: Lab) -> None:
    assert NEEDLE in (lab.private / "my_launchpad.yaml").read_text()
    assert NEEDLE in quote_plus(PASSWORD)


def test_no_document_has_the_password(lab: Lab) -> None:
    import bson

    database, seen = direct(lab), 0
    for name in database.list_collection_names():
        for document in database[name].find():
            assert NEEDLE.encode() not in bson.encode(document), name
            seen += 1
    assert seen > 100


def test_no_file_has_the_password(lab: Lab) -> None:
    files = [path for path in lab.folder.rglob("*") if path.is_file()]
    for path in files:
        assert NEEDLE.encode() not in path.read_bytes(), path
    names = {path.name for path in files}
    assert {"FW.json", "report.html", "workflows.yaml", "found.csv"} <= names, names


def test_no_output_has_the_password(lab: Lab) -> None:
    for name, output in lab.outputs.items():
        assert NEEDLE not in output, name


def test_the_password_is_never_sent(lab: Lab) -> None:
    assert len(lab.proxy.bytes_in) > 10_000
    assert NEEDLE.encode() not in lab.proxy.bytes_in


def test_what_went_wrong_was_said_in_one_line(lab: Lab) -> None:
    for what in ("wrong password", "unknown user", "server away", "odd port", "unescaped", "odd scheme", "bad option"):
        assert lab.codes[f"{what}: status"] == 1, what
        assert len(lab.outputs[f"{what}: status"].strip().splitlines()) == 1, lab.outputs[f"{what}: status"]
        assert "Traceback" in lab.outputs[f"{what}: status --debug"], what
        assert lab.codes[f"{what}: run"] == 1, what
    assert "refused the user" in lab.outputs["wrong password: status"]
    assert "does not answer" in lab.outputs["server away: status"]


# -- the roles --------------------------------------------------------------------------------------------------------


def test_the_worker_role_is_enough(lab: Lab) -> None:
    refused = {(command, collection) for role, command, collection in lab.proxy.refused if role == "worker"}
    refused.discard(("insert", "schema"))  # too early: before the curator had set the database up
    assert {command for command, _ in refused} <= {"createIndexes"}, refused  # the curator made them: left alone


def test_a_worker_who_is_too_early_is_told_so(lab: Lab) -> None:
    assert lab.codes["too early"] == 1
    assert "a curator calls `inv-design db init`" in lab.outputs["too early"]
    assert len(lab.outputs["too early"].strip().splitlines()) == 1


def test_the_worker_role_is_no_more_than_needed(lab: Lab) -> None:
    used = {(action, collection) for role, action, collection in lab.proxy.seen if role == "worker"}
    granted = {(action, p.collection) for p in privileges("worker") for action in p.actions if p.collection}
    reads = {(action, p.collection) for p in privileges("reader") for action in p.actions}
    unused = grouped(granted - reads) - grouped(used)
    # the campaign was too short for: claims that are renewed and taken over, steps and launches that come to nothing,
    # trainings that save how far they are, DFT that keeps the outputs of its jobs
    unused -= {("update", "claims"), ("remove", "steps")}
    assert unused <= {(action, name) for action in ("insert", "update") for name in ("checkpoints", "outputs")}
    records = {"structures", "candidates", "predictions", "calculations", "models", "training_sets", "evaluations"}
    assert {("insert", name) for name in records} <= used
    assert not {(action, name) for action, name in granted if name in records and action in ("update", "remove")}


def grouped(privileges: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Return (action, kind of collection) of (action, collection)."""
    return {(action, group_of(collection)) for action, collection in privileges}


def group_of(collection: str) -> str:
    from stores.documents import AUTHORITATIVE, DERIVED

    if collection in {document._meta["collection"] for document in AUTHORITATIVE} - {"steps"}:
        return "authoritative"
    if collection in {document._meta["collection"] for document in DERIVED}:
        return "derived"
    return "launchpad" if collection in LAUNCHPAD else "files" if collection in FILES else collection


def test_the_reader_role_is_enough(lab: Lab) -> None:
    for words in READS:
        name = f"reader: {' '.join(words)}"
        assert lab.codes[name] == 0, lab.outputs[name]


def test_a_reader_asks_for_nothing_but_reading(lab: Lab) -> None:
    used = {action for role, action, _ in lab.proxy.seen if role == "reader"}
    assert used == {"find", "listIndexes", "listCollections"}
    asked = {(action, collection) for role, action, collection in lab.proxy.seen if role == "reader"}
    granted = {(action, p.collection) for p in privileges("reader") for action in p.actions}
    # `db migrate --dry-run` looks whether workers hold claims, if there is something to migrate
    assert grouped(granted) - grouped(asked) <= {("find", "claims"), ("find", "checkpoints"), ("find", "outputs")}


@pytest.mark.parametrize(("words", "role"), REFUSED.items(), ids=[" ".join(words) for words in REFUSED])
def test_what_a_reader_may_not_do_fails_in_one_line(lab: Lab, words: tuple[str, ...], role: str) -> None:
    name = f"refused: {' '.join(words)}"
    assert lab.codes[name] == 1
    lines = [line for line in lab.outputs[name].splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, lab.outputs[name]
    assert f"needs the role {role}" in lines[0]
    assert "secret" not in lines[0]  # what was to be written is not repeated


def test_roles_cannot_be_applied_here(lab: Lab) -> None:
    assert lab.codes["apply"] == 1
    assert "has no users and roles" in lab.outputs["apply"]
    assert "passwordPrompt()" in lab.outputs["print"]
    assert lab.codes["print"] == 0
