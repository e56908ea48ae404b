"""Malformed input of every kind: one line that says what is wrong, no traceback, nothing half written.

`make test` tries a few hundred, `make test-slow` more than ten thousand.
"""

from __future__ import annotations

import copy
import json
import math
import shutil
import string
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inv_design.cli import errors, main

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

FEW, MANY = 60, 2500
UNEXPECTED = (TypeError, AttributeError, IndexError, AssertionError, RecursionError, NotImplementedError)
CODES = {errors.DONE, errors.FAILED, errors.WRONG_USAGE, errors.NOTHING_MATCHED}

words = st.text(st.characters(codec="utf-8"), max_size=12)
junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | words | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)


def many(test: Callable[..., None]) -> Callable[..., None]:
    """Return the test of a property with a full share of examples, for the slow lane."""
    return pytest.mark.slow(settings(max_examples=MANY, deadline=None, suppress_health_check=list(HealthCheck))(test))


def few(test: Callable[..., None]) -> Callable[..., None]:
    """Return the test of a property with a few examples."""
    return settings(max_examples=FEW, deadline=None, suppress_health_check=list(HealthCheck))(test)


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Give a function that runs the command line, checks how it ends, and returns the exit code."""
    seen: list[BaseException] = []
    original = errors.report

    def report(error: Exception, *, debug: bool) -> int:
        seen.append(error)
        return original(error, debug=debug)

    monkeypatch.setattr(errors, "report", report)
    monkeypatch.delenv("INV_DESIGN_DATABASE", raising=False)

    def run(*arguments: object) -> int:
        seen.clear()
        result = CliRunner().invoke(main, [str(a) for a in arguments])
        shown = result.output
        assert result.exit_code in CODES, shown
        assert "Traceback" not in shown
        assert "--debug for the trace" not in shown, shown
        for error in seen:
            if "db check" not in shown:  # which says that a record was changed
                assert type(error) is not KeyError, f"a bare KeyError: {error!r}"
                assert not isinstance(error, UNEXPECTED), f"{type(error).__name__}: {error!r}"
        complaints = [line for line in shown.splitlines() if line.startswith("error: ")]
        assert len(complaints) == (1 if result.exit_code in (errors.FAILED, errors.WRONG_USAGE) else 0), shown
        return result.exit_code

    return run


# -- campaign files --------------------------------------------------------------------------------------------------


def a_campaign() -> dict[str, Any]:
    return {
        "name": "stiff",
        "targets": {"bulk_modulus_vrh": "350 GPa", "density": "< 15"},
        "data": {"source": "mp-binaries", "elements": "metals", "exclude": ["actinides"], "max_sites": 20},
        "generator": {"name": "con_cdvae", "samples_per_round": 500, "latent_filter": 20, "guidance": 1.0},
        "stages": {
            "predictor": {"model": "cgcnn", "committee": 4, "tolerance": 0.3},
            "mlip": {"calculator": "mace-alloy-small", "keep_structure": {"ltol": 0.2, "stol": 0.3, "angle_tol": 5}},
            "dft": {"backend": "surrogate", "budget_per_round": 20},
        },
        "rounds": 2,
        "chemistry": {"exclude": ["Tc", "Os"], "cost": {}},
    }


def _paths(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield at
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _paths(inner, (*at, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value[:3]):
            yield from _paths(inner, (*at, index))


def _spoil(value: Any, path: tuple[Any, ...], change: str, new: Any) -> Any:
    """Return a copy of nested data with the place at ``path`` replaced, removed, renamed or added to."""
    value = copy.deepcopy(value)
    holder = value
    for step in path[:-1]:
        holder = holder[step]
    if change == "remove":
        del holder[path[-1]]
    elif change == "rename" and isinstance(holder, dict):
        holder[str(new)] = holder.pop(path[-1])
    else:
        holder[path[-1]] = new
    return value


@st.composite
def campaign_files(draw: st.DrawFn) -> bytes:
    """A campaign file with one to three places spoilt, or its bytes cut and changed."""
    config = a_campaign()
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from([p for p in _paths(config) if p]))
        config = _spoil(config, path, draw(st.sampled_from(["replace", "remove", "rename"])), draw(junk))
    content = yaml.safe_dump(config, allow_unicode=True).encode()
    return _damaged(draw, content) if draw(st.integers(0, 3)) == 0 else content


def _damaged(draw: st.DrawFn, content: bytes) -> bytes:
    start = draw(st.integers(0, len(content)))
    end = draw(st.integers(start, min(len(content), start + 20)))
    return content[:start] + draw(st.binary(max_size=6)) + content[end:]


def check_campaign_file(call: Callable[..., int], folder: Path, content: bytes) -> None:
    file = folder / "campaign.yaml"
    file.write_bytes(content)
    assert call("status", "--config", file) != errors.DONE  # there is no campaign in any database
    assert [p.name for p in folder.iterdir()] == ["campaign.yaml"], "a command that reads wrote something"


@few
@given(content=campaign_files())
def test_campaign_files(call, tmp_path, content):
    check_campaign_file(call, tmp_path, content)


@many
@given(content=campaign_files())
def test_many_campaign_files(call, tmp_path, content):
    check_campaign_file(call, tmp_path, content)


# -- files of crystals -----------------------------------------------------------------------------------------------

CIF = """data_AlNi
_cell_length_a 2.9
_cell_length_b 2.9
_cell_length_c 2.9
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
_symmetry_space_group_name_H-M 'P 1'
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
Al1 Al 0 0 0
Ni1 Ni 0.5 0.5 0.5
"""
POSCAR = "AlNi\n1.0\n2.9 0 0\n0 2.9 0\n0 0 2.9\nAl Ni\n1 1\ndirect\n0 0 0\n0.5 0.5 0.5\n"
EXTXYZ = (
    '2\nLattice="2.9 0 0 0 2.9 0 0 0 2.9" Properties=species:S:1:pos:R:3 K=150.0 id=a pbc="T T T"\n'
    "Al 0 0 0\nNi 1.45 1.45 1.45\n"
)
CSV = f'id,bulk_modulus_vrh,cif\na,150.0,"{CIF}"\n'
RECORD = {
    "id": "a",
    "bulk_modulus_vrh": 150.0,
    "structure": {
        "lattice": {"matrix": [[2.9, 0, 0], [0, 2.9, 0], [0, 0, 2.9]]},
        "sites": [
            {"species": [{"element": "Al", "occu": 1}], "abc": [0, 0, 0]},
            {"species": [{"element": "Ni", "occu": 1}], "abc": [0.5, 0.5, 0.5]},
        ],
    },
}
TEXTS = {"a.cif": CIF, "POSCAR": POSCAR, "a.extxyz": EXTXYZ, "a.csv": CSV, "a.json": json.dumps([RECORD, RECORD])}


@st.composite
def crystal_files(draw: st.DrawFn) -> tuple[str, bytes]:
    """(name, content) of a file in a known format, spoilt."""
    if draw(st.booleans()):
        record = RECORD
        for _ in range(draw(st.integers(1, 2))):
            path = draw(st.sampled_from([p for p in _paths(record) if p]))
            record = _spoil(record, path, draw(st.sampled_from(["replace", "remove", "rename"])), draw(junk))
        return "a.json", json.dumps([RECORD, record], default=str).encode()
    name = draw(st.sampled_from(sorted(TEXTS)))
    lines = TEXTS[name].split("\n")
    change = draw(st.sampled_from(["bytes", "line", "number", "cut"]))
    if change == "bytes":
        return name, _damaged(draw, TEXTS[name].encode())
    place = draw(st.integers(0, len(lines) - 1))
    if change == "line":
        lines[place] = draw(words)
    elif change == "number":
        parts = lines[place].split(" ")
        parts[draw(st.integers(0, len(parts) - 1))] = str(draw(st.integers() | st.floats() | words))
        lines[place] = " ".join(parts)
    else:
        lines = lines[:place]
    return name, "\n".join(lines).encode()


def check_crystal_file(call: Callable[..., int], folder: Path, name: str, content: bytes) -> None:
    from stores.connection import connect

    (folder / name).write_bytes(content)
    assert call("ingest", folder / name, "--database", f"embedded:{folder / 'db.sqlite'}") in (0, 1)
    with connect(f"embedded:{folder / 'db.sqlite'}") as connection:
        structures = {s["structure_id"]: s for s in connection.db["structures"].find()}
        for structure in structures.values():
            assert math.isfinite(structure["volume"])
            assert structure["volume"] > 0
            assert structure["nsites"] == len(structure["structure"]["sites"])
        for label in connection.db["calculations"].find():
            assert label["structure_id"] in structures
            assert all(math.isfinite(v) for v in label["results"].values() if isinstance(v, float))


@few
@given(file=crystal_files())
def test_crystal_files(call, tmp_path, file):
    check_crystal_file(call, tmp_path, *file)


@many
@given(file=crystal_files())
def test_many_crystal_files(call, tmp_path, file):
    check_crystal_file(call, tmp_path, *file)


# -- questions -------------------------------------------------------------------------------------------------------

fields = words | st.sampled_from(
    ["K", "G", "formula", "chemsys", "stages.mlip.value", "hit", "elements", "$where", "provenance", "round", "id"]
)
values = st.sampled_from(["340..360", "..", "1e999", "nan", "-inf", "{}", "$gt", '{"$ne": 1}', "true", "null", "Re-W"])
operators = st.sampled_from(["=", ">=", "<", "!=", "==", "=~", "", ">"])
conditions = st.builds("{}{}{}".format, fields, operators, values | words)
options = st.one_of(
    st.tuples(st.just("--where"), conditions),
    st.tuples(st.just("--elements"), words | st.sampled_from(["Re,W", "metals", "Xx", ",", "re"])),
    st.tuples(st.just("--any-of"), words | st.sampled_from(["Re,W", "metals", "Xx"])),
    st.tuples(st.just("--without"), words | st.sampled_from(["Re,W", "metals", "Xx"])),
    st.tuples(st.just("--sort"), fields | fields.map("-{}".format)),
    st.tuples(st.just("--pareto"), fields | st.sampled_from(["K,G", "objectives", "-density", "K,,"])),
    st.tuples(st.sampled_from(["--limit", "--skip", "--round", "--fronts"]), st.integers().map(str) | words),
    st.tuples(st.sampled_from(["--stage", "--status", "--campaign"]), words | st.sampled_from(["mlip", "passed"])),
    st.tuples(st.sampled_from(["--format", "-f"]), words | st.sampled_from(["csv", "json", "table", "extxyz"])),
)
identities = words | st.text(string.hexdigits, max_size=8).map("c-{}".format) | st.sampled_from(["c-", "s-", "m-", "-"])
questions = st.one_of(
    st.lists(options, max_size=3).map(lambda pairs: ["query", *(word for pair in pairs for word in pair)]),
    st.tuples(st.sampled_from(["show", "why", "lineage"]), identities).map(list),
)


@few
@given(question=questions)
def test_questions(call, written_campaign, monkeypatch, question):
    monkeypatch.chdir(written_campaign[0])
    call(*question)


@many
@given(question=questions)
def test_many_questions(call, written_campaign, monkeypatch, question):
    monkeypatch.chdir(written_campaign[0])
    call(*question)


# -- archives --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def archive(written_campaign: tuple[Path, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Give the bytes of the campaign's archive."""
    from stores.connection import connect
    from stores.exchange import export_archive

    path = tmp_path_factory.mktemp("archive") / "stiff.zip"
    with connect("embedded", root=written_campaign[0], read_only=True) as connection:
        export_archive(connection, path, campaigns=["stiff"])
    return path.read_bytes()


def check_archive(call: Callable[..., int], folder: Path, content: bytes, data: st.DataObject) -> None:
    from stores.connection import connect

    place = data.draw(st.integers(0, len(content) - 1))
    change = data.draw(st.sampled_from(["flip", "cut", "insert", "remove"]))
    some = data.draw(st.binary(min_size=1, max_size=4))
    damaged = {
        "flip": content[:place] + bytes([content[place] ^ some[0] or 255 - content[place]]) + content[place + 1 :],
        "cut": content[:place],
        "insert": content[:place] + some + content[place:],
        "remove": content[:place] + content[place + len(some) :],
    }[change]
    if damaged == content:
        return
    (folder / "damaged.zip").write_bytes(damaged)
    database = f"embedded:{folder / 'group.sqlite'}"
    assert call("import", folder / "damaged.zip", "--database", database) == errors.FAILED
    if (folder / "group.sqlite").exists():
        with connect(database, read_only=True) as connection:
            assert connection.db["structures"].count_documents({}) == 0
            assert connection.db["campaigns"].count_documents({}) == 0


@few
@given(data=st.data())
def test_archives(call, tmp_path, archive, data):
    check_archive(call, tmp_path, archive, data)


@many
@given(data=st.data())
def test_many_archives(call, tmp_path, archive, data):
    check_archive(call, tmp_path, archive, data)


# -- documents that somebody changed ---------------------------------------------------------------------------------

COLLECTIONS = (
    "structures", "campaigns", "candidates", "predictions", "calculations", "models", "training_sets", "evaluations",
    "candidate_summaries", "campaign_metrics", "screening_queue",
)  # fmt: skip
READERS = (["status"], ["query"], ["query", "--sort", "-K", "--where", "K>1"], ["query", "--pareto", "K,density"])


@st.composite
def changes(draw: st.DrawFn) -> list[tuple[str, int, int, str, Any]]:
    """(collection, which document, which of its places, what happens to it, the new value), one to three of them."""
    stored = junk.filter(_storable)
    change = st.tuples(
        st.sampled_from(COLLECTIONS), st.integers(0, 200), st.integers(0, 400),
        st.sampled_from(["replace", "remove"]), stored,
    )  # fmt: skip
    return draw(st.lists(change, min_size=1, max_size=3))


def _storable(value: Any) -> bool:
    import bson

    try:
        bson.encode({"value": value})
    except (bson.errors.BSONError, OverflowError, UnicodeEncodeError):
        return False
    return True


def check_changed_documents(
    call: Callable[..., int], source: Path, folder: Path, edits: list[tuple[str, int, int, str, Any]], reader: list[str]
) -> None:
    from builders.run import build_campaign
    from stores.connection import connect

    database = f"embedded:{folder / 'changed.sqlite'}"
    for file in folder.glob("changed.sqlite*"):
        file.unlink()
    shutil.copy(source / "inv_design.sqlite", folder / "changed.sqlite")
    with connect(database) as connection:
        for collection, which, place, change, new in edits:
            documents = list(connection.db[collection].find().sort("_id", 1))
            document = documents[which % len(documents)]
            paths = [p for p in _paths({k: v for k, v in document.items() if k != "_id"}) if p]
            changed = _spoil(document, paths[place % len(paths)], change, new)
            connection.db[collection].delete_one({"_id": document["_id"]})
            try:
                connection.db[collection].insert_one(changed)
            except Exception:  # the database itself refuses it: a key that is no text, an index of a list in a list
                connection.db[collection].insert_one(document)
        if reader == ["build"]:
            try:
                build_campaign("stiff")
            except ValueError as error:
                assert "\n" not in str(error)  # noqa: PT017 - one line that says which campaign cannot be read
    if reader != ["build"]:
        call(*reader, "--database", database, "--campaign", "stiff")


@few
@given(edits=changes(), data=st.data())
def test_changed_documents(call, written_campaign, tmp_path, edits, data):
    _check_changes(call, written_campaign, tmp_path, edits, data)


@many
@given(edits=changes(), data=st.data())
def test_many_changed_documents(call, written_campaign, tmp_path, edits, data):
    _check_changes(call, written_campaign, tmp_path, edits, data)


def _check_changes(call: Any, written_campaign: Any, tmp_path: Path, edits: Any, data: st.DataObject) -> None:
    folder, ids = written_campaign
    asked = [[name, identity] for name in ("show", "why", "lineage") for identity in sorted(ids["candidates"].values())]
    reader = data.draw(st.sampled_from([*READERS, *asked, ["build"]]))
    check_changed_documents(call, folder, tmp_path, edits, reader)
