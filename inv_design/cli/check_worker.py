"""What a worker needs to take fireworks of its categories: one finding per part."""

from __future__ import annotations

import importlib
import shutil
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inv_design.cli.check import (
    GPAW_CURE,
    VASP_CURE,
    Finding,
    _calculator,
    _generator,
    _predictor,
    _try,
    gpaw_version,
)
from inv_design.cli.errors import describe

if TYPE_CHECKING:
    from collections.abc import Iterator

    from inv_design.cli.options import Settings
    from inv_design.config import CampaignConfig

SCRATCH_GB = 1.0
"""Free disk below which a relaxation or a training may not be able to write its files."""
WORKER_KEYS = ("name", "category", "query", "env")
LEARNING, POTENTIAL, LABELS = "train", "mlip", "dft"


def examine_worker(settings: Settings, path: Path) -> Iterator[Finding]:
    """Yield a finding for each part that a worker of ``my_fworker.yaml`` needs, in the order in which it needs them."""
    try:
        name, categories = read_worker(path)
    except (OSError, ValueError) as error:
        yield Finding("worker", "failed", describe(error), "correct the file; `inv-design init` writes examples")
        return
    yield Finding("worker", "ok", f"{path}: {name!r} takes {', '.join(categories)}")
    database = _try("database", lambda: _database(settings), "correct `database` or --database; workers need a server")
    yield database
    if database.state == "ok":
        yield _try("launchpad", lambda: _launchpad(path), "correct my_launchpad.yaml, or repair the database first")
        yield _try("writing", _writing, "have a curator give this user the role worker: `inv-design db users`")
        yield _try("clock", _clock, "set this machine's clock by NTP")
    yield _try("scratch", _scratch, "free disk, or start the worker in another folder")
    try:
        config = settings.load_config()
    except ValueError as error:
        yield Finding("config", "failed", describe(error), "give the campaign file with --config")
        return
    if {LEARNING, POTENTIAL} & set(categories):
        yield _try("torch", _torch, "install again: pip install inv-design")
        yield _gpu(f"{name} {path.stem}")
        calculators = [config.stages.mlip.calculator]
    else:
        calculators = []
    if LEARNING in categories:
        yield _try("predictor", lambda: _predictor(config), "choose another, or train one: see docs/how-to/own-data.md")
        yield _try("generator", lambda: _generator(config), "install the generator's package, or choose another")
    if LABELS in categories and config.stages.dft.backend == "surrogate":
        calculators.append(config.stages.dft.calculator)
    for item in dict.fromkeys(calculators):
        yield _try("calculator", lambda item=item: _calculator(item), "choose another in campaign.yaml")  # type: ignore[misc]
    if LABELS in categories:
        yield from _labels(config)
    yield scheduler()


def read_worker(path: Path) -> tuple[str, list[str]]:
    """Return the name and the categories of a ``my_fworker.yaml``; without a category it takes all.

    Raises
    ------
    OSError, ValueError
        If the file cannot be read, is no worker, or names a category that no firework has.
    """
    import yaml

    from fireworks_specs.workflows import CATEGORIES

    known = sorted(set(CATEGORIES.values()))
    try:
        raw = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(raw, dict) or "name" not in raw:
        raise ValueError(f"{path} is no worker: it has no name")
    if other := [
        str(key) for key in raw if key not in WORKER_KEYS and not str(key).startswith("_")
    ]:  # FireWorks would read past it
        raise ValueError(f"{path} is no worker: it has {other[0]!r}; a worker has {', '.join(WORKER_KEYS)}")
    given = raw.get("category") or known
    categories = [given] if isinstance(given, str) else list(given)
    if unknown := [category for category in categories if category not in known]:
        raise ValueError(f"{path}: no firework has the category {unknown[0]!r}; there are {', '.join(known)}")
    return str(raw["name"]), categories


def _database(settings: Settings) -> str:
    from inv_design.cli.database import open_database
    from stores.schema import version_of

    connection = open_database(settings)  # which refuses another schema
    if connection.kind == "embedded":
        raise ValueError(f"{connection.uri_redacted} is a file of one process, which workers cannot share")
    return f"{connection.uri_redacted}, schema {version_of(connection)}"


def _launchpad(path: Path) -> str:
    """Return what is on the launchpad; refuse a my_launchpad.yaml beside the worker's that does not open it."""
    import yaml

    from stores.connection import current, redact

    connection = current()
    text = f"{connection.launchpad().fireworks.estimated_document_count()} fireworks"
    beside = path.parent / "my_launchpad.yaml"
    if not beside.is_file():
        return f"{text}; no {beside} beside the worker's"
    try:
        raw = yaml.safe_load(beside.read_text())
    except yaml.YAMLError:  # which quotes the file
        raise ValueError(f"{beside} is no YAML") from None
    if not isinstance(raw, dict) or not isinstance(raw.get("host"), str):
        raise ValueError(f"{beside} is no launchpad: it has no host")
    if raw.get("name") != connection.db.name:
        raise ValueError(f"{beside} names the database {raw.get('name')!r}, the campaign's is {connection.db.name!r}")
    if _database_id(beside, raw) != connection.database_id:
        host, own = redact(raw["host"]), connection.uri_redacted
        raise ValueError(f"{beside} names {host}, where another database is than the campaign's, {own}")
    return f"{text}; {beside} opens the same database"


def _database_id(path: Path, raw: dict[str, Any]) -> str | None:
    """Return what the database of a my_launchpad.yaml calls itself, read as a worker would: with what the file says."""
    import fireworks.core.launchpad as module
    from pymongo import MongoClient
    from pymongo.errors import PyMongoError

    from stores import connection, schema

    options = {**(raw.get("mongoclient_kwargs") or {}), "serverSelectionTimeoutMS": connection.TIMEOUT_MS}
    shared = module.MongoClient
    module.MongoClient = MongoClient  # not the client of this process, which may know a password that the file lacks
    try:
        launchpad = module.LaunchPad.from_dict({**raw, "mongoclient_kwargs": options})
        try:
            launchpad.connection.admin.command("ping")
            found = launchpad.db[schema.COLLECTION].find_one({"_id": schema.DOCUMENT})
        finally:
            launchpad.connection.close()
    except (PyMongoError, ValueError, TypeError) as error:
        told = connection._told(error, raw["host"])
        raise ConnectionError(f"{path} does not open {connection.redact(raw['host'])}: {told}") from None
    finally:
        module.MongoClient = shared
    return (found or {}).get("database_id")


def _writing() -> str:
    """Write, renew and remove what every worker does: a claim."""
    from stores.claims import Claims, lease_seconds

    key = f"check/{uuid.uuid4().hex}"
    claims = Claims(stage="check")
    try:
        if claims.claim([key]) != [key]:
            raise RuntimeError("a claim that was written is not there")
        claims.renew()
    finally:
        claims.release_all()
    return f"a claim written, renewed and removed; a lease is {lease_seconds():g} s"


def _clock() -> str:
    """Compare the clocks: claims go by the server's alone, times in records and of launches by each machine's."""
    from stores.claims import lease_seconds
    from stores.connection import current

    before = datetime.now(UTC)
    server = current().now()
    after = datetime.now(UTC)
    off = (server - (before + (after - before) / 2).replace(tzinfo=None)).total_seconds()
    if abs(off) > lease_seconds():
        raise ValueError(f"the server's clock is {off:+.0f} s off this machine's, more than a lease")
    return f"{abs(off):.1f} s from the server's"


def _scratch() -> str:
    folder = Path.cwd()
    probe = folder / f".inv-design-{uuid.uuid4().hex}"
    probe.write_bytes(b"x")
    probe.unlink()
    free = shutil.disk_usage(folder).free / 1e9
    if free < SCRATCH_GB:
        raise OSError(f"{folder} has {free:.1f} GB free; a worker needs {SCRATCH_GB:g} GB")
    return f"{folder}: {free:.0f} GB free"


def _torch() -> str:
    import torch

    return f"torch {torch.__version__}, {torch.get_num_threads()} threads"


def _gpu(names: str) -> Finding:
    """Return whether a GPU is there; inside a job, a worker that is called one for GPUs must have it."""
    import torch

    from stores.workers import this_job

    if torch.cuda.is_available():
        return Finding("gpu", "ok", torch.cuda.get_device_name(0))
    if "gpu" not in names.lower():
        return Finding("gpu", "info", "none; potentials and training run on the CPU")
    cure = "ask for one in the queue adapter (gres or gpus), and install torch for its CUDA version"
    if this_job():
        return Finding("gpu", "failed", "no GPU in this job", cure)
    return Finding("gpu", "info", "no GPU here; on a login node that is as it should be: check inside a job, too")


def _labels(config: CampaignConfig) -> Iterator[Finding]:
    backend = config.stages.dft.backend
    if backend == "surrogate":
        yield Finding("labels", "info", f"surrogate ({config.stages.dft.calculator}): a rehearsal, no DFT")
    elif backend == "gpaw":
        gpaw = _try("labels", lambda: gpaw_version(config), GPAW_CURE)
        yield gpaw
        if gpaw.state == "ok":
            yield _missing(
                "setups", config, _gpaw_setups, "install gpaw-data again (docs/how-to/gpaw.md), or exclude them"
            )
    else:
        yield _try("labels", _vasp, VASP_CURE)
        yield _try("custodian", _custodian, "pip install custodian")
        yield _missing("potcars", config, _potcars, "`pmg config -p` with your POTCARs, or exclude them")


def _vasp() -> str:
    from atomate2 import SETTINGS

    from fireworks_specs.backends.vasp import Vasp

    Vasp().require()
    return f"vasp ({SETTINGS.VASP_CMD})"


def _custodian() -> str:
    from importlib.metadata import version

    importlib.import_module("custodian.vasp.jobs")
    return f"custodian {version('custodian')}, jobflow {version('jobflow')}"


def _missing(part: str, config: CampaignConfig, have: Any, cure: str) -> Finding:
    """Return which of the campaign's elements a backend has no potential for: candidates with them will fail."""
    from inv_design.structures.elements import expand_elements

    wanted = set(expand_elements(config.data.elements)) - set(expand_elements(config.data.exclude))
    wanted -= set(expand_elements(config.chemistry.exclude))
    try:
        missing = sorted(wanted - have())
    except Exception as error:
        return Finding(part, "failed", describe(error), cure)
    if not missing:
        return Finding(part, "ok", f"for all {len(wanted)} elements of the campaign")
    if len(missing) == len(wanted):
        return Finding(part, "failed", f"for none of the {len(wanted)} elements of the campaign", cure)
    text = f"for {len(wanted) - len(missing)} of {len(wanted)} elements; candidates with {', '.join(missing)} will fail"
    return Finding(part, "info", text, cure)


def _gpaw_setups() -> set[str]:
    folder = Path(importlib.import_module("gpaw_data").datapath())  # the only one that calculations use
    return {path.name.split(".")[0] for path in folder.glob("*.PBE*")}


def _potcars() -> set[str]:
    from fireworks_specs.backends.vasp import potcar_folder

    folder = potcar_folder()
    names = {path.name for path in folder.glob("POTCAR.*")}
    names |= {f"POTCAR.{path.parent.name}" for path in folder.glob("*/POTCAR*")}
    return {name.split(".")[1].split("_")[0] for name in names}


def scheduler() -> Finding:
    """Return whether the scheduler's commands are here and answer."""
    from fireworks_specs.schedulers import find_scheduler

    found = find_scheduler()
    if found is None:
        return Finding("queue", "info", "no Slurm or PBS here: start workers with rlaunch")
    submit = {"slurm": "sbatch", "pbs": "qsub"}[found.name]
    cure = "ask the cluster's support; `inv-design doctor` judges by claims meanwhile"
    if shutil.which(submit) is None:
        return Finding("queue", "failed", f"{submit} is not on PATH", "load the scheduler's module")
    try:
        queue = found.ask(["1"])
    except (OSError, ValueError) as error:
        return Finding("queue", "failed", describe(error), cure)
    return Finding("queue", "ok", f"{found.name} answers{f', cluster {queue.cluster}' if queue.cluster else ''}")
