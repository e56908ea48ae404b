"""Does the loop learn? The same labelling budget for this loop, for it without retraining, and for two baselines.

easy    rounds 0-2 at 350 GPa from all packaged alloys, 72 of them above 250 GPa.
hard    rounds 0-4 at 350 GPa with every alloy above 250 GPa hidden from the start: no model that proposes, predicts or
        chooses has seen them (the packaged weights have, so that everything is trained here). What all arms share
        has: the tabulated elemental properties are public knowledge, and the potentials of stages II and III learned
        from Materials Project calculations, MACE alloy-small from PBE labels of stiff alloys too.
        Harder still is --hidden-above 150, where some 16 alloys with Re, Os or Ir are left to learn from instead of 52.

Arms: con_cdvae (this loop), no_retraining (the same, all rounds with the models of round 0), substitution (ranked by a
composition model, with the retrained predictor), random (substitution unranked, no predictor, labels drawn at random
from what stage I's geometry and stage II's stability let pass), con_cdvae_acquisition (this loop, choosing by the
probability of a hit instead of the paper's thresholds).

A hit is a label by CHGNet's E(V) within 10 % of the target whose relaxation converged, Born stable by stage II, and
new: no crystal of the start set and no earlier hit (StructureMatcher). Judges of crystals as generated: the round's
guiding CGCNN, as Li et al. 2025 do, and CHGNet's E(V) after relaxation, which guided nothing.

    OMP_NUM_THREADS=1 python benchmarks/active_learning.py --mode hard [--arms con_cdvae substitution] [--seeds 0 1 2]

Every row is stored when it is done; with --cache a killed run goes on where it stopped, and the models of round 0 are
trained once per mode and seed. Use a new folder for another version of the code. Several processes may share both the
folder and the result file if each has seeds or arms of its own.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shlex
import shutil
import tempfile
import time
import warnings
from collections import defaultdict
from datetime import datetime
from functools import cache
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from pymatgen.core import Structure

    from inv_design.config import CampaignConfig
    from stores.connection import Connection

    Row = dict[str, Any]

RESULTS = Path(__file__).parent / "results"
TARGET, TOLERANCE = 350.0, 0.10
ARMS = ("con_cdvae", "no_retraining", "substitution", "random", "con_cdvae_acquisition")
BASELINES = ("random", "substitution", "no_retraining")
MODES: dict[str, dict[str, Any]] = {
    "easy": {
        "hidden_above": 500.0,
        "rounds": 2,
        "samples": 60,
        "budget": 15,
        "judged": 20,
        "output": RESULTS / "active_learning.json",
    },
    "hard": {
        "hidden_above": 250.0,
        "rounds": 4,
        "samples": 60,
        "budget": 12,
        "judged": 8,
        "output": RESULTS / "hard_mode.json",
    },
}
SETTINGS = ("mode", "hidden_above", "rounds", "samples", "relaxed", "budget", "judged", "effort")
ANYTHING = 1e6
"""A tolerance that lets every value pass."""


def main() -> None:
    """Run arms and seeds, print a line per round and the tables, store every row when it is done."""
    options = parse_options()
    warnings.filterwarnings("ignore")
    import torch

    torch.set_num_threads(1)
    rows = stored_rows(options)
    with folder_of(options.cache) as folder:
        for seed in options.seeds:
            for arm in options.arms:
                for row in run_arm(arm, seed, options, folder, rows):
                    store(row, options)
                    print(render(row), flush=True)
    print_tables(stored_rows(options), options)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", choices=sorted(MODES), default="easy")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--hidden-above", type=float, help="GPa; alloys above are hidden from the start")
    parser.add_argument("--rounds", type=int, help="rounds after round 0")
    parser.add_argument("--samples", type=int, help="crystals generated per round")
    parser.add_argument(
        "--relaxed", type=int, help="of them relaxed in stage II, best first (default: thrice the budget)"
    )
    parser.add_argument("--budget", type=int, help="labels per round")
    parser.add_argument("--judged", type=int, help="crystals of a round, as generated, that both judges see")
    parser.add_argument("--effort", type=float, default=1.0, help="share of the training steps (below 1: a rehearsal)")
    parser.add_argument("--cache", type=Path, help="folder of databases and models (default: a temporary one)")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    for name, value in MODES[options.mode].items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if options.relaxed is None:
        options.relaxed = 3 * options.budget
    return options


def folder_of(path: Path | None) -> Any:
    """Return a context that gives the folder of databases, made if need be, removed afterwards if nobody named it."""
    from contextlib import nullcontext

    if path is None:
        return tempfile.TemporaryDirectory()
    path.mkdir(parents=True, exist_ok=True)
    return nullcontext(str(path))


# ---- campaigns ----


def campaign(arm: str, seed: int, options: argparse.Namespace) -> CampaignConfig:
    """Return the campaign of an arm: the default settings but for what the arm is, and the budgets."""
    from inv_design.config import CampaignConfig

    hidden = options.hidden_above < 500.0
    generator: dict[str, Any] = {"name": "con_cdvae", "samples_per_round": options.samples, "chunk": options.samples}
    generator |= {"budget": options.effort, "finetune_budget": options.effort}
    predictor: dict[str, Any] = {"acquisition": "threshold"}
    if options.effort != 1.0:
        predictor |= {"epochs": max(1, round(40 * options.effort))}
    mlip: dict[str, Any] = {"budget_per_round": options.relaxed}
    budget = options.budget
    if arm in ("substitution", "random"):
        generator["name"] = "substitution"
    if arm == "random":  # a pool as large as the sample leaves nothing to rank; labels are drawn by this script
        count = options.relaxed
        generator |= {"samples_per_round": count, "chunk": count, "settings": {"pool": count}}
        predictor |= {"tolerance": ANYTHING}
        mlip, budget = {"tolerance": ANYTHING}, 0
    if arm == "con_cdvae_acquisition":
        predictor |= {"acquisition": "expected_hits", "min_probability": 0.0}  # the budget of stage II decides
    return CampaignConfig.model_validate(
        {
            "name": f"{arm}-{seed}",
            "targets": {"bulk_modulus_vrh": f"{TARGET} GPa"},
            "data": {"label_range": [0, options.hidden_above]} if hidden else {},
            "generator": generator | {"pretrained": not hidden},
            "stages": {
                "predictor": predictor,
                "mlip": mlip,
                "dft": {"budget_per_round": budget, "tolerance": TOLERANCE},
            },
            "retrain": [] if arm in ("no_retraining", "random") else ["predictor", "generator"],
            "evaluation": {"targets": []},
            "rounds": options.rounds,
            "seed": seed,
        }
    )


def run_arm(arm: str, seed: int, options: argparse.Namespace, folder: str, rows: list[Row]) -> Iterator[Row]:
    """Run one campaign round by round and yield the rows that are not stored yet."""
    from fireworks_specs import execution
    from stores.connection import connect

    done = {place(row) for row in rows}
    wanted = [n for n in range(options.rounds + 1) if place({"arm": arm, "seed": seed, "round": n}) not in done]
    if not wanted:
        return
    config = campaign(arm, seed, options)
    root = Path(folder) / f"{options.mode}-{seed}-{arm}"
    copy_data(config, Path(folder) / "data", root)
    with connect("embedded", root=root) as connection:
        execution.register_campaign(config)
        plant_models(config, Path(folder))
        for number in range(options.rounds + 1):
            start, start_cpu = time.monotonic(), time.process_time()
            execution.run(connection, config, rounds=number)
            harvest_models(config, Path(folder))
            if arm == "random":
                label_at_random(config, number, options.budget)
            seconds, cpu = time.monotonic() - start, time.process_time() - start_cpu
            if number in wanted:
                row = {"arm": arm, "seed": seed, "round": number, "command": command(options)}
                row |= measure(config, number, options, Path(folder))
                yield row | {
                    "seconds": round(seconds),
                    "cpu_seconds": round(cpu),
                    "step_seconds": step_seconds(connection, number),
                }


def copy_data(config: CampaignConfig, base: Path, root: Path) -> None:
    """Start a campaign's database as a copy of one that holds the reference data, which is the same for all."""
    from fireworks_specs.execution import ingest_data
    from stores.connection import connect

    if root.exists():
        return
    if not base.exists():
        made = Path(tempfile.mkdtemp(dir=base.parent))
        with connect("embedded", root=made):
            ingest_data(config)
        move(made, base)
    partial = Path(tempfile.mkdtemp(dir=root.parent))
    shutil.copytree(base, partial, ignore=shutil.ignore_patterns("*.lock"), dirs_exist_ok=True)
    move(partial, root)


def move(made: Path, place: Path) -> None:
    """Move a folder to its place, unless another process was faster."""
    try:
        made.rename(place)
    except OSError:
        shutil.rmtree(made)


def plant_models(config: CampaignConfig, folder: Path) -> None:
    """Insert the models of round 0 that another arm of this seed has trained on the same training set."""
    from builders.run import build_training_set
    from fireworks_specs.steps import model_of_round
    from stores.provenance import provenance
    from stores.records import insert_model

    identity = build_training_set(config.name, 0)
    for kind in ("predictor", "generator"):
        path = model_path(folder, config, kind, identity)
        if path.exists() and model_of_round(config.name, 0, kind) is None:
            facts = json.loads(path.with_suffix(".json").read_text())
            insert_model(
                path.read_bytes(), **facts, kind=kind, training_set_id=identity, campaign=config.name, round=0,
                provenance=provenance(inputs=[identity]),
            )  # fmt: skip


def harvest_models(config: CampaignConfig, folder: Path) -> None:
    """Keep the models of round 0 for the other arms of this seed."""
    from fireworks_specs.steps import model_of_round

    for kind in ("predictor", "generator"):
        model = model_of_round(config.name, 0, kind)
        path = model_path(folder, config, kind, model.training_set_id)
        if not path.exists():
            facts = {k: getattr(model, k) for k in ("name", "property", "seed")}
            facts |= {k: dict(getattr(model, k)) for k in ("hyperparameters", "metrics")}
            path.with_suffix(".json").write_text(json.dumps(facts))
            path.write_bytes(model.load())


def model_path(folder: Path, config: CampaignConfig, kind: str, training_set: str) -> Path:
    """Return where a model of round 0 is kept: by what it is and all that it learned from."""
    from stores.protocol import content_id

    settings = config.generator if kind == "generator" else config.stages.predictor
    names = {"name", "pretrained", "budget", "settings", "model", "committee", "epochs"}
    facts = settings.model_dump(mode="json", include=names)
    return folder / f"{content_id(kind[0], [facts, training_set, config.seed])}.safetensors"


def label_at_random(config: CampaignConfig, number: int, budget: int) -> None:
    """Label candidates drawn from all that passed stage II, up to the budget, as the campaign would label its own."""
    from builders.run import build_campaign
    from fireworks_specs.backends import get_backend
    from fireworks_specs.firetasks.dft import relaxed_structure
    from fireworks_specs.firetasks.elastic import insert_result
    from fireworks_specs.protocols import dft_protocol
    from stores.documents import CandidateSummary
    from stores.provenance import provenance

    place_of = {"campaign": config.name, "round": number}
    labelled = set(CandidateSummary.objects(**place_of, stage="dft", status__ne="waiting").scalar("structure_id"))
    waiting = set(CandidateSummary.objects(**place_of, stage="dft", status="waiting").scalar("structure_id"))
    pool = sorted(waiting | labelled)
    drawn = random.Random(f"{config.seed}/{number}").sample(pool, min(budget, len(pool)))
    todo = [i for i in drawn if i not in labelled]
    backend = get_backend(config.stages.dft.backend)
    starts = [relaxed_structure(i) for i in todo]
    for index, record in backend.compute([crystal for _, crystal in starts], config):
        insert_result(
            record, todo[index], kind=backend.kind, method=backend.method, protocol=dft_protocol(config),
            provenance=provenance(inputs=[todo[index], starts[index][0]]),
        )  # fmt: skip
    build_campaign(config.name)


def step_seconds(connection: Connection, number: int) -> dict[str, int]:
    """Return where a round's time went: step -> seconds of its fireworks."""
    launchpad = connection.launchpad()
    query = {"spec.round": number, "spec.role": "work", "state": "COMPLETED"}
    steps = {d["fw_id"]: d["spec"]["step"] for d in launchpad.fireworks.find(query, {"fw_id": 1, "spec": 1})}
    seconds: dict[str, float] = defaultdict(float)
    for launch in launchpad.launches.find({"fw_id": {"$in": sorted(steps)}, "state": "COMPLETED"}):
        end, start = (datetime.fromisoformat(str(launch[name])) for name in ("time_end", "time_start"))
        seconds[steps[launch["fw_id"]]] += (end - start).total_seconds()
    return {name: round(value) for name, value in seconds.items()}


# ---- what a round brought ----


def measure(config: CampaignConfig, number: int, options: argparse.Namespace, folder: Path) -> Row:
    """Return one row: labels and hits in their order, hidden alloys found, both judges, elements."""
    from inv_design.metrics.campaign import element_shares
    from stores.documents import CampaignMetrics, CandidateSummary

    summaries = [s.to_mongo().to_dict() for s in CandidateSummary.objects(campaign=config.name, round__lte=number)]
    summaries.sort(key=lambda s: (s["round"], s["index"], s["candidate_id"]))
    own = [s for s in summaries if s["round"] == number]
    hits = find_hits(summaries, options.hidden_above)
    labels = [s for s in own if s["candidate_id"] in hits]
    shares = element_shares([s["elements"] for s in labels]) if labels else {}
    metrics = CampaignMetrics.objects(campaign=config.name, round=number).first().to_mongo().to_dict()
    return {
        "generated": len(own),
        "labels": len(labels),
        "label_values": [s["stages"]["dft"].get("value") for s in labels],
        "hits": [bool(hits[s["candidate_id"]]["hit"]) for s in labels],
        "misses": count_by(hits[s["candidate_id"]]["why"] for s in labels),
        "hit_formulas": [s["formula"] for s in labels if hits[s["candidate_id"]]["hit"]],
        "new_hits_better_than_hidden": better_hits(labels, hits, options.hidden_above, folder),
        "hidden": hidden_found(own, labels, hits, options.hidden_above),
        "judges": judge(own, options),
        "elements_labelled": dict(sorted(shares.items(), key=lambda e: -e[1])[:5]),
        "funnel": metrics.get("funnel"),
    }


def find_hits(summaries: Sequence[Row], limit: float) -> dict[str, Row]:
    """Return candidate id -> ``hit``, ``why`` not, and the hidden alloy it is, for all labelled candidates in order."""
    from inv_design.screening.quality import distrusted
    from stores.queries import structures_by_id

    labelled = [s for s in summaries if s["stage"] == "dft" and s["status"] != "waiting"]
    relaxed = {s["candidate_id"]: s["stages"]["dft"].get("output_structure_id") or s["structure_id"] for s in labelled}
    crystals = structures_by_id(relaxed.values())
    start, hidden = alloys(limit)
    found: dict[str, list[tuple[str, Structure]]] = {}
    verdicts = {}
    for summary in labelled:
        crystal = crystals[relaxed[summary["candidate_id"]]]
        stages = summary["stages"]
        why = None
        if summary["status"] == "failed":
            why = "failed"
        elif distrusted(stages["dft"].get("flags") or ()):
            why = "flags"
        elif abs(stages["dft"]["value"] - TARGET) > TOLERANCE * TARGET:
            why = "off target"
        elif not (stages["mlip"].get("born_stable") and stages["mlip"].get("relaxed")):
            why = "unstable"
        elif matching(crystal, start) is not None:
            why = "known"
        elif matching(crystal, found) is not None:
            why = "duplicate"
        if why is None:
            found.setdefault(crystal.composition.reduced_formula, []).append((summary["candidate_id"], crystal))
        verdicts[summary["candidate_id"]] = {"hit": why is None, "why": why, "alloy": matching(crystal, hidden)}
    return verdicts


def hidden_found(own: Sequence[Row], labels: Sequence[Row], hits: dict[str, Row], limit: float) -> dict[str, list[str]]:
    """Return the ids of the hidden alloys that a round generated, labelled, and hit with."""
    from stores.queries import structures_by_id

    hidden = alloys(limit)[1]
    crystals = structures_by_id(s["structure_id"] for s in own)
    generated = {matching(crystals[s["structure_id"]], hidden) for s in own} - {None}
    labelled = {hits[s["candidate_id"]]["alloy"] for s in labels} - {None}
    hit = {hits[s["candidate_id"]]["alloy"] for s in labels if hits[s["candidate_id"]]["hit"]} - {None}
    found = {"generated": generated, "labelled": labelled, "hits": hit}
    return {name: sorted(str(i) for i in ids) for name, ids in found.items()}


def better_hits(labels: Sequence[Row], hits: dict[str, Row], limit: float, folder: Path) -> int:
    """Return the hits that are no packaged alloy and nearer to the target than the nearest hidden one by the judge."""
    chosen = [s for s in labels if hits[s["candidate_id"]]["hit"] and hits[s["candidate_id"]]["alloy"] is None]
    if not chosen:
        return 0
    nearest = min((abs(value - TARGET) for value in hidden_values(folder, limit).values()), default=0.0)
    return sum(abs(s["stages"]["dft"]["value"] - TARGET) < nearest for s in chosen)


def hidden_values(folder: Path, limit: float) -> dict[str, float]:
    """Return the judge's bulk modulus in GPa of the hidden alloys whose PBE label is near, computed once per folder."""
    from inv_design.datasets.mp_binaries import load_mp_binaries

    path = folder / f"hidden-above-{limit:g}.json"
    if not path.exists():
        labels = {e.source_id: e.labels["bulk_modulus_vrh"] for e in load_mp_binaries()}
        crystals = {i: crystal for group in alloys(limit)[1].values() for i, crystal in group}
        crystals = {i: c for i, c in crystals.items() if abs(labels[i] - TARGET) <= TOLERANCE * TARGET}
        path.write_text(json.dumps(equations_of_state(crystals)))
    return {k: v["value"] for k, v in json.loads(path.read_text()).items() if v["value"] is not None}


@cache
def alloys(limit: float) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
    """Return (start set, alloys above ``limit`` GPa): reduced formula -> [(source id, crystal)]."""
    from inv_design.config import DataConfig
    from inv_design.datasets.mp_binaries import filter_dataset, load_mp_binaries
    from inv_design.structures.elements import expand_elements

    data = DataConfig()
    entries = filter_dataset(
        load_mp_binaries(), elements=expand_elements(data.elements), exclude=expand_elements(data.exclude),
        max_sites=data.max_sites, label_range=data.label_range,
    )  # fmt: skip
    start: dict[str, list[Any]] = defaultdict(list)
    hidden: dict[str, list[Any]] = defaultdict(list)
    for entry in entries:
        group = hidden if entry.labels["bulk_modulus_vrh"] > limit else start
        group[entry.structure.composition.reduced_formula].append((entry.source_id, entry.structure))
    return dict(start), dict(hidden)


def matching(crystal: Structure, known: dict[str, list[tuple[str, Structure]]]) -> str | None:
    """Return the id of the first known crystal that this one is, or ``None``."""
    group = known.get(crystal.composition.reduced_formula, [])
    return next((identity for identity, other in group if matcher().fit(crystal, other)), None)


@cache
def matcher() -> Any:
    """Return the matcher with the tolerances of stage I."""
    from pymatgen.analysis.structure_matcher import StructureMatcher

    return StructureMatcher(ltol=0.2, stol=0.3, angle_tol=5)


def judge(own: Sequence[Row], options: argparse.Namespace) -> dict[str, Row]:
    """Return what both judges find on the first crystals of a round, exactly as generated."""
    from stores.queries import structures_by_id

    chosen = own[: options.judged]
    crystals = structures_by_id(s["structure_id"] for s in chosen)
    curves = equations_of_state({i: crystals[i] for i in dict.fromkeys(s["structure_id"] for s in chosen)})
    found = [curves[s["structure_id"]] for s in chosen]
    predicted = [s["stages"]["predictor"].get("value") for s in chosen]
    changes = [abs(c["volume_change"]) for c in found if c["value"] is not None]
    return {
        "cgcnn": errors_of(predicted),
        "chgnet": errors_of([c["value"] for c in found])
        | {"median_volume_change": round(median(changes), 4) if changes else None},
    }


def equations_of_state(crystals: dict[str, Structure]) -> dict[str, Row]:
    """Return id -> bulk modulus in GPa by CHGNet's E(V) of the relaxed crystal, and the change of its volume."""
    from fireworks_specs.pool import map_unordered
    from inv_design.mechanics.stages import measure_equation_of_state

    names = list(crystals)
    work = [{"structure": crystals[i], "calculator": "chgnet", "strain": 0.04} for i in names]
    records = {names[k]: record["results"] for k, record in map_unordered(measure_equation_of_state, work)}
    return {
        i: {"value": r.get("bulk_modulus_vrh"), "volume_change": r.get("volume_change")} for i, r in records.items()
    }  # fmt: skip


def errors_of(values: Sequence[float | None]) -> Row:
    """Return the relative errors of judged bulk moduli (GPa) against the target."""
    known = [v for v in values if v is not None and math.isfinite(v)]
    errors = [abs(v - TARGET) / TARGET for v in known]
    return {
        "n": len(values),
        "judged": len(known),
        "median": round(median(known), 1) if known else None,
        "mean_relative_error": round(fmean(errors), 4) if errors else None,
        "median_relative_error": round(median(errors), 4) if errors else None,
        "within_10_percent": round(sum(e <= TOLERANCE for e in errors) / len(values), 3) if errors else None,
        "values": [round(v, 1) for v in known],
    }


def count_by(names: Iterable[str | None]) -> dict[str, int]:
    """Return how often each name occurs, ``None`` left out."""
    counts: dict[str, int] = defaultdict(int)
    for name in names:
        if name is not None:
            counts[name] += 1
    return dict(sorted(counts.items()))


# ---- rows and tables ----


def place(row: Row) -> tuple[int, int, int]:
    """Return what identifies a row: arm, seed and round."""
    return ARMS.index(row["arm"]), row["seed"], row["round"]


def command(options: argparse.Namespace) -> str:
    """Return the command of a row, without the folders of the machine that ran it."""
    shown = ["--mode", options.mode, "--arms", *options.arms, "--seeds", *map(str, options.seeds)]
    for name in SETTINGS[1:]:
        shown += [f"--{name.replace('_', '-')}", f"{getattr(options, name):g}"]
    return shlex.join(["python", "benchmarks/active_learning.py", *shown])


def settings_of(options: argparse.Namespace) -> Row:
    """Return what all rows of a result file share."""
    return {name: getattr(options, name) for name in SETTINGS} | {"target": TARGET, "tolerance": TOLERANCE}


def stored_rows(options: argparse.Namespace) -> list[Row]:
    """Return the rows of an earlier run with the same settings."""
    if not options.output.exists():
        return []
    earlier = json.loads(options.output.read_text())
    return earlier["rows"] if earlier["settings"] == settings_of(options) else []


def store(row: Row, options: argparse.Namespace) -> None:
    """Put one row into the result file, beside those that other processes have stored meanwhile."""
    rows = sorted([*(r for r in stored_rows(options) if place(r) != place(row)), row], key=place)
    result = {"settings": settings_of(options), "summary": summary(rows, options), "rows": rows}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    partial = options.output.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(result, indent=1) + "\n")
    partial.replace(options.output)


def render(row: Row) -> str:
    """Return one line of the progress."""
    elements = " ".join(f"{symbol} {share:.2f}" for symbol, share in list(row["elements_labelled"].items())[:4])
    return (
        f"{row['arm']:21} seed {row['seed']}  round {row['round']}  labels {row['labels']:2d}  "
        f"hits {sum(row['hits']):2d} (hidden alloys {len(row['hidden']['hits'])})  "
        + "  ".join(
            f"{name}: median K {j['median'] or 0:5.1f} error {shown(j['mean_relative_error'])}"
            for name, j in row["judges"].items()
        )
        + f"  {elements}  {row['seconds']} s (cpu {row['cpu_seconds']} s) {row['step_seconds']}  misses {row['misses']}"
    )


def shown(value: float | None, digits: int = 3) -> str:
    """Return a number for the tables, a dash for none."""
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def spread(values: Iterable[float | None]) -> Row | None:
    """Return mean, min and max over seeds; ``None`` without a number."""
    known = [v for v in values if v is not None and math.isfinite(v)]
    return {"mean": round(fmean(known), 4), "min": min(known), "max": max(known)} if known else None


def summary(rows: list[Row], options: argparse.Namespace) -> list[Row]:
    """Return one record per arm, over the seeds that are complete."""
    runs = complete_runs(rows, options)
    budget = options.budget * (options.rounds + 1)
    return [arm_summary(arm, runs, budget) for arm in ARMS if any(name == arm for name, _ in runs)]


def complete_runs(rows: list[Row], options: argparse.Namespace) -> dict[tuple[str, int], list[Row]]:
    """Return (arm, seed) -> rows by round, of the campaigns whose rounds are all there."""
    runs: dict[tuple[str, int], list[Row]] = defaultdict(list)
    for row in sorted(rows, key=place):
        runs[row["arm"], row["seed"]].append(row)
    return {key: run for key, run in runs.items() if len(run) == options.rounds + 1}


def arm_summary(arm: str, runs: dict[tuple[str, int], list[Row]], budget: int) -> Row:
    """Return the figures of one arm: hits, errors, hidden alloys, and against the baselines."""
    from inv_design.metrics.discovery import area_under_discovery_curve

    own = {seed: run for (name, seed), run in runs.items() if name == arm}
    curves = {seed: [h for row in run for h in row["hits"]] for seed, run in own.items()}

    def over_seeds(value: Callable[[list[Row]], float | None]) -> Row | None:
        return spread(value(run) for run in own.values())

    record: Row = {
        "arm": arm,
        "seeds": sorted(own),
        "labels": sum(len(c) for c in curves.values()),
        "hits": sum(map(sum, curves.values())),
        "hits_per_label": spread(sum(c) / len(c) if c else 0.0 for c in curves.values()),
        "hits_per_label_allowed": spread(sum(c) / budget for c in curves.values()),
        "hits_by_round": [
            sum(sum(run[k]["hits"]) for run in own.values()) for k in range(len(next(iter(own.values()))))
        ],
        "audc": spread(area_under_discovery_curve(c, budget) for c in curves.values()),
        "chgnet_mean_error_by_round": by_round(own, "chgnet", "mean_relative_error"),
        "chgnet_median_error_by_round": by_round(own, "chgnet", "median_relative_error"),
        "cgcnn_mean_error_by_round": by_round(own, "cgcnn", "mean_relative_error"),
        "seconds": over_seeds(lambda run: sum(row["seconds"] for row in run)),
        "cpu_seconds": over_seeds(lambda run: sum(row["cpu_seconds"] for row in run)),
        "hidden": {
            kind: over_seeds(lambda run, k=kind: len({i for row in run for i in row["hidden"][k]}))  # type: ignore[misc]
            for kind in ("generated", "labelled", "hits")
        },
        "better_than_hidden": over_seeds(lambda run: sum(row["new_hits_better_than_hidden"] for row in run)),
    }
    return record | {"against": {b: against(curves, runs, b, budget) for b in BASELINES if b != arm}}


def by_round(own: dict[int, list[Row]], judge: str, name: str) -> list[float | None]:
    """Return the mean over seeds of a judge's figure, round by round."""
    columns = zip(*([row["judges"][judge][name] for row in run] for run in own.values()), strict=True)
    means = [spread(column) for column in columns]
    return [None if m is None else m["mean"] for m in means]


def against(
    curves: dict[int, list[bool]], runs: dict[tuple[str, int], list[Row]], baseline: str, budget: int
) -> Row | None:
    """Return the ratios to a baseline over the seeds that both have: of hits per label, EF, AF, area."""
    from inv_design.metrics.discovery import acceleration_factor, area_under_discovery_curve, enhancement_factor

    other = {s: [h for row in run for h in row["hits"]] for (name, s), run in runs.items() if name == baseline}
    seeds = sorted(curves.keys() & other.keys())
    if not seeds:
        return None
    own_hits, other_hits = (sum(sum(c[s]) for s in seeds) for c in (curves, other))
    own_labels, other_labels = (sum(len(c[s]) for s in seeds) for c in (curves, other))
    reached = {s: max(1, min(sum(curves[s]), sum(other[s]))) for s in seeds}
    factors = [acceleration_factor(curves[s], other[s], reached[s]) for s in seeds]
    areas = [area_under_discovery_curve(c[s], budget) for s in seeds for c in (curves, other)]
    return {
        "seeds": seeds,
        "hits_per_label": ratio(own_hits / max(own_labels, 1), other_hits / max(other_labels, 1)),
        "enhancement_factor": ratio(own_hits, other_hits),
        "enhancement_factor_by_seed": [finite(enhancement_factor(curves[s], other[s], budget)) for s in seeds],
        "acceleration_factor": spread(f.value for f in factors),
        "acceleration_factor_by_seed": [
            {"hits": reached[s], "value": finite(f.value), "bound": f.bound}
            for s, f in zip(seeds, factors, strict=True)
        ],
        "audc": ratio(fmean(areas[::2]), fmean(areas[1::2])),
    }


def ratio(own: float, other: float) -> float | str | None:
    """Return own / other, ``"inf"`` where only the other is 0, ``None`` where both are."""
    if other:
        return round(own / other, 3)
    return "inf" if own else None


def finite(value: float) -> float | str | None:
    """Return a number as JSON has it."""
    return "inf" if value == math.inf else None if math.isnan(value) else round(value, 3)


def print_tables(rows: list[Row], options: argparse.Namespace) -> None:
    """Print the final tables."""
    table = summary(rows, options)
    start, hidden = alloys(options.hidden_above)
    sizes = [sum(map(len, group.values())) for group in (start, hidden)]
    print(f"\n{options.mode}: {sizes[0]} alloys to start from, {sizes[1]} hidden")
    print("arm                    seeds  labels  hits  per label (min-max)     per label allowed  by round")
    for r in table:
        rate = r["hits_per_label"]
        print(
            f"{r['arm']:22} {len(r['seeds']):5d} {r['labels']:7d} {r['hits']:5d}  {rate['mean']:.3f} "
            f"({rate['min']:.3f}-{rate['max']:.3f})    {r['hits_per_label_allowed']['mean']:.3f}              "
            f"{r['hits_by_round']}"
        )
    for baseline in BASELINES:
        print(f"\nagainst {baseline:21} hits per label  EF     AF (bounds)                     AUDC ratio")
        for r in (r for r in table if r["against"].get(baseline)):
            a = r["against"][baseline]
            factors = " ".join(f"{b['value']}{marks[b['bound']]}" for b in a["acceleration_factor_by_seed"])
            print(
                f"  {r['arm']:27} {a['hits_per_label']!s:15} {a['enhancement_factor']!s:6} {factors:31} {a['audc']}"
            )  # fmt: skip
    print(
        "\narm                    CHGNet mean error by round / median of the last / CGCNN mean error     hidden alloys"
    )
    for r in table:
        chgnet = " ".join(shown(e) for e in r["chgnet_mean_error_by_round"])
        cgcnn = " ".join(shown(e) for e in r["cgcnn_mean_error_by_round"])
        found = " / ".join(f"{k} {shown((r['hidden'][k] or {}).get('mean'), 1)}" for k in r["hidden"])
        better = shown((r["better_than_hidden"] or {}).get("mean"), 1)
        print(
            f"{r['arm']:22} {chgnet} / {shown(r['chgnet_median_error_by_round'][-1])} / {cgcnn}  {found} / "
            f"better ones {better}  {r['seconds']['mean']:.0f} s"
        )


marks = {"exact": "", "at least": "+", "at most": "-", "unknown": "?"}


if __name__ == "__main__":
    main()
