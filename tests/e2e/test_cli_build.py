"""build: what is new, everything from scratch, and an item that fails."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner, Result

if TYPE_CHECKING:
    from pathlib import Path

COLLECTIONS = ["candidate_summaries", "screening_queue", "campaign_metrics"]


@pytest.fixture
def own(written_campaign: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the folder of a copy of the campaign, since this command writes."""
    folder = shutil.copytree(written_campaign[0], tmp_path / "own")
    monkeypatch.chdir(folder)
    monkeypatch.delenv("INV_DESIGN_DATABASE", raising=False)
    return folder


def run(*arguments: str) -> Result:
    from inv_design.cli import main

    return CliRunner().invoke(main, ["build", *arguments])


def rows(*arguments: str) -> dict[str, Any]:
    result = run("--json", *arguments)
    assert result.exit_code == 0, result.stderr
    return {row.pop("collection"): row for row in json.loads(result.stdout)}


def test_nothing_new_then_everything(own: Path) -> None:
    found = rows()
    assert list(found) == COLLECTIONS
    assert {row["processed"] for row in found.values()} == {0}
    anew = rows("--from-scratch")
    assert anew["candidate_summaries"]["processed"] == anew["candidate_summaries"]["read"] > 0
    assert anew["campaign_metrics"]["processed"] == 2
    assert run().stdout.split()[:5] == ["collection", "read", "processed", "written", "failed"]


def test_an_edited_document_is_mended_and_a_failed_item_told(own: Path) -> None:
    from stores.connection import connect

    with connect("embedded", root=own) as connection:
        connection.db["candidate_summaries"].update_many({}, {"$set": {"status": "edited"}})
        connection.db["candidates"].insert_one({"candidate_id": "c-0", "campaign": "stiff", "structure_id": "s-0"})
    result = run("--from-scratch")
    assert result.exit_code == 1
    assert "1 items failed" in result.stderr
    with connect("embedded", root=own, read_only=True) as connection:
        assert "edited" not in connection.db["candidate_summaries"].distinct("status")
        assert "round is None" in connection.db["candidate_summaries"].find_one({"candidate_id": "c-0"})["error"]
