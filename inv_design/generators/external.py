"""A generator of someone else in its own environment: called as a program, its crystals read from its files."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import string
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from inv_design.generators.program import (
    ALLOW,
    Run,
    allow,
    check_template,
    file_hash,
    files_hash,
    fill,
    is_allowed,
    program_hashes,
    run_program,
)
from inv_design.generators.protocol import Capabilities, Condition, Sample, SavedAsBytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pymatgen.core import Structure

    from inv_design.generators.protocol import Progress
    from inv_design.structures.files import ReadItem

OUTPUTS = {
    "cif-dir": ("",), "zip": (".zip",), "tar": (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz"),
    "extxyz": (".extxyz", ".xyz"), "csv": (".csv",), "json": (".json", ".jsonl"),
}  # fmt: skip
"""What a program may write, and the suffixes that its file may have; the first one is the default."""

INPUTS = {"extxyz": ".extxyz", "csv": ".csv", "cif-dir": ""}
PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib")
TRAIN_FIELDS = ("input", "model", "folder", "property", "seed", "budget", "n_train", "elements")
FINETUNE_FIELDS = (*TRAIN_FIELDS, "replay", "previous")
SAMPLE_FIELDS = (
    "n", "seed", "target", "property", "input", "output", "folder", "model", "elements", "exclude", "max_sites",
    "condition",
)  # fmt: skip
EXAMPLES = 5
"""Unreadable crystals whose reasons are kept."""
CELLS = 16
"""A cell of more sites than so many times the condition's limit is not searched for a primitive one."""


@dataclass(frozen=True)
class ExternalSettings:
    """Settings of the adapter; templates are lists of arguments with named fields in braces.

    Attributes
    ----------
    sample
        What makes crystals. Fields: ``n``, ``seed``, ``target``, ``property``; ``output``, the file or folder to write,
        and ``folder``, the empty folder it lies in; ``input``, the training crystals; ``model``; ``elements``,
        ``exclude`` (symbols with commas), ``max_sites`` (0: no limit), and ``condition``, a JSON file of all of them.
    fit, finetune
        What trains, or ``None``. Fields: ``input``, ``model`` (to be written), ``property``, ``seed``, ``budget``,
        ``n_train``, ``elements``, ``folder`` (empty, for anything); for ``finetune`` also ``replay``, the old crystals
        (``input`` has the new ones), and ``previous``, the model so far. Without ``finetune``, ``fit`` runs again on
        old and new crystals.
    output
        ``cif-dir``, ``zip`` or ``tar`` (of CIF files), ``extxyz``, ``csv`` (with a column ``cif``) or ``json``
        (pymatgen's dictionaries).
    file
        Name of what the program writes, relative to ``{folder}``; ``None`` is ``crystals`` with the suffix of
        ``output``, and ``.`` the folder itself.
    input
        ``extxyz``, ``csv`` (``material_id``, the property and ``cif``, as MP-20 has them) or ``cif-dir`` (with an
        ``id_prop.csv`` as CGCNN reads it).
    timeout, fit_timeout
        Seconds for one call of ``sample``, and of ``fit`` or ``finetune``; the program and its children end then.
    attempts
        Calls per ``sample`` until enough crystals came, each with another seed.
    environment
        Further environment variables. They are stored with the model: no credentials.
    directory
        Folder that the program runs in; ``None`` is an empty one.
    model
        A trained model that is there already, a file or folder, where ``fit`` writes none.
    model_name
        Name of the file or folder that ``{model}`` is when ``fit`` writes it, for programs that look at the suffix.
    max_model_mb
        Largest model that is stored in the database with its bytes, in MB.
    model_folder
        Folder that keeps larger ones; the database has their path and hash.
    """

    sample: tuple[str, ...]
    fit: tuple[str, ...] | None = None
    finetune: tuple[str, ...] | None = None
    output: str = "cif-dir"
    file: str | None = None
    input: str = "extxyz"
    timeout: float = 3600.0
    fit_timeout: float = 86400.0
    attempts: int = 3
    environment: dict[str, str] = field(default_factory=dict)
    directory: str | None = None
    model: str | None = None
    model_name: str = "model"
    max_model_mb: float = 64.0
    model_folder: str | None = None

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "sample", check_template(self.sample, SAMPLE_FIELDS, name="sample"))
        for name, fields in (("fit", TRAIN_FIELDS), ("finetune", FINETUNE_FIELDS)):
            if getattr(self, name) is not None:
                put(self, name, check_template(getattr(self, name), fields, name=name))
        put(self, "environment", {str(key): str(value) for key, value in self.environment.items()})
        self._check_files()
        for name in ("timeout", "fit_timeout", "attempts", "max_model_mb"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} = {getattr(self, name)}; a positive number is needed")
        if not isinstance(self.attempts, int):
            raise ValueError(f"attempts = {self.attempts!r}; a whole number is needed")
        if _has(self.sample, "model") and self.model is None and not _has(self.fit, "model"):
            raise ValueError("sample has {model}, but nothing makes one: give fit with {model}, or the path model")

    def _check_files(self) -> None:
        for given in (self.output, self.file or ""):
            if f".{given}".endswith(PICKLES):
                raise ValueError(
                    f"{given!r} can only be unpickled, which would execute code; convert it to CIF or extxyz in the "
                    "generator's own environment, as a part of the command sample"
                )
        if self.output not in OUTPUTS:
            raise ValueError(f"output = {self.output!r}; choose one of {', '.join(OUTPUTS)}")
        if self.input not in INPUTS:
            raise ValueError(f"input = {self.input!r}; choose one of {', '.join(INPUTS)}")
        if self.file is not None and not self.file.lower().endswith(OUTPUTS[self.output]):
            raise ValueError(f"file = {self.file!r} does not end with one of {', '.join(OUTPUTS[self.output])}")
        for name in ("file", "model_name"):
            path = Path(getattr(self, name) or "x")
            if path.is_absolute() or ".." in path.parts:
                raise ValueError(f"{name} = {str(path)!r} leaves the folder of the run; give a relative name")

    @property
    def result(self) -> str:
        """Name of what the program writes, relative to its folder."""
        return self.file or f"crystals{OUTPUTS[self.output][0]}"

    @property
    def commands(self) -> dict[str, Any]:
        """What decides about the programs that run."""
        names = ("sample", "fit", "finetune", "environment", "directory", "model")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class _Crystals:
    """Training crystals and their values, exactly as they were given."""

    structures: list[Structure]
    values: np.ndarray

    @property
    def elements(self) -> set[str]:
        return {element.symbol for structure in self.structures for element in structure.composition}

    def write(self, path: Path, property: str) -> Path:
        """Write the crystals for a program, and return the path."""
        from inv_design.structures.files import write_structures

        pairs = [
            (structure, {"material_id": f"crystal-{i:06d}", "id": f"crystal-{i:06d}", property: float(value)})
            for i, (structure, value) in enumerate(zip(self.structures, self.values, strict=True))
        ]
        write_structures(path, pairs)
        if path.suffix == "":
            path.mkdir(exist_ok=True)
            names = sorted(file.stem for file in path.glob("*.cif"))
            rows = (f"{name},{float(value)!r}\n" for name, value in zip(names, self.values, strict=True))
            (path / "id_prop.csv").write_text("".join(rows))
        return path

    def to_tensors(self) -> dict[str, np.ndarray]:
        return {
            "crystals.sizes": np.array([len(s) for s in self.structures], dtype=np.int64),
            "crystals.numbers": np.array([site.specie.Z for s in self.structures for site in s], dtype=np.uint8),
            "crystals.coords": np.concatenate([s.frac_coords for s in self.structures]).astype(float),
            "crystals.lattices": np.array([s.lattice.matrix for s in self.structures], dtype=float),
            "values": self.values,
        }

    @classmethod
    def from_tensors(cls, arrays: Mapping[str, np.ndarray]) -> Self:
        from pymatgen.core import Element, Structure

        ends = np.cumsum(arrays["crystals.sizes"])
        structures = []
        for start, end, matrix in zip(ends - arrays["crystals.sizes"], ends, arrays["crystals.lattices"], strict=True):
            species = [Element.from_Z(int(z)) for z in arrays["crystals.numbers"][start:end]]
            structures.append(Structure(matrix, species, arrays["crystals.coords"][start:end]))
        return cls(structures, arrays["values"])


@dataclass(frozen=True)
class _Model:
    """A program's model: its bytes by relative path (``.`` for a single file), or where a large one lies."""

    sha256: str
    files: dict[str, bytes] = field(default_factory=dict)
    path: str | None = None

    def place(self, path: Path) -> Path:
        """Return where the model lies, written to ``path`` if it is carried as bytes."""
        if self.path is not None:
            return Path(self.path)
        for name, content in self.files.items():
            target = path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        return path

    def verify(self) -> None:
        """Check that the model is the one that was recorded, in the blob or outside it.

        Raises
        ------
        ValueError
            If it is not.
        """
        if self.path is None:
            if files_hash(self.files) != self.sha256:
                raise ValueError("the model that this file carries is not the one it was recorded with; fit again")
            return
        if not Path(self.path).exists():
            raise ValueError(f"the generator's model {self.path} is not on this machine; copy it there")
        if file_hash(self.path) != self.sha256:
            raise ValueError(f"the generator's model {self.path} has changed since it was recorded; fit again")


class ExternalGenerator(SavedAsBytes):
    """A third-party generator behind the protocol. Keyword arguments are the fields of :class:`ExternalSettings`.

    The program decides how far the condition is met; crystals that break its elements or sites are left out here. What
    is sampled depends on the program alone: it has to honour ``{seed}``, and to end before its time is up, for the
    same call to give the same crystals.
    """

    name = "external"

    def __init__(self, **settings: Any) -> None:
        self.settings = ExternalSettings(**settings)
        self.last_statistics: dict[str, Any] = {}
        self.property = "bulk_modulus_vrh"
        self._crystals: _Crystals | None = None
        self._model: _Model | None = None
        self._training: dict[str, Any] = {}
        self._loaded = False

    def fit(
        self,
        structures: Sequence[Structure],
        values: Sequence[float],
        *,
        property: str = "bulk_modulus_vrh",
        seed: int = 0,
        budget: float | None = None,
        progress: Progress | None = None,
    ) -> dict[str, float]:
        """Keep the crystals and let the program train, if it does.

        Raises
        ------
        ValueError
            If there is nothing to learn from, or the program cannot be started.
        RuntimeError
            If the program fails or writes no model.
        """
        crystals = _checked(structures, values)
        self._need_permission()
        self.property = property
        if self.settings.fit is not None:
            self._train("fit", self.settings.fit, crystals, replay=None, seed=seed, budget=budget, progress=progress)
        elif self.settings.model is not None:
            path = Path(self.settings.model).expanduser().absolute()
            if not path.exists():
                raise ValueError(f"model = {self.settings.model!r} does not exist; check the path")
            self._model = _Model(file_hash(path), path=str(path))
        self._crystals = crystals
        allow(self._permission())
        return {"crystals": float(len(crystals.structures))}

    def finetune(
        self,
        structures: Sequence[Structure],
        values: Sequence[float],
        *,
        replay_structures: Sequence[Structure] = (),
        replay_values: Sequence[float] = (),
        seed: int = 0,
        budget: float | None = None,
        progress: Progress | None = None,
    ) -> dict[str, float]:
        """Let the program learn new crystals, with the old ones as a replay; see :attr:`ExternalSettings.finetune`."""
        old = self._fitted()
        new = _checked(structures, values)
        if len(replay_structures):
            old = _checked(replay_structures, replay_values)
        self._need_permission()
        both = _Crystals([*old.structures, *new.structures], np.concatenate([old.values, new.values]))
        if self.settings.finetune is not None:
            self._train(
                "finetune", self.settings.finetune, new, replay=old, seed=seed, budget=budget, progress=progress
            )
        elif self.settings.fit is not None:
            self._train("fit", self.settings.fit, both, replay=None, seed=seed, budget=budget, progress=progress)
        self._crystals = both
        allow(self._permission())
        return {"crystals": float(len(both.structures)), "new": float(len(new.structures))}

    def _train(
        self,
        name: str,
        template: tuple[str, ...],
        crystals: _Crystals,
        *,
        replay: _Crystals | None,
        seed: int,
        budget: float | None,
        progress: Progress | None,
    ) -> None:
        """Run a training command and take the model that it writes."""
        if progress is not None:
            progress(0, 1, name)
        with TemporaryDirectory(prefix="inv_design_", ignore_cleanup_errors=True) as temporary:
            work = _Work(Path(temporary))
            suffix = INPUTS[self.settings.input]
            values: dict[str, Any] = {
                "input": crystals.write(work.input / f"crystals{suffix}", self.property),
                "model": work.written_model / self.settings.model_name,
                "folder": work.output,
                "property": self.property,
                "seed": seed,
                "budget": 1.0 if budget is None else float(budget),
                "n_train": len(crystals.structures),
                "elements": ",".join(sorted(crystals.elements | (replay.elements if replay else set()))),
            }
            if replay is not None:
                values["replay"] = replay.write(work.input / f"replay{suffix}", self.property)
                if _has(template, "previous"):
                    values["previous"] = self._placed_model(work)
            run = self._run(fill(template, values), work, self.settings.fit_timeout)
            if run.failed:
                raise RuntimeError(f"{name}: {run.argv[0]} {run.ending}")
            if _has(template, "model"):
                self._model = self._take_model(Path(values["model"]), run)
        self._training = {"command": name, "exit_code": run.exit_code, "programs": program_hashes(template)}
        if progress is not None:
            progress(1, 1, name)

    def _take_model(self, path: Path, run: Run) -> _Model:
        """Return what a training run wrote, a file or folder."""
        files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
        size = sum(file.stat().st_size for file in files) / 1e6
        if not files:
            raise RuntimeError(f"{run.argv[0]} wrote no model to {{model}}; it {run.ending}")
        sha256 = file_hash(path)
        if size <= self.settings.max_model_mb:
            return _Model(sha256, files={file.relative_to(path).as_posix(): file.read_bytes() for file in files})
        if self.settings.model_folder is None:
            raise RuntimeError(
                f"the model of {size:.0f} MB is above max_model_mb = {self.settings.max_model_mb:g}; raise it, or give "
                "model_folder, where larger ones are kept"
            )
        kept = Path(self.settings.model_folder).expanduser().absolute() / sha256 / path.name
        if not kept.exists() or file_hash(kept) != sha256:
            partial = kept.parent.with_name(f"{sha256}.{os.getpid()}")  # a kill leaves no half model under the name
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            copy = shutil.copytree if path.is_dir() else shutil.copy2
            copy(path, partial / path.name)
            shutil.rmtree(kept.parent, ignore_errors=True)
            with suppress(OSError):  # another worker was first
                partial.rename(kept.parent)
        return _Model(sha256, path=str(kept))

    def sample(self, n: int, condition: Condition, *, seed: int = 0, progress: Progress | None = None) -> list[Sample]:
        """Return up to ``n`` of the crystals that the program wrote, in its order; call it again if they are too few.

        Raises
        ------
        RuntimeError
            If no call ended well and none left a crystal, or the generator was not fitted.
        ValueError
            If the condition targets an unknown property, or the program cannot be started.
        """
        self._fitted()
        self._need_permission()
        if set(condition.targets) != {self.property}:
            raise ValueError(
                f"the condition targets {sorted(condition.targets)}; this generator was fitted to {self.property!r}"
            )
        started = time.perf_counter()
        taken = _Taken(n, condition, self.property)
        calls: list[dict[str, Any]] = []
        runs: list[Run] = []
        for call in range(self.settings.attempts):
            if len(taken.samples) >= n:
                break
            before = len(taken.samples)
            call_seed = seed if call == 0 else _other_seed(seed, call)
            run = self._sample_once(taken, condition, seed, call, call_seed)
            runs.append(run)
            calls.append(
                {
                    "argv": run.argv,
                    "seed": call_seed,
                    "exit_code": run.exit_code,
                    "timed_out": run.timed_out,
                    "seconds": run.seconds,
                    "crystals": len(taken.samples) - before,
                    "tail": run.tail if run.failed or len(taken.samples) < n else "",
                }
            )
            if progress is not None:
                progress(len(taken.samples), n, "sampling")
        self.last_statistics = {
            "wanted": n,
            "accepted": len(taken.samples),
            "draws": taken.read,
            "rejected": dict(sorted(taken.rejected.items())),
            "unreadable": taken.unreadable,
            "partial": bool(taken.samples) and any(run.failed for run in runs),
            "calls": calls,
            "programs": program_hashes(self.settings.sample),
            "model_sha256": self._model.sha256 if self._model else None,
            "training": self._training,
            "seconds": time.perf_counter() - started,
        }
        if runs and not taken.samples and all(run.failed for run in runs):
            raise RuntimeError(f"sample: no crystal in {len(runs)} calls; {runs[-1].argv[0]} {runs[-1].ending}")
        return taken.samples

    def _sample_once(self, taken: _Taken, condition: Condition, seed: int, call: int, call_seed: int) -> Run:
        """Run the program once and take the crystals that it wrote, whatever became of it."""
        crystals = self._fitted()
        n = taken.wanted - len(taken.samples)
        with TemporaryDirectory(prefix="inv_design_", ignore_cleanup_errors=True) as temporary:
            work = _Work(Path(temporary))
            result = work.output / self.settings.result
            result.parent.mkdir(parents=True, exist_ok=True)
            if self.settings.output == "cif-dir":
                result.mkdir(exist_ok=True)
            wanted = condition.to_dict() | {"n": n, "seed": call_seed}
            (work.input / "condition.json").write_text(json.dumps(wanted, indent=1) + "\n")
            allowed = condition.elements if condition.elements is not None else crystals.elements
            values: dict[str, Any] = {
                "n": n,
                "seed": call_seed,
                "target": float(condition.targets[self.property]),
                "property": self.property,
                "output": result,
                "folder": work.output,
                "elements": ",".join(sorted(allowed - condition.exclude_elements)),
                "exclude": ",".join(sorted(condition.exclude_elements)),
                "max_sites": condition.max_sites or 0,
                "condition": work.input / "condition.json",
            }
            if _has(self.settings.sample, "input"):
                path = work.input / f"crystals{INPUTS[self.settings.input]}"
                values["input"] = crystals.write(path, self.property)
            if _has(self.settings.sample, "model"):
                values["model"] = self._placed_model(work)
            run = self._run(fill(self.settings.sample, values), work, self.settings.timeout)
            for item in _read_results(result, self.settings.output):
                if len(taken.samples) == taken.wanted:
                    break
                taken.take(item, seed, {"generator": self.name, "call": call}, work.output)
        return run

    def _run(self, argv: list[str], work: _Work, timeout: float) -> Run:
        folder = Path(self.settings.directory).expanduser() if self.settings.directory else work.scratch
        if not folder.is_dir():
            raise ValueError(f"directory = {self.settings.directory!r} is no folder; check the path")
        return run_program(argv, folder=folder, timeout=timeout, environment=self.settings.environment)

    def _placed_model(self, work: _Work) -> Path:
        if self._model is None:
            raise RuntimeError("this generator has no model yet; call fit")
        return self._model.place(work.model / self.settings.model_name)

    def _fitted(self) -> _Crystals:
        if self._crystals is None:
            raise RuntimeError("this generator is not fitted; call fit or load a file")
        return self._crystals

    def _need_permission(self) -> None:
        if self._loaded and not is_allowed(self._permission()):
            raise RuntimeError(
                f"this model file runs the program {self.settings.sample[0]!r}, which nobody has set up with this "
                f"model on this account; if you trust the file, set {ALLOW}=1"
            )

    def _permission(self) -> dict[str, Any]:
        """Return what was allowed: the commands, and the model that they read, which may be a pickle."""
        return self.settings.commands | {"model_sha256": self._model.sha256 if self._model else None}

    def capabilities(self) -> Capabilities:
        """Return the conditions, ranges and elements of this generator, as its training crystals have them."""
        known = self._crystals
        ranges = {self.property: (float(known.values.min()), float(known.values.max()))} if known else {}
        return Capabilities(
            conditions=(self.property,),
            trainable=self.settings.fit is not None or self.settings.finetune is not None,
            ranges=ranges,
            description=f"A program in its own environment: {Path(self.settings.sample[0]).name}",
            elements=tuple(sorted(known.elements)) if known else (),
        )

    def to_bytes(self) -> bytes:
        """Return settings, training crystals and the program's model (or its path and hash) as one blob."""
        from inv_design.weights import pack

        crystals = self._fitted()
        model = self._model
        files = {} if model is None else model.files
        config = {
            "generator": self.name,
            "settings": asdict(self.settings),
            "property": self.property,
            "training": self._training,
            "model": None if model is None else {"sha256": model.sha256, "path": model.path, "files": sorted(files)},
        }
        tensors = {f"model/{name}": np.frombuffer(content, dtype=np.uint8) for name, content in files.items()}
        return pack(crystals.to_tensors() | tensors, config)

    @classmethod
    def from_bytes(cls, blob: bytes) -> Self:
        """Return the generator of a blob; its program runs only if it was set up on this account (or is allowed).

        Raises
        ------
        ValueError
            If the blob is of another kind, or a model that it refers to is missing or has changed.
        """
        from inv_design.weights import unpack

        tensors, config = unpack(blob)
        if config.get("generator") != cls.name:
            raise ValueError(f"the model file holds a {config.get('generator')!r}, not a {cls.name!r}")
        made = cls(**config["settings"])
        made._loaded = True
        made.property, made._training = config["property"], config["training"]
        made._crystals = _Crystals.from_tensors(tensors)
        if (model := config["model"]) is not None:
            for name in model["files"]:
                if Path(name).is_absolute() or ".." in Path(name).parts:
                    raise ValueError(f"the model file holds {name!r}, which would be written outside its folder")
            files = {name: tensors[f"model/{name}"].tobytes() for name in model["files"]}
            made._model = _Model(model["sha256"], files, model["path"])
            made._model.verify()
        return made


class _Work:
    """The folders of one run, all inside a temporary one."""

    def __init__(self, root: Path) -> None:
        self.input, self.output, self.scratch = root / "input", root / "output", root / "scratch"
        self.model, self.written_model = root / "model", root / "new_model"
        for folder in (self.input, self.output, self.scratch, self.model, self.written_model):
            folder.mkdir()


class _Taken:
    """The crystals that were taken so far, and why others were not."""

    def __init__(self, wanted: int, condition: Condition, property: str) -> None:
        self.wanted, self.condition, self.property = wanted, condition, property
        self.samples: list[Sample] = []
        self.rejected: Counter[str] = Counter()
        self.unreadable: list[str] = []
        self.read = 0
        self._ids: set[str] = set()

    def take(self, item: ReadItem, seed: int, facts: dict[str, Any], folder: Path) -> None:
        """Take a crystal, or count why not; ``folder`` is the part of paths that means nothing afterwards."""
        self.read += 1
        try:
            reason = "unreadable" if item.structure is None else self._reason(item.structure)
            message = item.error or ""
        except Exception as error:  # what symmetry searches raise for absurd cells
            reason, message = "unreadable", f"{item.source}: {type(error).__name__}: {error}"
        if reason is not None:
            self.rejected[reason] += 1
            if reason == "unreadable" and len(self.unreadable) < EXAMPLES:
                self.unreadable.append(message.replace(f"{folder}/", "")[:300])
            return
        assert item.structure is not None
        score = item.properties.get(self.property)
        score = float(score) if isinstance(score, int | float) else None
        facts = facts | {"source": item.source.removeprefix(f"{folder}/")}
        self.samples.append(Sample(item.structure, len(self.samples), self.condition.to_dict(), seed, score, facts))

    def _reason(self, structure: Structure) -> str | None:
        """Return why a crystal is left out, or ``None``."""
        from inv_design.structures.identity import structure_id

        if not self.condition.allows({element.symbol for element in structure.composition}):
            return "elements"
        largest = self.condition.max_sites
        if largest is not None and len(structure) > CELLS * largest:
            return "sites"
        if largest is not None and len(structure) > largest < len(structure.get_primitive_structure()):
            return "sites"
        if (reason := self._shape_reason(structure)) is not None:
            return reason
        identity = structure_id(structure)
        if identity in self._ids:
            return "duplicate"
        self._ids.add(identity)
        return None

    def _shape_reason(self, structure: Structure) -> str | None:
        """Return what of the composition, sites and crystal system asked for the crystal does not keep."""
        from pymatgen.core import Composition

        from inv_design.generators.conditions import crystal_system
        from inv_design.generators.known_crystals import plain_crystal

        wish = self.condition
        formula = structure.composition.reduced_formula
        if wish.composition is not None and formula != Composition(wish.composition).reduced_formula:
            return "composition"
        if wish.sites is not None and len(structure.get_primitive_structure()) != wish.sites:
            return "sites"
        if wish.crystal_system is not None and crystal_system(plain_crystal(structure)) != wish.crystal_system:
            return "crystal system"
        return None


def _has(template: Sequence[str] | None, name: str) -> bool:
    """Return whether a template uses a field."""
    return any(field == name for part in template or () for _, field, _, _ in string.Formatter().parse(part))


def _checked(structures: Sequence[Structure], values: Sequence[float]) -> _Crystals:
    if len(structures) != len(values) or not len(structures):
        raise ValueError(f"{len(structures)} structures and {len(values)} values; equally many, at least one, needed")
    targets = np.array(values, dtype=float)
    if not (np.isfinite(targets) & (targets > 0)).all():
        raise ValueError("every value must be a positive number")
    for structure in structures:
        if not structure.is_ordered:
            raise ValueError(f"{structure.composition.formula} has partially occupied sites; an ordered one is needed")
    return _Crystals(list(structures), targets)


def _other_seed(seed: int, call: int) -> int:
    """Return a seed in [0, 2^31) for a further call."""
    return int.from_bytes(hashlib.sha256(f"{seed}/external/{call}".encode()).digest()[:4], "big") >> 1


def _read_results(path: Path, output: str) -> Iterator[ReadItem]:
    """Yield the crystals of what a program wrote, in order; nothing if it wrote nothing."""
    from inv_design.structures.files import MAX_MEMBER, ReadItem, read_structures

    if output == "cif-dir":
        files = sorted(p for p in path.rglob("*") if p.is_file() and p.name.lower().endswith((".cif", ".cif.gz")))
    else:
        files = [path] if path.exists() else []
    for file in files:
        if output not in ("zip", "tar") and file.stat().st_size > MAX_MEMBER:
            yield ReadItem(None, {}, str(file), f"{file.name} has {file.stat().st_size} bytes; write smaller files")
        else:
            yield from read_structures(file)
