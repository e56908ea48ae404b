"""export and import as a user calls them: what a campaign shows is the same elsewhere, and it goes on there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.testing import Result

    Run = Callable[..., Result]

CONFIG = Path(__file__).parent / "small_campaign.yaml"
LOCAL = {"_id", "last_updated", "provenance", "database", "freshness"}


@pytest.fixture
def elsewhere(written_campaign: tuple[Path, dict[str, Any]], tmp_path: Path) -> Path:
    """Give a folder with the campaign's file and no database."""
    shutil.copy(written_campaign[0] / "campaign.yaml", tmp_path / "campaign.yaml")
    return tmp_path


def there(inv_design: Run, folder: Path, *words: str) -> Result:
    """Run a command on the campaign file of another folder."""
    return inv_design(*words, "-c", folder / "campaign.yaml")


def stripped(value: Any) -> Any:
    """Return JSON without what tells one database from another, and when its summaries were built."""
    if isinstance(value, dict):
        return {k: stripped(v) for k, v in value.items() if k not in LOCAL}
    return [stripped(item) for item in value] if isinstance(value, list) else value


def test_a_campaign_shows_the_same_elsewhere(inv_design: Run, elsewhere: Path, ids: dict[str, Any]) -> None:
    archive = elsewhere / "stiff.zip"
    exported = inv_design("export", "-o", archive, "--json")
    assert exported.exit_code == 0, exported.output
    report = json.loads(exported.stdout)
    assert report["counts"]["candidates"] == 11
    assert report["campaigns"] == ["stiff"]
    imported = there(inv_design, elsewhere, "import", archive, "--json")
    assert imported.exit_code == 0, imported.output
    result = json.loads(imported.stdout)
    assert result["collections"]["candidates"] == {"records": 11, "new": 11, "known": 0, "conflicts": 0}
    assert result["built"]["stiff"]["candidate_summaries"] == 11
    for words in (
        ("status", "--json"),
        ("query", "--json", "--limit", "0", "--sort", "id"),
        ("show", ids["candidates"]["ReW"], "--json"),
        ("why", ids["candidates"]["OsW"], "--json"),
        ("lineage", ids["candidates"]["OsTa"], "--json"),
    ):
        here, other = inv_design(*words), there(inv_design, elsewhere, *words)
        assert here.exit_code == other.exit_code == 0, other.output
        assert stripped(json.loads(other.stdout)) == stripped(json.loads(here.stdout)), words
    again = there(inv_design, elsewhere, "export", "-o", elsewhere / "again.zip", "--json")
    assert json.loads(again.stdout)["counts"] == report["counts"]
    table = there(inv_design, elsewhere, "import", archive)
    assert table.exit_code == 0
    assert "candidates" in table.stdout
    assert table.stdout.splitlines()[0].split() == ["collection", "records", "new", "known", "conflicts"]


def test_the_file_has_the_campaigns_name_by_default(
    inv_design: Run, elsewhere: Path, written_campaign: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(written_campaign[0] / "inv_design.sqlite", elsewhere)
    monkeypatch.chdir(elsewhere)
    result = inv_design("export", "--campaign", "stiff", "--without-models")
    assert result.exit_code == 0, result.output
    assert (elsewhere / "stiff.zip").is_file()
    assert "without the weights of 4 models" in result.stderr
    result = inv_design("export", "--all", "--format", "optimade", "-o", "all.jsonl", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["structures"] == 11
    assert (elsewhere / "all.config.json").is_file()


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["export", "--all", "--campaign", "stiff"], 2, "--all and --campaign contradict"),
        (["export", "--format", "optimade", "--without-models"], 2, "--without-models belongs to"),
        (["export", "--campaign", "nosuch"], 1, "no campaign 'nosuch'"),
        (["export", "--format", "tar"], 2, "'tar' is not one of"),
        (["import"], 2, "Missing argument"),
        (["import", "nosuch.zip"], 2, "'nosuch.zip' does not exist"),
        (["import", "campaign.yaml", "--dry-run"], 1, "no zip that is complete"),
    ],
)
def test_mistakes_are_told_in_one_line(inv_design: Run, words: list[str], code: int, says: str) -> None:
    result = inv_design(*words)
    assert result.exit_code == code, result.output
    assert says in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert "Traceback" not in result.output


def test_a_dry_run_needs_and_makes_no_database(inv_design: Run, elsewhere: Path) -> None:
    archive = elsewhere / "stiff.zip"
    inv_design("export", "-o", archive)
    result = there(inv_design, elsewhere, "import", "--dry-run", archive, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["collections"]["candidates"]["new"] == 11
    assert not (elsewhere / "inv_design.sqlite").exists()


def test_damage_and_conflicts_fail(inv_design: Run, elsewhere: Path) -> None:
    from stores.connection import connect

    archive = elsewhere / "stiff.zip"
    inv_design("export", "-o", archive)
    blob = bytearray(archive.read_bytes())
    blob[len(blob) // 2] ^= 1
    (elsewhere / "damaged.zip").write_bytes(blob)
    result = there(inv_design, elsewhere, "import", elsewhere / "damaged.zip")
    assert result.exit_code == 1
    assert "nothing was imported, get the archive again" in result.stderr
    assert there(inv_design, elsewhere, "import", archive).exit_code == 0
    with connect("embedded", root=elsewhere) as connection:
        connection.db["predictions"].update_one({"value": 352.0}, {"$set": {"value": 1.0}})
    result = there(inv_design, elsewhere, "import", archive, "--json")
    assert result.exit_code == 1
    [conflict] = json.loads(result.stdout)["conflicts"]
    assert conflict["differences"] == [{"field": "value", "here": 1.0, "there": 352.0}]
    assert "value is 1.0 here, 352.0 in" in result.stderr
    assert "1 records differ" in result.stderr


# -- a campaign goes on -----------------------------------------------------------------------------------------------


def call(folder: Path, *words: object) -> Any:
    """Run `inv-design` in a process of its own, in a folder; return its JSON."""
    environment = os.environ | {"INV_DESIGN_WORKERS": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("INV_DESIGN_DATABASE", None)
    command = [sys.executable, "-W", "ignore", "-m", "inv_design.cli", *map(str, words), "--json"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def drop_times(value: Any) -> Any:
    """Return what `status` and `query` show without times and counts of the launchpad, which stays where it is."""
    value = stripped(value)
    return {k: v for k, v in value.items() if k != "launchpad"} if isinstance(value, dict) else value


@pytest.mark.slow
def test_a_campaign_goes_on_on_another_machine(tmp_path: Path) -> None:
    """Round 0 here, then round 1 both here and, from an archive, elsewhere: the records are the same."""
    here, other = tmp_path / "here", tmp_path / "other"
    for folder in (here, other):
        folder.mkdir()
        shutil.copy(CONFIG, folder / "campaign.yaml")
    call(here, "run", "--rounds", 0)
    call(here, "export", "-o", tmp_path / "round0.zip")
    call(other, "import", tmp_path / "round0.zip")
    assert drop_times(call(other, "status")) == drop_times(call(here, "status"))
    assert drop_times(call(other, "query", "--limit", 0)) == drop_times(call(here, "query", "--limit", 0))
    assert call(other, "run", "--rounds", 0)["fireworks_run"] == 0  # nothing of it is done again
    ran_here, ran_there = (call(folder, "run", "--rounds", 1) for folder in (here, other))
    assert ran_there["fireworks_run"] == ran_here["fireworks_run"] > 0
    assert drop_times(call(other, "query", "--limit", 0)) == drop_times(call(here, "query", "--limit", 0))
    # and back: the two meet without a double or a conflict
    call(other, "export", "-o", tmp_path / "round1.zip")
    result = call(here, "import", tmp_path / "round1.zip")
    assert result["conflicts"] == []
    assert all(counts["new"] == 0 for counts in result["collections"].values()), result["collections"]


def test_db_move_says_what_to_set(
    inv_design: Run, elsewhere: Path, written_campaign: tuple[Path, dict[str, Any]]
) -> None:
    shutil.copy(written_campaign[0] / "inv_design.sqlite", elsewhere)
    first = there(inv_design, elsewhere, "db", "move", "--to", "embedded:new.sqlite", "--json")
    assert first.exit_code == 0, first.output
    report = json.loads(first.stdout)
    assert report["database"] == "database: embedded:new.sqlite"
    assert {e["name"]: e["documents"] for e in report["collections"]}["candidates"] == 11
    second = there(inv_design, elsewhere, "db", "move", "--to", "embedded:new.sqlite")
    assert second.exit_code == 0, second.output
    assert "before; nothing was done" in second.stderr
    assert "set this line in campaign.yaml: database: embedded:new.sqlite" in second.stderr
    words = ("query", "--json", "--limit", "0", "--sort", "id")
    moved = there(inv_design, elsewhere, *words, "--database", "embedded:new.sqlite")
    assert json.loads(moved.stdout) == json.loads(there(inv_design, elsewhere, *words).stdout)
    old = there(inv_design, elsewhere, "query", "--limit", "1")
    assert old.exit_code == 0, old.output
    assert "note: embedded:" in old.stderr
    assert "this is what it held then" in old.stderr
    refused = there(inv_design, elsewhere, "build")
    assert refused.exit_code == 1
    assert "set `database:` in campaign.yaml to that" in refused.stderr
    result = there(inv_design, elsewhere, "db", "move", "--to", "nowhere")
    assert result.exit_code == 1
    assert "'nowhere' is no database" in result.stderr
