"""A campaign that is killed at random moments goes on, repeats nothing finished, and ends in the same records."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

CONFIG = Path(__file__).parent / "small_campaign.yaml"
KILLS = 20
KEYS = {
    "structures": ("structure_id",),
    "candidates": ("candidate_id",),
    "predictions": ("structure_id", "property", "protocol_id"),
    "calculations": ("calculation_id",),
    "models": ("model_id",),
    "training_sets": ("training_set_id",),
    "evaluations": ("evaluation_id",),
}


def start(folder: Path) -> subprocess.Popen[bytes]:
    environment = os.environ | {"INV_DESIGN_WORKERS": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("INV_DESIGN_DATABASE", None)
    return subprocess.Popen(
        [sys.executable, "-m", "inv_design.cli", "run", "-c", str(folder / "campaign.yaml")],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=(folder / "run.log").open("ab"),
    )


def records(folder: Path) -> dict[str, list[str]]:
    """Return the authoritative records of a campaign without times and hosts, each as text, sorted."""
    code = (
        "import json, sys; from pathlib import Path\n"
        "from stores.connection import connect\n"
        "c = connect('embedded', root=Path(sys.argv[1]), read_only=True)\n"
        "drop = {'_id', 'provenance', 'artifact', 'sources'}\n"
        "names = sys.argv[2].split(',')\n"
        "text = lambda d: json.dumps({k: v for k, v in d.items() if k not in drop}, sort_keys=True, default=str)\n"
        "out = {n: [text(d) for d in c.db[n].find()] for n in names}\n"
        "print(json.dumps({n: sorted(v) for n, v in out.items()}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), ",".join(KEYS)], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def ids(found: dict[str, list[str]]) -> dict[str, list[str]]:
    return {n: ["/".join(str(json.loads(t)[k]) for k in KEYS[n]) for t in texts] for n, texts in found.items()}


def new_campaign(folder: Path) -> Path:
    folder.mkdir()
    shutil.copy(CONFIG, folder / "campaign.yaml")
    return folder


@pytest.mark.slow
def test_killed_campaign_ends_in_the_same_records(tmp_path: Path) -> None:
    quiet = new_campaign(tmp_path / "quiet")
    began = time.monotonic()
    assert start(quiet).wait(timeout=600) == 0, (quiet / "run.log").read_text()[-2000:]
    duration = time.monotonic() - began
    expected = records(quiet)
    assert all(expected.values()), {name: len(found) for name, found in expected.items()}

    killed = new_campaign(tmp_path / "killed")
    rng = random.Random(20)
    seen: dict[str, set[str]] = {}
    kills = 0
    while kills < KILLS:
        process = start(killed)
        try:
            # spread over the whole campaign: it advances a little between two kills
            process.wait(timeout=rng.uniform(1.0, 1.0 + max(4.0, 0.35 * duration)))
            finished = True
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            finished = False
        kills += 1
        if (killed / "inv_design.sqlite").exists():
            now = ids(records(killed))
            for name, found in now.items():
                assert len(found) == len(set(found)), f"after kill {kills}: doubles in {name}"
                lost = seen.get(name, set()) - set(found)
                assert not lost, f"after kill {kills}: lost from {name}: {sorted(lost)[:3]}"
                seen[name] = set(found)
        if finished:  # start over with a fresh campaign for the kills that are left
            assert process.returncode == 0, (killed / "run.log").read_text()[-2000:]
            assert records(killed) == expected
            shutil.rmtree(killed)
            new_campaign(killed)
            seen = {}
    assert start(killed).wait(timeout=600) == 0, (killed / "run.log").read_text()[-2000:]
    assert records(killed) == expected
