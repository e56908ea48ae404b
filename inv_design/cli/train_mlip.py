"""`train-mlip`: fine-tune a machine-learned potential on a campaign's labels or on frames in files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from inv_design.cli import render
from inv_design.cli.errors import NothingMatched
from inv_design.cli.options import Settings, campaign_options, json_option

if TYPE_CHECKING:
    from fireworks_specs.firetasks.train_mlip import TrainedMlip, TrainingData
    from inv_design.calculators.finetune import FinetuneSettings

COLUMNS = (("energy", "energy (meV/atom)"), ("forces", "forces (meV/Å)"), ("pressure", "pressure (GPa)"),
           ("bulk_modulus", "K (%)"))  # fmt: skip
PARTS = {"train": "learned", "held_out": "held out", "replay": "replay, from parent"}


@click.command("train-mlip")
@click.option(
    "-p", "--parent", default="mace-alloy-small", show_default=True, metavar="M",
    help="Model to start from: a packaged or foundation model, a .safetensors file, or a model id.",
)  # fmt: skip
@click.option(
    "-f", "--frames", "files", multiple=True, metavar="FILE", help="extxyz file of labelled frames; may be repeated."
)
@click.option("--steps", type=click.IntRange(min=1), default=300, show_default=True, help="Training steps at most.")
@click.option(
    "--replay", type=click.IntRange(min=0), default=200, show_default=True,
    help="Frames labelled by the parent that are learned again (0: none).",
)  # fmt: skip
@click.option("--rate", type=float, default=1e-3, show_default=True, help="Largest learning rate.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of every draw.")
@click.option("--name", metavar="NAME", help="Name of the new model.  [default: mlip- and a hash]")
@click.option(
    "--log", type=click.Path(path_type=Path, dir_okay=False), default=Path("train_mlip.jsonl"), show_default=True,
    help="File that the log is appended to, one JSON object a line.",
)  # fmt: skip
@json_option
@campaign_options
@click.pass_obj
def train_mlip(
    settings: Settings,
    *,
    parent: str,
    files: tuple[str, ...],
    steps: int,
    replay: int,
    rate: float,
    seed: int,
    name: str | None,
    log: Path,
) -> None:
    """Fine-tune a machine-learned potential on the labels of a campaign.

    Learns from the stage-III calculations of the campaign's candidates or, with --frames, from extxyz files (energies
    in eV, forces in eV/Å, stresses in eV/Å^3); with both options from both. The new model is a record with its parent,
    and its id is a calculator's name: `elastic --calculator ID`, or stages.mlip.calculator of a campaign. The same data
    and options train once.
    """
    from fireworks_specs.firetasks import train_mlip as training
    from inv_design.calculators.finetune import FinetuneSettings
    from inv_design.cli.database import open_database
    from stores.provenance import provenance

    try:
        chosen = FinetuneSettings(steps=steps, replay=replay, rate=rate, seed=seed)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    open_database(settings)
    data = training_data(settings, files)
    with render.progress("Train", steps) as bar, render.quiet():
        trained = training.train_mlip(
            data, chosen, parent=parent, name=name, log=log, progress=bar, provenance=lambda ids: provenance(inputs=ids)
        )
    if settings.as_json:
        render.json_line(as_record(trained, chosen))
    else:
        show(trained)


def training_data(settings: Settings, files: tuple[str, ...]) -> TrainingData:
    """Return the frames of files, or of the campaign where none is given.

    Raises
    ------
    NothingMatched
        If there is none.
    """
    from builders.mlip_training_set import campaign_frames
    from fireworks_specs.firetasks.train_mlip import TrainingData
    from inv_design.calculators.frames import Frame, read_frames
    from inv_design.cli.database import campaign_name

    frames: list[Frame] = []
    left_out: list[str] = []
    campaign, inputs = None, []
    if files:
        for file in files:
            found, bad = read_frames(file)
            frames += found
            left_out += bad
    if settings.campaign or not files:
        campaign = campaign_name(settings)
        labelled = campaign_frames(campaign)
        frames += labelled.frames
        left_out += labelled.left_out
        inputs = labelled.calculation_ids
    for line in left_out:
        render.say(f"left out: {line}")
    if not frames:
        where = f"campaign {campaign!r} has no stage-III calculation" if campaign else f"{', '.join(files)}: no frame"
        raise NothingMatched(f"{where} to learn from")
    return TrainingData(frames, campaign, inputs, [Path(file).name for file in files], left_out)


def as_record(trained: TrainedMlip, settings: FinetuneSettings) -> dict[str, Any]:
    """Return what ``--json`` writes."""
    model = trained.model
    keys = ("parent_sha256", "frames_sha256", "splits", "campaign", "calculations", "files", "request_id")
    return {
        "model_id": model.model_id,
        "name": model.name,
        "known": trained.known,
        "parent_model_id": model.parent_model_id,
        "sha256": model.sha256,
        "weights": str(trained.path),
        "seed": settings.seed,
        **{key: model.hyperparameters.get(key) for key in keys},
        **{key: dict(model.metrics.get(key) or {}) for key in ("before", "after", "done")},
    }


def show(trained: TrainedMlip) -> None:
    """Print the errors before and after, and how to use the model."""
    model = trained.model
    before, after = model.metrics["before"], model.metrics["after"]
    rows = []
    for part, label in PARTS.items():
        count = before[part]["frames"]
        rows.append((label, count, *(_change(before[part].get(key), after[part].get(key)) for key, _ in COLUMNS)))
    columns = ("errors", "frames", *(title for _, title in COLUMNS))
    render.table(rows, columns, right=columns[1:])
    if not before["held_out"]["frames"]:
        render.say("nothing was held out: give labels of four chemical systems or more")
    done = model.metrics["done"]
    what = "is there already" if trained.known else f"took {done['steps_taken']} steps, kept step {done['best_step']}"
    render.say(f"model {model.model_id} ({model.name}) from {model.parent_model_id} {what}")
    render.say(f"use it: inv-design elastic --calculator {model.model_id} FILE")


def _change(before: float | None, after: float | None) -> str:
    return "-" if before is None or after is None else f"{before:.1f} -> {after:.1f}"
