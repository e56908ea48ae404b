"""Train a machine-learned potential: stage-III calculations of a campaign in, one ``models`` document out."""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fireworks import Firework, Workflow, explicit_serialize

from fireworks_specs.checkpoints import checkpointed
from fireworks_specs.firetasks.base import CampaignTask
from fireworks_specs.progress import report

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from inv_design.calculators.finetune import Finetuned, FinetuneSettings
    from inv_design.calculators.frames import Frame
    from stores.documents.model import Model

PARENT = "mace-alloy-small"
LOG_FILE = "train_mlip.jsonl"
LEFT_OUT = 50
"""Lines of what was left out that a document keeps; the log has all."""


@dataclass(frozen=True)
class TrainingData:
    """Frames to learn from, and where they came from.

    Attributes
    ----------
    campaign
        The campaign whose calculations they are, if any.
    inputs
        Ids of the calculations.
    files
        Names of the files that frames were read from.
    left_out
        One line for each calculation or entry that gave no frame.
    """

    frames: Sequence[Frame]
    campaign: str | None = None
    inputs: Sequence[str] = ()
    files: Sequence[str] = ()
    left_out: Sequence[str] = field(default_factory=list)


@dataclass(frozen=True)
class TrainedMlip:
    """The model of a training, whether it was there already, and the file in which its weights lie here."""

    model: Model
    known: bool
    path: Path


def train_mlip(
    data: TrainingData,
    settings: FinetuneSettings,
    *,
    parent: str = PARENT,
    name: str | None = None,
    log: Path | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    provenance: Callable[[list[str]], dict[str, Any]],
) -> TrainedMlip:
    """Fine-tune ``parent`` on frames and insert the model; the same frames, parent, settings and code train once.

    A training that was stopped goes on from its checkpoint in the database; one that another worker is at is awaited.

    Parameters
    ----------
    parent
        A packaged or foundation model's name, a ``.safetensors`` file, or the id of a model of the database.
    name
        Of the new model; made of the request's hash by default.
    log
        File that the log is appended to, one JSON object a line.
    provenance
        Called with the ids of the documents that a document is made from.

    Raises
    ------
    ValueError, LookupError, FileNotFoundError
        If there is no such parent, or the frames cannot be learned from.
    RuntimeError
        If what ran is not what was asked; nothing is inserted then.
    """
    from inv_design.calculators.finetune import finetune
    from inv_design.calculators.registry import cache_model
    from stores.claims import Claims

    found = find_parent(parent)
    request = request_id(data.frames, found[0], settings, name)
    name = name or f"mlip-{request.removeprefix('q-')[:8]}"
    made: Model | None = None

    def lacking(keys: list[str]) -> list[str]:
        return keys if find_trained(request) is None else []

    with Claims(campaign=data.campaign, stage="train") as claims, _log_lines(log) as write:
        for keys in claims.shares([f"train-mlip/{request}"], key=str, lacking=lacking):
            with checkpointed(keys[0], request, claims) as checkpoint:
                origin = {"request_id": request, "parent": found[1], **_origin(data), "left_out": list(data.left_out)}
                write({"event": "data", **origin})
                result = finetune(
                    data.frames, found[0], settings, name=name, progress=progress, log=write, checkpoint=checkpoint
                )
                made = _insert(
                    data, settings, result, request=request, name=name, parent=(parent, *found), provenance=provenance
                )
                path = cache_model(made.model_id, result.blob)
    if made is not None:
        return TrainedMlip(made, False, path)
    trained = find_trained(request)
    assert trained is not None  # else it was lacking
    return TrainedMlip(trained, True, cache_model(trained.model_id, trained.load()))


def _insert(
    data: TrainingData,
    settings: FinetuneSettings,
    result: Finetuned,
    *,
    request: str,
    name: str,
    parent: tuple[str, bytes, str, str | None],
    provenance: Callable[[list[str]], dict[str, Any]],
) -> Model:
    """Insert a fine-tuned model, and its parent (asked for as, weights, label, model id) if that has no document."""
    from inv_design.calculators.registry import PACKAGED
    from stores.records import insert_model

    asked, blob, label, parent_id = parent
    if parent_id is None:
        origin = {"packaged": asked in PACKAGED, "source": label}
        document = insert_model(blob, kind="mlip", name=label, hyperparameters=origin, provenance=provenance([]))
        parent_id = document.model_id
    left_out = [*data.left_out, *result.left_out]
    return insert_model(
        result.blob,
        kind="mlip",
        name=name,
        parent_model_id=parent_id,
        campaign=data.campaign,
        seed=settings.seed,
        hyperparameters={
            **result.asked,
            "request_id": request,
            **_origin(data),
            "splits": result.splits,
            "left_out": left_out[:LEFT_OUT],
            "n_left_out": len(left_out),
        },
        metrics={**result.errors, "done": result.done},
        provenance=provenance([*data.inputs, parent_id]),
    )


def find_parent(name: str) -> tuple[bytes, str, str | None]:
    """Return (weights, name for records, model id if it is a model of the database).

    Raises
    ------
    ValueError, LookupError, FileNotFoundError
        If there is no such network; a pickle is refused with the command that converts it.
    """
    from inv_design.calculators.registry import MODEL_ID, network_weights
    from stores.documents import Model

    if not MODEL_ID.fullmatch(name):
        label = Path(name).name if name.endswith(".safetensors") else name
        return network_weights(name), label, None
    document = Model.objects(model_id=name).first()
    if document is None:
        known = Model.objects(kind="mlip").limit(20).scalar("model_id")
        hint = f"it has {', '.join(known)}" if known else "it has no mlip yet"
        raise LookupError(f"the database has no model {name!r} ({hint})")
    if document.kind != "mlip":
        raise ValueError(f"model {name} is a {document.kind}; the parent must be an mlip")
    return document.load(), document.name, name


def request_id(frames: Sequence[Frame], parent: bytes, settings: FinetuneSettings, name: str | None = None) -> str:
    """Return ``"q-"`` and a hash of everything that determines a training: frames, parent, settings, name and code."""
    from inv_design import __version__
    from inv_design.calculators.frames import frames_digest
    from inv_design.weights import sha256
    from stores.protocol import content_id

    content: dict[str, Any] = {"code": "inv_design", "version": __version__, "task": "train-mlip", "name": name}
    content |= {"frames": frames_digest(frames), "parent": sha256(parent), "settings": asdict(settings)}
    return content_id("q", content)


def find_trained(request: str) -> Model | None:
    """Return the model that a request has led to, or ``None``."""
    from stores.documents import Model

    found: Model | None = Model.objects(kind="mlip", hyperparameters__request_id=request).first()
    return found


def fetch_calculator(name: str) -> None:
    """Put the weights of a calculator that is a model of the database onto this machine; other names need nothing.

    Raises
    ------
    LookupError, ValueError
        If the database has no such model, or it is no potential.
    """
    from inv_design.calculators.registry import MODEL_ID, cache_model, cached_model

    if MODEL_ID.fullmatch(name) and not cached_model(name).is_file():
        cache_model(name, find_parent(name)[0])


@explicit_serialize
class TrainMlipTask(CampaignTask):
    """Fine-tune a potential on a campaign's stage-III calculations so far; nothing if that model is there already.

    Optional parameters: ``parent``, ``name``, and ``settings``, the fields of ``FinetuneSettings``. The log goes to
    ``train_mlip.jsonl`` in the firework's directory.
    """

    required_params = ("campaign",)
    optional_params = ("parent", "name", "settings")

    def work(self) -> None:
        """Insert the model unless it is there."""
        from builders.mlip_training_set import campaign_frames
        from fireworks_specs.firetasks.base import campaign_config
        from inv_design.calculators.finetune import FinetuneSettings

        campaign = self["campaign"]
        campaign_config(campaign)  # names the campaigns that there are
        found = campaign_frames(campaign)
        if not found.frames:
            raise ValueError(
                f"campaign {campaign!r} has no calculation to learn from: {'; '.join(found.left_out[:3]) or 'none'}"
            )
        train_mlip(
            TrainingData(found.frames, campaign, found.calculation_ids, left_out=found.left_out),
            FinetuneSettings(**(self.get("settings") or {})),
            parent=self.get("parent") or PARENT,
            name=self.get("name"),
            log=Path(LOG_FILE),
            progress=lambda done, total, text: report(f"train mlip {text}", done, total),
            provenance=self.provenance,
        )


def train_mlip_workflow(
    campaign: str, *, parent: str = PARENT, name: str | None = None, settings: Mapping[str, Any] | None = None
) -> Workflow:
    """Return a workflow of one firework that trains a potential from a campaign's records; `lpad add` takes its file.

    Raises
    ------
    TypeError, ValueError
        If a setting is unknown or has an impossible value.
    """
    from inv_design.calculators.finetune import FinetuneSettings

    FinetuneSettings(**(settings or {}))
    task = TrainMlipTask(campaign=campaign, parent=parent, settings=dict(settings or {}))
    if name is not None:
        task["name"] = name
    title = f"{campaign} train-mlip"
    spec = {"_add_launchpad_and_fw_id": True, "_category": "train", "campaign": campaign, "role": "train-mlip"}
    return Workflow([Firework([task], spec=spec, name=title)], name=title, metadata={"campaign": campaign})


def _origin(data: TrainingData) -> dict[str, Any]:
    return {"campaign": data.campaign, "calculations": len(data.inputs), "files": list(data.files)}


@contextlib.contextmanager
def _log_lines(path: Path | None) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Append one JSON object a line to a file, each at once, so that an interrupted training leaves its log."""
    if path is None:
        yield lambda _: None
        return
    with path.open("a") as file:
        yield lambda entry: print(json.dumps(entry), file=file, flush=True)
