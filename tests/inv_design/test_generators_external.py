"""A real program behind the generators' protocol: formats, time limits, crashes, rubbish, models, permissions."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pymatgen.core import Lattice, Structure

from inv_design.generators.external import ExternalGenerator, ExternalSettings
from inv_design.generators.program import fill, run_program
from inv_design.generators.protocol import Condition, Generator
from inv_design.generators.registry import generator_names, load_generator, make_generator
from inv_design.weights import pack, unpack

K = "bulk_modulus_vrh"
SCRIPT = str(Path(__file__).parent / "programs" / "lattice_generator.py")
FIT = [sys.executable, SCRIPT, "fit", "--input", "{input}", "--model", "{model}"]
SAMPLE = [
    sys.executable, SCRIPT, "sample", "--n", "{n}", "--seed", "{seed}", "--target", "{target}", "--model", "{model}",
    "--output", "{output}", "--elements", "{elements}",
]  # fmt: skip
MODULI = {"Al": 76.0, "Cu": 140.0, "Ni": 180.0, "Pt": 230.0, "W": 310.0, "Re": 370.0}


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("INV_DESIGN_ALLOW_PROGRAMS", raising=False)


def training() -> tuple[list[Structure], list[float]]:
    symbols = list(MODULI)
    pairs = [(a, b) for i, a in enumerate(symbols) for b in symbols[i + 1 :]]
    crystals = [Structure(Lattice.cubic(3.1 + i / 30), p, [[0, 0, 0], [0.5, 0.5, 0.5]]) for i, p in enumerate(pairs)]
    return crystals, [(MODULI[a] + MODULI[b]) / 2 for a, b in pairs]


def fitted(*, mode: str = "", kind: str = "cif-dir", extra: tuple[str, ...] = (), **settings: Any) -> ExternalGenerator:
    sample = [*SAMPLE, "--kind", kind, "--mode", mode, *extra]
    generator = ExternalGenerator(**{"sample": sample, "fit": FIT, "output": kind, "timeout": 60} | settings)
    generator.fit(*training())
    return generator


def formulas(samples: list[Any]) -> list[str]:
    return [s.structure.formula for s in samples]


@pytest.mark.parametrize("kind", ["cif-dir", "zip", "tar", "extxyz", "csv", "json"])
def test_every_output_is_read_in_order_with_its_own_score(kind: str) -> None:
    generator = fitted(kind=kind)
    assert isinstance(generator, Generator)
    samples = generator.sample(6, Condition({K: 300.0}), seed=4)
    assert formulas(samples) == formulas(fitted(kind="cif-dir").sample(6, Condition({K: 300.0}), seed=4))
    assert [s.index for s in samples] == list(range(6))
    assert all(s.seed == 4 and len(s.structure) == 2 for s in samples)
    scores = [s.score for s in samples if s.score is not None]
    assert len(scores) == 6
    assert abs(scores[0] - 300) < 30
    statistics = generator.last_statistics
    assert statistics["accepted"] == 6
    assert statistics["rejected"] == {}
    assert len(statistics["calls"]) == 1
    assert statistics["calls"][0]["exit_code"] == 0
    assert set(statistics["programs"]) >= {SCRIPT}
    assert len(statistics["model_sha256"]) == 64
    json.dumps(statistics)


def test_the_program_sees_target_seed_and_condition() -> None:
    generator = fitted()
    low, high = (generator.sample(3, Condition({K: t}), seed=1) for t in (80.0, 330.0))
    assert max(s.score for s in low) < 170 < min(s.score for s in high)
    assert formulas(generator.sample(5, Condition({K: 150.0}), seed=1)) != formulas(
        generator.sample(5, Condition({K: 150.0}), seed=2)
    )
    without = generator.sample(4, Condition({K: 300.0}, exclude_elements=frozenset({"Re"})), seed=0)
    assert len(without) == 4
    assert not any("Re" in f for f in formulas(without))
    assert {e.symbol for s in generator.sample(2, Condition({K: 1.0}, elements=frozenset({"Al", "Cu"})))
            for e in s.structure.composition} == {"Al", "Cu"}  # fmt: skip


def test_crystals_that_break_the_condition_are_left_out_and_counted() -> None:
    # a program that knows nothing of the condition
    careless = [part if part != "{elements}" else "Al,Cu,W,Re" for part in SAMPLE]
    generator = fitted(sample=careless, attempts=1)
    samples = generator.sample(6, Condition({K: 330.0}, exclude_elements=frozenset({"Re"})), seed=0)
    assert 0 < len(samples) < 6
    assert generator.last_statistics["rejected"]["elements"] == 6 - len(samples)
    assert generator.sample(3, Condition({K: 330.0}, max_sites=1), seed=0) == []
    assert generator.last_statistics["rejected"] == {"sites": 3}
    with pytest.raises(ValueError, match="shear"):
        generator.sample(1, Condition({"shear_modulus_vrh": 3.0}))


def test_too_few_crystals_are_asked_for_again_with_another_seed() -> None:
    generator = fitted(mode="few", attempts=4)
    samples = generator.sample(8, Condition({K: 150.0}), seed=3)
    calls = generator.last_statistics["calls"]
    assert [c["crystals"] for c in calls] == [4, 2, 1, 1]
    assert [c["argv"][4] for c in calls] == ["8", "4", "2", "1"]
    assert len({c["seed"] for c in calls}) == 4
    assert len({(*s.structure.lattice.abc, s.structure.formula) for s in samples}) == len(samples) == 8
    again = fitted(mode="few", attempts=4)
    assert formulas(again.sample(8, Condition({K: 150.0}), seed=3)) == formulas(samples)


@pytest.mark.parametrize("kind", ["cif-dir", "zip", "extxyz"])
def test_a_crash_half_way_keeps_what_is_there(kind: str) -> None:
    generator = fitted(mode="half", kind=kind, attempts=1)
    samples = generator.sample(6, Condition({K: 200.0}), seed=0)
    assert len(samples) == 3
    assert generator.last_statistics["partial"]
    (call,) = generator.last_statistics["calls"]
    assert call["exit_code"] == 3
    assert call["tail"].endswith("out of memory")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks /proc whether processes are gone")
def test_a_hang_is_ended_with_its_children_and_its_crystals_kept(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    generator = fitted(mode="hang", attempts=1, timeout=4, extra=("--pids", str(pids)))
    started = time.perf_counter()
    samples = generator.sample(5, Condition({K: 200.0}), seed=0)
    assert time.perf_counter() - started < 60
    assert len(samples) == 2
    assert generator.last_statistics["calls"][0]["timed_out"]
    processes = [int(pid) for pid in pids.read_text().split()]
    assert len(processes) == 2
    deadline = time.monotonic() + 10
    while any(map(alive, processes)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, processes))


def test_rubbish_is_counted_with_reasons_and_stops_nothing() -> None:
    generator = fitted(mode="rubbish", attempts=1)
    samples = generator.sample(8, Condition({K: 200.0}), seed=0)
    assert len(samples) == 4
    assert generator.last_statistics["rejected"] == {"unreadable": 4}
    assert len(generator.last_statistics["unreadable"]) == 4
    assert generator.last_statistics["unreadable"][0].startswith("crystals/0001.cif")


def test_a_program_that_only_fails_is_an_error_with_its_last_line() -> None:
    with pytest.raises(RuntimeError, match=r"no crystal in 2 calls.*exit code 1: no accelerator found"):
        fitted(mode="die", attempts=2).sample(3, Condition({K: 200.0}))
    missing = ExternalGenerator(sample=["/nowhere/generate", "{n}"])
    missing.fit(*training())
    with pytest.raises(ValueError, match="cannot start '/nowhere/generate'"):
        missing.sample(1, Condition({K: 1.0}))


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_archive_members_never_touch_the_disk(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    generator = fitted(mode="escape", kind=kind)
    assert len(generator.sample(3, Condition({K: 200.0}), seed=0)) == 3
    assert not list(tmp_path.rglob("escape*"))
    assert not list(tmp_path.glob("inv_design_*"))


def test_a_model_file_carries_the_programs_model(tmp_path: Path) -> None:
    generator = fitted()
    samples = generator.sample(4, Condition({K: 200.0}), seed=7)
    loaded = load_generator(generator.to_bytes())
    assert loaded.to_bytes() == generator.to_bytes()
    again = loaded.sample(4, Condition({K: 200.0}), seed=7)
    assert [s.structure for s in again] == [s.structure for s in samples]
    assert loaded.capabilities().elements == tuple(sorted(MODULI))
    assert loaded.capabilities().trainable
    # a folder as well
    folder = fitted(fit=[*FIT, "--mode", "folder"])
    twin = load_generator(folder.to_bytes())
    assert formulas(twin.sample(4, Condition({K: 200.0}), seed=7)) == formulas(samples)


def test_a_large_model_stays_where_it_is_and_is_verified(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="model_folder"):
        fitted(max_model_mb=1e-6)
    generator = fitted(max_model_mb=1e-6, model_folder=str(tmp_path / "kept"))
    blob = generator.to_bytes()
    loaded = load_generator(blob)
    assert len(loaded.sample(3, Condition({K: 200.0}))) == 3
    (kept,) = [p for p in (tmp_path / "kept").rglob("*") if p.is_file()]
    kept.write_text("{}")
    with pytest.raises(ValueError, match="has changed"):
        load_generator(blob)
    kept.unlink()
    with pytest.raises(ValueError, match="not on this machine"):
        load_generator(blob)


def test_a_pretrained_model_is_named_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "pretrained.json").write_text(json.dumps({"Al": [76, 16], "W": [310, 16]}))
    generator = ExternalGenerator(sample=SAMPLE, model=str(tmp_path / "pretrained.json"))
    generator.fit(*training())
    assert not generator.capabilities().trainable
    (sample,) = generator.sample(1, Condition({K: 193.0}))
    assert sample.structure.composition.chemical_system == "Al-W"


def test_finetune_gives_the_program_new_old_and_the_model_before() -> None:
    template = [*FIT, "--replay", "{replay}", "--previous", "{previous}"]
    generator = fitted(finetune=template)
    new = Structure(Lattice.cubic(3.0), ["Os", "Ru"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    before = generator.to_bytes()
    assert generator.finetune([new], [360.0])["new"] == 1
    assert generator.to_bytes() != before
    names = {s for f in formulas(generator.sample(6, Condition({K: 360.0}), seed=0)) for s in f.split()}
    assert names & {"Os1", "Ru1"}
    # without a command of its own it trains again on all
    plain = fitted()
    plain.finetune([new], [360.0])
    assert "Os" in plain.capabilities().elements
    assert names & {s for f in formulas(plain.sample(6, Condition({K: 360.0}), seed=0)) for s in f.split()}
    with pytest.raises(RuntimeError, match="not fitted"):
        ExternalGenerator(sample=SAMPLE, fit=FIT).finetune([new], [1.0])


def test_training_that_writes_nothing_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="wrote no model"):
        fitted(fit=[*FIT, "--mode", "nothing"])
    with pytest.raises(RuntimeError, match="exit code 2"):
        fitted(fit=[*FIT, "--unknown"])


def test_inputs_are_what_other_programs_read(tmp_path: Path) -> None:
    for kind, needed in (("csv", "crystals.csv"), ("cif-dir", "crystals/id_prop.csv"), ("extxyz", "crystals.extxyz")):
        copy = f"import shutil,sys; shutil.copytree(sys.argv[1], {str(tmp_path / kind)!r})"
        code = [
            sys.executable,
            "-c",
            f"import pathlib; {copy.replace('sys.argv[1]', 'pathlib.Path(sys.argv[1]).parent')}",
        ]
        ExternalGenerator(sample=["true"], fit=[*code, "{input}"], input=kind).fit(*training())
        assert (tmp_path / kind / needed).is_file()
    header = (tmp_path / "csv" / "crystals.csv").read_text().splitlines()[0].split(",")
    assert {"material_id", K, "cif"} <= set(header)
    rows = (tmp_path / "cif-dir" / "crystals" / "id_prop.csv").read_text().splitlines()
    name, value = rows[0].split(",")
    assert (tmp_path / "cif-dir" / "crystals" / f"{name}.cif").is_file()
    assert float(value) == training()[1][0]
    assert len(rows) == len(training()[1])


def test_a_strangers_model_file_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blob = fitted().to_bytes()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another account"))
    loaded = load_generator(blob)
    for act in (
        lambda: loaded.sample(1, Condition({K: 200.0})),
        lambda: loaded.fit(*training()),
        lambda: loaded.finetune(*training()),
    ):
        with pytest.raises(RuntimeError, match="INV_DESIGN_ALLOW_PROGRAMS=1"):
            act()
    monkeypatch.setenv("INV_DESIGN_ALLOW_PROGRAMS", "1")
    assert len(loaded.sample(1, Condition({K: 200.0}))) == 1


def test_a_strangers_model_is_not_handed_to_an_allowed_program() -> None:
    shell = ["/bin/sh", "-c"]
    generator = make_generator(
        "external", sample=[*shell, "cp $0 seen", "{model}"], fit=[*shell, "echo mine > $0", "{model}"]
    )
    generator.fit(*training())
    tensors, config = unpack(generator.to_bytes())
    evil = np.frombuffer(b"a pickle", dtype=np.uint8)
    swapped = {name: evil if name.startswith("model/") else array for name, array in tensors.items()}
    with pytest.raises(ValueError, match="not the one"):
        load_generator(pack(swapped, config))
    config["model"]["sha256"] = hashlib.sha256(b"a pickle").hexdigest()
    with pytest.raises(RuntimeError, match="set up with this model"):
        load_generator(pack(swapped, config)).sample(1, Condition({K: 200.0}))


def test_the_shape_that_is_asked_for_is_kept() -> None:
    taken = fitted().sample(3, Condition({K: 200.0}, crystal_system="hexagonal"))
    assert taken == []


def test_settings_that_cannot_work_are_named() -> None:
    assert "external" in generator_names()
    for settings, message in (
        ({}, "sample"),
        ({"sample": "gen.py -n {n}"}, "as a list"),
        ({"sample": ["gen", "{target_value}"]}, "target_value"),
        ({"sample": ["gen", "{n.__class__}"]}, "__class__"),
        ({"sample": ["gen", "{"]}, "no template"),
        ({"sample": ["gen"], "output": "pt"}, "unpickled.*convert"),
        ({"sample": ["gen"], "output": "zip", "file": "eval_gen.pt"}, "unpickled.*convert"),
        ({"sample": ["gen"], "output": "png"}, "'png'"),
        ({"sample": ["gen"], "output": "zip", "file": "out.xyz"}, "'out.xyz'"),
        ({"sample": ["gen"], "file": "../x"}, "leaves the folder"),
        ({"sample": ["gen"], "model_name": "/x"}, "leaves the folder"),
        ({"sample": ["gen", "{model}"]}, "nothing makes one"),
        ({"sample": ["gen"], "timeout": 0}, "timeout = 0"),
        ({"sample": ["gen"], "input": "poscar"}, "'poscar'"),
    ):
        with pytest.raises(ValueError, match=message):
            make_generator("external", **settings)
    assert fill(["--c={{'k': {target}}}", "{n:03d}", "{name}"], {"target": 350.0, "n": 7, "name": "a b; c"}) == [
        "--c={'k': 350.0}", "007", "a b; c",
    ]  # fmt: skip


def test_a_program_gets_no_settings_of_ours_and_prints_as_much_as_it_likes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INV_DESIGN_DATABASE_PASSWORD", "secret")
    code = "import os; print('x' * 5_000_000); print(os.environ.get('INV_DESIGN_DATABASE_PASSWORD'), os.environ['GPU'])"
    run = run_program([sys.executable, "-c", code], folder=tmp_path, timeout=60, environment={"GPU": "none"})
    assert run.tail.splitlines()[-1] == "None none"
    assert len(run.tail) <= 64 * 1024
    assert not run.failed
    assert os.environ["INV_DESIGN_DATABASE_PASSWORD"] == "secret"


def test_a_program_that_ignores_its_seed_gives_each_crystal_once() -> None:
    deaf = [part if part != "{seed}" else "1" for part in SAMPLE]
    generator = fitted(sample=[*deaf, "--mode", "few"], attempts=3)
    samples = generator.sample(4, Condition({K: 150.0}), seed=3)
    assert len(samples) == 2
    assert generator.last_statistics["rejected"] == {"duplicate": 2}


def test_the_documented_settings_are_settings() -> None:
    text = (Path(__file__).parents[2] / "docs" / "how-to" / "own-generator.md").read_text()
    blocks = [yaml.safe_load(block)["generator"] for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)]
    made = [make_generator(block["name"], **block["settings"]).settings for block in blocks]
    assert len(made) == 2
    argv = fill(made[0].sample, {"folder": "/out", "model": "/m", "target": 350.0})
    assert "--properties_to_condition_on={'ml_bulk_modulus': 350.0}" in argv
    assert Path(argv[0]) == Path.home() / "mattergen/.venv/bin/mattergen-generate"
    for setting in fields(ExternalSettings):
        assert f"`{setting.name}`" in text or f"      {setting.name}:" in text, setting.name
