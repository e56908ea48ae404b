"""`check`: every part that a campaign needs, with a tick or the cure."""

from __future__ import annotations

import importlib
import platform
import shutil
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from inv_design.cli import render
from inv_design.cli.errors import CommandFailed, describe
from inv_design.cli.options import Settings, database_options, json_option

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from inv_design.config import CampaignConfig

State = Literal["ok", "failed", "info"]

SOFTWARE = ("torch", "pymatgen", "ase", "mace-torch", "chgnet", "fireworks", "mongoengine", "maggma", "atomate2")
GPAW_CURE = "see docs/how-to/gpaw.md, or backend: surrogate"
VASP_CURE = "set ATOMATE2_VASP_CMD, and PMG_VASP_PSP_DIR in ~/.config/.pmgrc.yaml; see docs/how-to/vasp.md"
QUEUES = {"Slurm": ("sbatch", "squeue"), "PBS": ("qsub", "qstat")}


@dataclass(frozen=True)
class Finding:
    """One part: whether it works, what was found, and what to do if it does not.

    ``info`` is neither good nor bad: a part that this campaign does not need.
    """

    part: str
    state: State
    text: str
    cure: str | None = None


@click.command()
@click.option(
    "--worker",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Test what a worker of this my_fworker.yaml needs, on the machine where it runs.",
)
@click.option(
    "--queue",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Test the script that qlaunch would submit by this my_qadapter.yaml; nothing is submitted.",
)
@json_option
@database_options
@click.pass_obj
def check(settings: Settings, worker: Path | None, queue: Path | None) -> None:
    """Test every part that a campaign needs; show a tick or the cure.

    Exit code 1 if a part fails that the campaign, the worker or the queue adapter needs.
    """
    if worker is not None and queue is not None:
        raise click.UsageError("--worker and --queue test different things; give one of them")
    findings = []
    marks = {"ok": ("✓", "green"), "failed": ("✗", "red"), "info": ("·", "cyan")}
    out = render.console()
    if queue is not None:
        from inv_design.cli.check_queue import examine_queue

        parts = examine_queue(queue)
    elif worker is not None:
        from inv_design.cli.check_worker import examine_worker

        parts = examine_worker(settings, worker)
    else:
        parts = examine(settings)
    for finding in parts:
        findings.append(finding)
        if not settings.as_json:
            from rich.text import Text

            mark, colour = marks[finding.state]
            out.print(Text.assemble((mark, colour), f" {finding.part:<12} {finding.text}"))
            if finding.cure:
                out.print(Text.assemble(" " * 15, ("cure: ", "bold"), finding.cure))
    if settings.as_json:
        render.json_document([asdict(finding) for finding in findings])
    failed = [finding.part for finding in findings if finding.state == "failed"]
    if failed:
        raise CommandFailed(f"{len(failed)} of {len(findings)} parts are not ready: {', '.join(failed)}")


def examine(settings: Settings) -> Iterator[Finding]:
    """Yield a finding for each part, in the order in which a campaign needs them."""
    yield _try("python", _software, "install again: pip install inv-design")
    config: CampaignConfig | None = None
    try:
        config = settings.load_config()
        yield Finding("config", "ok", f"{settings.config}: campaign {config.name!r}, target {config.target:g} GPa")
    except ValueError as error:
        yield Finding("config", "failed", describe(error), "correct the file, or `inv-design init DIR` for a new one")
    if config is not None or settings.database:
        database = _try("database", lambda: _database(settings), "correct `database` or --database, or use 'embedded'")
        yield database
        if database.state == "ok":
            yield _try("launchpad", _launchpad, "repair the database first")
            if config is not None:
                yield _try("campaign", lambda: _campaign(config), "what may change is rounds, database, password_file")
    if config is not None:
        yield _try("data", lambda: _data(config), "correct data.source")
    yield _try("predictor", lambda: _predictor(config), "choose another, or train one: see docs/how-to/own-data.md")
    yield _try("generator", lambda: _generator(config), "install the generator's package, or choose another")
    names = ["mace-alloy-small"] if config is None else [config.stages.mlip.calculator]
    if config is not None and config.stages.dft.backend == "surrogate":
        names.append(config.stages.dft.calculator)
    for name in dict.fromkeys(names):
        yield _try("calculator", lambda name=name: _calculator(name), "choose another in campaign.yaml")  # type: ignore[misc]
    yield _label_backend(config)
    yield _queue()


def _try(part: str, test: Callable[[], str], cure: str) -> Finding:
    """Return the finding of a test that returns its text or raises anything."""
    try:
        with render.quiet():
            return Finding(part, "ok", test())
    except Exception as error:
        return Finding(part, "failed", describe(error), cure)


def _software() -> str:
    from inv_design import __version__

    versions = []
    for name in SOFTWARE:
        importlib.import_module({"mace-torch": "mace"}.get(name, name))
        versions.append(f"{name} {metadata.version(name)}")
    return f"{platform.python_version()}, inv-design {__version__}, {', '.join(versions)}"


def _database(settings: Settings) -> str:
    from inv_design.cli.database import open_database

    try:
        connection, busy = open_database(settings), ""
    except ConnectionError:
        if settings.database_uri().startswith("mongodb"):
            raise
        # an embedded database that `run` holds can still be read
        connection, busy = open_database(settings, read_only=True), ", in use by another process"
    names = ("candidates", "calculations", "models")
    counts = {name: connection.db[name].estimated_document_count() for name in names}
    labels = connection.db["calculations"].count_documents({"kind": "reference"})
    counts |= {"calculations": max(0, counts["calculations"] - labels), "reference labels": labels}
    return f"{connection.uri_redacted} ({', '.join(f'{n} {name}' for name, n in counts.items())}{busy})"


def _launchpad() -> str:
    from stores.connection import current

    launchpad = current().launchpad()
    return f"{launchpad.fireworks.count_documents({})} fireworks, {launchpad.workflows.count_documents({})} workflows"


def _campaign(config: CampaignConfig) -> str:
    """Return whether the campaign is in the database; raise ValueError, as `launch` does, if its settings differ."""
    from fireworks_specs.registration import is_registered

    there = is_registered(config)
    return "in the database with these settings" if there else "not in the database yet; run or launch starts it"


def _data(config: CampaignConfig) -> str:
    if config.data.source == "mp-binaries":
        from inv_design.datasets.mp_binaries import load_alloys

        return f"{len(load_alloys()):,} packaged binary alloys"
    from inv_design.structures.files import read_structures

    if not Path(config.data.source).exists():
        raise FileNotFoundError(2, "no such file", config.data.source)
    items = list(read_structures(config.data.source))
    bad = [item for item in items if item.error is not None]
    if len(bad) == len(items):
        raise ValueError(f"{config.data.source} holds nothing readable: {bad[0].error if bad else 'it is empty'}")
    return f"{config.data.source}: {len(items) - len(bad)} crystals, {len(bad)} unreadable"


def _predictor(config: CampaignConfig | None) -> str:
    from pymatgen.core import Lattice, Structure

    from inv_design.predictors.registry import default_predictor, make_predictor, predictor_names

    name = "cgcnn" if config is None else config.stages.predictor.model
    if name not in predictor_names():
        make_predictor(name)  # which says what there is
    predictor = default_predictor()
    sample = Structure.from_spacegroup("Im-3m", Lattice.cubic(3.17), ["W"], [[0.0, 0.0, 0.0]])
    value = float(predictor.predict([sample]).values[0])
    return f"{name}; packaged {predictor.name}: bcc W {value:.0f} {predictor.unit} (measured: 310 GPa)"


def _generator(config: CampaignConfig | None) -> str:
    from inv_design.generators.registry import default_generator, generator_class, generator_names

    name = "con_cdvae" if config is None else config.generator.name
    generator_class(name)
    text = f"{name} (installed: {', '.join(generator_names())})"
    if name == "con_cdvae" and (config is None or config.generator.pretrained):
        low, high = default_generator().capabilities().ranges.get("bulk_modulus_vrh", (0.0, 0.0))
        text += f", packaged weights for {low:.0f} to {high:.0f} GPa"
    return text


def _calculator(name: str) -> str:
    from ase.build import bulk

    from fireworks_specs.firetasks.train_mlip import fetch_calculator
    from inv_design.calculators.registry import get_calculator

    fetch_calculator(name)
    if name == "gpaw":  # a calculation takes minutes: importing it must do
        get_calculator(name)
        return "gpaw is installed"
    atoms = bulk("Cu", "fcc", a=3.6)
    atoms.calc = get_calculator(name)
    return f"{name}: fcc Cu {atoms.get_potential_energy() / len(atoms):.2f} eV/atom"


def _label_backend(config: CampaignConfig | None) -> Finding:
    if config is None or config.stages.dft.backend == "surrogate":
        name = "chgnet" if config is None else config.stages.dft.calculator
        return Finding("labels", "info", f"surrogate ({name}): a rehearsal, no DFT")
    if config.stages.dft.backend == "gpaw":
        return _try("labels", lambda: gpaw_version(config), GPAW_CURE)
    return _try("labels", _vasp, VASP_CURE)


def gpaw_version(config: CampaignConfig) -> str:
    """Return which GPAW computes the labels here, on how many ranks; raise RuntimeError if it cannot."""
    from fireworks_specs.backends.gpaw import require
    from inv_design.calculators.gpaw_calculator import ranks_of

    if missing := [name for name in ("gpaw", "gpaw-data") if not _installed(name)]:
        raise RuntimeError(
            f"{' and '.join(missing)} not installed here: compilers and libraries come from apt-get or your cluster's "
            "modules, GPAW itself by pip install '.[gpaw]' in a clone of inv-design"
        )
    require(config.stages.dft.gpaw)
    ranks = ranks_of(config.stages.dft.gpaw)
    return f"gpaw {metadata.version('gpaw')}, {ranks} rank{'' if ranks == 1 else 's'}"


def _installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def _vasp() -> str:
    from atomate2 import SETTINGS
    from pymatgen.core import SETTINGS as PYMATGEN

    command = str(SETTINGS.VASP_CMD).split()
    potentials = PYMATGEN.get("PMG_VASP_PSP_DIR")
    if not potentials:
        raise ValueError("PMG_VASP_PSP_DIR is not set: no pseudopotentials")
    program = next((c for c in reversed(command) if c.startswith("vasp") or "/vasp" in c), command[-1])
    if shutil.which(program) is None:
        raise FileNotFoundError(2, "not found on PATH", program)
    return f"vasp ({' '.join(command)}), potentials in {potentials}"


def _queue() -> Finding:
    found = [name for name, programs in QUEUES.items() if all(shutil.which(p) for p in programs)]
    text = f"{', '.join(found)} found" if found else "no Slurm or PBS here: workflows run in this process or by rlaunch"
    return Finding("queue", "info", text)
