"""`inv-design db check`: a sound campaign, and one that somebody changed."""

from __future__ import annotations

import json
import shutil
from typing import Any

from click.testing import CliRunner


def test_the_command_lists_and_fails(written_campaign, tmp_path):
    from inv_design.cli import main
    from stores.connection import connect

    def run(*arguments: str) -> Any:
        database = f"embedded:{tmp_path / 'a.sqlite'}"
        return CliRunner().invoke(main, ["db", "check", "--database", database, *arguments])

    shutil.copy(written_campaign[0] / "inv_design.sqlite", tmp_path / "a.sqlite")
    assert run().exit_code == 0
    with connect(f"embedded:{tmp_path / 'a.sqlite'}") as connection:
        connection.db["structures"].update_one({}, {"$set": {"density": "heavy"}})
    failed = run("--quick")
    assert failed.exit_code == 1
    assert "density is 'heavy', not a number" in failed.output
    assert [p["collection"] for p in json.loads(run("--json").stdout)] == ["structures"]
