"""Calculator names: what a campaign may write under ``calculator``, and the protocol that identifies its numbers.

=====================  =========================================================================================
name                   calculator
=====================  =========================================================================================
``mace-alloy-small``   the packaged MACE of 60 metals (``calculators/weights``), loaded without a pickle
``PATH.safetensors``   a network in the same format, such as one written by ``python -m inv_design.calculators.convert``
``m-3f2a...``          a model of the database, such as ``train-mlip`` makes, from this machine's cache of weights
``mace-mp-0``, ...     a foundation model, downloaded by mace-torch; a pickle, read only if its SHA-256 is trusted
``chgnet``             the CHGNet that the chgnet package carries
``emt``                ASE's effective medium theory (Al, Cu, Ag, Au, Ni, Pd, Pt), for tests and demonstrations
``gpaw``               DFT; the options are GPAW's own
``package.module:f``   anything importable: ``f(**options)`` must return an ASE calculator
=====================  =========================================================================================
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import io
import json
import os
import re
import tempfile
import warnings
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inv_design.calculators.quiet import quiet

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator

PACKAGED = ("mace-alloy-small",)
# names of mace-torch's own releases (mace.calculators.mace_mp), in the spelling of this project
FOUNDATION = {
    "mace-mp-0": "medium",
    "mace-mp-0-small": "small",
    "mace-mp-0-large": "large",
    "mace-mp-0b-small": "small-0b",
    "mace-mp-0b": "medium-0b",
    "mace-mp-0b2-small": "small-0b2",
    "mace-mp-0b2": "medium-0b2",
    "mace-mp-0b2-large": "large-0b2",
    "mace-mp-0b3": "medium-0b3",
    "mace-mpa-0": "medium-mpa-0",
    "mace-omat-0": "medium-omat-0",
    "mace-omat-0-small": "small-omat-0",
    "mace-matpes-pbe-0": "mace-matpes-pbe-0",
    "mace-matpes-r2scan-0": "mace-matpes-r2scan-0",
}
NAMES = (*PACKAGED, *FOUNDATION, "chgnet", "emt", "gpaw")

DEVICE_VARIABLE = "INV_DESIGN_DEVICE"
"""``auto``, ``cpu`` or ``cuda``: where networks run, unless a calculator's ``device`` says it."""

TRUST_VARIABLE = "INV_DESIGN_TRUST_SHA256"
"""SHA-256 of releases that may be unpickled, separated by commas: unpickling runs what code is in them."""

MODEL_ID = re.compile(r"m-[0-9a-f]{20}")

_loaded: dict[str, Calculator] = {}


def get_calculator(name: str, **options: Any) -> Calculator:
    """Return the ASE calculator of a name; the same name and options give the same object within a process.

    Parameters
    ----------
    name
        One of ``NAMES``, a path to ``.safetensors`` weights, or an import path ``package.module:callable``.
    options
        For MACE networks ``dtype`` ("float64", the default, or "float32") and ``device`` (:func:`torch_device`); for
        the others the keyword arguments of the calculator itself. ``device`` changes numbers only by rounding, and is
        no part of the protocol.

    Raises
    ------
    ValueError
        If the name is unknown, a pickled ``.model`` file is given (it is never executed), or a foundation model's
        release is not trusted by ``$INV_DESIGN_TRUST_SHA256``.
    FileNotFoundError
        If the weights do not exist or cannot be downloaded.
    ImportError
        If the package behind the name is not installed.
    """
    key = json.dumps([name, options], sort_keys=True, default=repr)
    if key not in _loaded:
        _loaded[key] = _make(name, options)
    return _loaded[key]


def torch_device(wanted: str = "auto") -> str:
    """Return the torch device that a choice means on this machine: ``cpu``, ``cuda`` or ``cuda:N``.

    ``auto`` is ``$INV_DESIGN_DEVICE`` where that is set, else CUDA where torch finds a device, else the CPU. It is a
    matter of the worker, not of the campaign: the nodes of one differ.

    Raises
    ------
    ValueError
        If there is no such device; it names the variable if the choice came from there.
    """
    given = os.environ.get(DEVICE_VARIABLE, "") if wanted == "auto" else ""
    name, text = (given, f"{DEVICE_VARIABLE} is {given!r}") if given else (wanted, f"device {wanted!r}")
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise ValueError(f"{text}; use auto, cpu or cuda")
    if name == "cpu":
        return name
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return "cuda" if count else "cpu"
    if int(name.partition(":")[2] or 0) >= count:
        raise ValueError(f"{text}, but torch finds {count} CUDA devices on this machine; use auto or cpu")
    return name


def runs_on_gpu(name: str) -> bool:
    """Return whether this process would evaluate a calculator's batches on a GPU: one process then serves them all."""
    return supports_batches(name) and torch_device() != "cpu"


def supports_batches(name: str) -> bool:
    """Return whether a name stands for a calculator that evaluates many crystals in one pass; nothing is loaded."""
    return name in FOUNDATION or _weights_path(name) is not None


def calculator_protocol(name: str, **options: Any) -> dict[str, Any]:
    """Return everything that determines the numbers of a calculator, JSON-able and the same on every machine.

    Keys: ``calculator``, ``code``, ``version``, ``weights_sha256`` (``None`` without weights) and ``settings``.

    Raises
    ------
    ValueError, FileNotFoundError, ImportError
        As :func:`get_calculator`; weights are read, but no network is built.
    """
    settings = {key: value for key, value in options.items() if key != "device"}
    weights: str | None = None
    if (path := _weights_path(name)) is not None:
        code, settings = "mace-torch", {"dtype": "float64", **settings}
        weights = sha256_of_file(path)
        if name not in PACKAGED and not MODEL_ID.fullmatch(name):
            name = path.name  # a path of one machine is no identity; the weights' hash is
    elif name in FOUNDATION:
        code, settings = "mace-torch", {"dtype": "float64", "model": FOUNDATION[name], **settings}
        weights = sha256_of_file(_foundation_path(name))
    elif name == "chgnet":
        code, weights = "chgnet", sha256_of_file(_chgnet_path(settings.get("model_name")))
    elif name in ("emt", "gpaw"):
        code = {"emt": "ase", "gpaw": "gpaw"}[name]
    else:
        module, _ = _import_target(name)
        code = module.__name__.split(".")[0]
        source = getattr(module, "__file__", None)
        weights = None
        if source is not None:
            settings = {**settings, "source_sha256": hashlib.sha256(Path(source).read_bytes()).hexdigest()}
    return {
        "calculator": name,
        "code": code,
        "version": _version(code),
        "weights_sha256": weights,
        "settings": json.loads(json.dumps(settings, sort_keys=True, default=repr)),
    }


def network_weights(name: str) -> bytes:
    """Return the safetensors bytes of a MACE network: packaged, in a file, of the cache, or a foundation model.

    Raises
    ------
    ValueError, FileNotFoundError, ImportError
        As :func:`get_calculator`; also if the name is a calculator's without a MACE network.
    """
    if (path := _weights_path(name)) is not None:
        return path.read_bytes()
    if name not in FOUNDATION:
        known = ", ".join((*PACKAGED, *FOUNDATION))
        raise ValueError(f"{name!r} is no MACE network; give one of {known}, a .safetensors file or a model id")
    from inv_design.calculators.convert import convert

    with tempfile.TemporaryDirectory() as folder:  # a release from its own page, as get_calculator reads it
        release, converted = Path(folder) / f"{name}.model", Path(folder) / f"{name}.safetensors"
        release.write_bytes(_trusted_release(name))
        convert(release, converted)
        return converted.read_bytes()


def cached_model(model_id: str) -> Path:
    """Return where this machine keeps the weights of a model of the database, below ``$XDG_CACHE_HOME``."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "inv_design" / "models" / f"{model_id}.safetensors"


def cache_model(model_id: str, blob: bytes) -> Path:
    """Keep a model's weights on this machine, so that its id is a calculator's name here; return the file."""
    path = cached_model(model_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    partial.write_bytes(blob)
    partial.replace(path)  # in one move, for several workers may do it at a time
    return path


def _make(name: str, options: dict[str, Any]) -> Calculator:
    if (path := _weights_path(name)) is not None:
        return _mace_from_safetensors(path, **options)
    if name in FOUNDATION:
        return _mace_foundation(name, **options)
    if name == "chgnet":
        return _chgnet(**options)
    if name == "emt":
        from ase.calculators.emt import EMT

        return EMT(**options)
    if name == "gpaw":
        if "mode" not in options:  # GPAW's default is a grid in real space, without stress
            raise ValueError("calculator 'gpaw' needs its mode and k points; for labels set stages.dft.backend: gpaw")
        try:
            from gpaw import GPAW
        except ImportError as error:
            raise ImportError(f"calculator 'gpaw' needs GPAW ({error}); pip install 'inv-design[gpaw]'") from error
        made: Any = GPAW(**options)  # its classes are its own
        return made
    _, make = _import_target(name)
    calculator = make(**options)
    if not hasattr(calculator, "get_property"):
        raise ValueError(f"{name!r} returned {type(calculator).__name__}; it must return an ASE calculator")
    return calculator


def _weights_path(name: str) -> Path | None:
    """Return the safetensors file behind a name, or None if the name is not one of weights."""
    if name in PACKAGED:
        path = Path(str(resources.files("inv_design.calculators"))) / "weights" / name / "model.safetensors"
    elif MODEL_ID.fullmatch(name):
        if not (path := cached_model(name)).is_file():
            raise FileNotFoundError(
                f"the weights of model {name} are not on this machine; the `inv-design train-mlip` that made it, "
                "called again here, gets them from the database"
            )
    elif name.endswith((".model", ".pt", ".pth", ".pkl")):
        raise ValueError(
            f"{name!r} is a pickle, which runs code when it is read; if you trust it, convert it once: "
            f"python -m inv_design.calculators.convert {name} {Path(name).stem}.safetensors"
        )
    elif name.endswith(".safetensors") or (Path(name) / "model.safetensors").is_file():
        path = Path(name) if name.endswith(".safetensors") else Path(name) / "model.safetensors"
    else:
        return None
    if not path.is_file():
        raise FileNotFoundError(
            f"no weights at {str(path)!r}; give a path to a .safetensors file or one of {', '.join(NAMES)}"
        )
    return path


def _mace_from_safetensors(path: Path, *, dtype: str = "float64", device: str = "auto") -> Calculator:
    from inv_design.calculators.mace_calculator import MaceNetworkCalculator
    from inv_design.calculators.mace_model import MaceEvaluator, load_network
    from inv_design.weights import unpack

    _check_dtype(dtype)
    try:
        tensors, config = unpack(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is {error}") from error
    return MaceNetworkCalculator(MaceEvaluator(load_network(tensors, config, dtype).to(torch_device(device))))


def _mace_foundation(name: str, *, dtype: str = "float64", device: str = "auto") -> Calculator:
    import torch

    from inv_design.calculators.mace_calculator import MaceNetworkCalculator
    from inv_design.calculators.mace_model import MaceEvaluator, unsafe_load_confined

    _check_dtype(dtype)
    release = io.BytesIO(_trusted_release(name))
    with unsafe_load_confined():  # mace-torch's releases are pickles; the user trusts the bytes of this one
        network = torch.load(release, map_location=torch_device(device), weights_only=False)
    return MaceNetworkCalculator(MaceEvaluator(network.to(getattr(torch, dtype)).eval()))


def _trusted_release(name: str) -> bytes:
    """Return the file of a foundation model; ValueError with the cure unless these very bytes are trusted."""
    path = _foundation_path(name)
    blob = path.read_bytes()
    digest = hashlib.sha256(blob).hexdigest()
    if digest not in re.split(r"[\s,]+", os.environ.get(TRUST_VARIABLE, "").lower()):
        raise ValueError(
            f"calculator {name!r} is released as a pickle, which runs code when it is read; if you trust {path}, set "
            f"{TRUST_VARIABLE}={digest}, or convert it once with python -m inv_design.calculators.convert and give the "
            "path of the result"
        )
    return blob


def _foundation_path(name: str) -> Path:
    """Return the file of a foundation model, downloaded by mace-torch if it is not in its cache yet."""
    from inv_design.calculators.mace_model import import_mace

    models = import_mace("mace.calculators.foundations_models")
    try:
        with quiet():
            return Path(models.download_mace_mp_checkpoint(FOUNDATION[name]))
    except Exception as error:  # urllib, ssl, RuntimeError: whatever the download raises
        raise FileNotFoundError(_fetch_elsewhere(name, models.mace_mp_urls[FOUNDATION[name]], error)) from error


def _fetch_elsewhere(name: str, url: str, error: Exception) -> str:
    """Return what to do where weights cannot be downloaded, such as on a compute node."""
    from inv_design.calculators.mace_model import import_mace

    # named as download_mace_mp_checkpoint names it
    file = "".join(c for c in url.rsplit("/", 1)[-1] if c.isalnum() or c == "_")
    place = import_mace("mace.tools.utils").get_cache_dir() / file
    return (
        f"calculator {name!r}: its weights could not be downloaded ({error}); fetch {url} where there is a network, "
        f"and put it here as {place}, or convert it once (python -m inv_design.calculators.convert FILE.model "
        f"{name}.safetensors) and give the path of the .safetensors file as the calculator; 'mace-alloy-small' needs "
        "no download"
    )


def _chgnet(**options: Any) -> Calculator:
    try:
        from chgnet.model.dynamics import CHGNetCalculator
        from chgnet.model.model import CHGNet
    except ImportError as error:
        raise ImportError(f"calculator 'chgnet' cannot be imported ({error}); pip install chgnet") from error
    model_name = options.pop("model_name", "0.3.0")
    # it evaluates crystals one by one, which for a few atoms is faster on a CPU
    device = torch_device(options.pop("device", os.environ.get(DEVICE_VARIABLE) or "cpu"))
    # CHGNet warns of a conversion of its own in every process
    warnings.filterwarnings("ignore", message="Converting a tensor with requires_grad", module=r"chgnet\.")
    with quiet():
        model = CHGNet.load(model_name=model_name, use_device=device, verbose=False)
        return CHGNetCalculator(model=model, use_device=device, **{"on_isolated_atoms": "ignore", **options})


def _chgnet_path(model_name: str | None) -> Path:
    """Return the weights that the chgnet package carries."""
    try:
        import chgnet
    except ImportError as error:
        raise ImportError(f"calculator 'chgnet' cannot be imported ({error}); pip install chgnet") from error
    folder = Path(chgnet.__file__).parent / "pretrained" / (model_name or "0.3.0")
    if not (files := sorted(folder.glob("*.tar"))):
        raise FileNotFoundError(f"chgnet carries no weights {model_name!r}; use model_name='0.3.0'")
    return files[0]


def _import_target(name: str) -> tuple[Any, Any]:
    """Return (module, callable) of ``package.module:callable``."""
    module_name, colon, attribute = name.partition(":")
    if not colon:
        raise ValueError(
            f"unknown calculator {name!r}; use one of {', '.join(NAMES)}, "
            "a path to .safetensors weights, or 'package.module:callable'"
        )
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ImportError(
            f"calculator {name!r}: cannot import {module_name!r} ({error}); install it or correct the name"
        ) from error
    make = getattr(module, attribute, None)
    if not callable(make):
        raise ValueError(f"calculator {name!r}: {module_name!r} has no callable {attribute!r}")
    return module, make


def _check_dtype(dtype: str) -> None:
    if dtype not in ("float64", "float32"):
        raise ValueError(f"unknown dtype {dtype!r}; use 'float64' or 'float32'")


def _version(code: str) -> str | None:
    distributions = importlib.metadata.packages_distributions().get(code, [code])
    try:
        return importlib.metadata.version(distributions[0])
    except importlib.metadata.PackageNotFoundError:
        return None


@cache
def _sha256_of(path: Path, _modified: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file, read once as long as it does not change."""
    return _sha256_of(path, path.stat().st_mtime_ns)
