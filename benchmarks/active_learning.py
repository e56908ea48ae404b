"""Does the loop learn? Rounds 0 to 2 at 350 GPa, three seeds, this loop beside substitution at the same budget.

The figure is mean |K - target| / target of crystals as generated, judged by CHGNet's equation of state after
relaxation: not by the model that guided the generator, nor by the potential that screened. Both arms retrain their
predictor and generator on the same number of new labels per round.

    python benchmarks/active_learning.py [--seeds 0 1 2] [--judged 30]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from statistics import fmean, median
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

RESULTS = Path(__file__).parent / "results" / "active_learning.json"
TARGET = 350.0
ARMS = ("con_cdvae", "substitution")


def campaign(arm: str, seed: int, samples: int, budget: int) -> Any:
    """Return the campaign of an arm: the default settings, with the evaluation left to this script."""
    from inv_design.config import CampaignConfig

    return CampaignConfig.model_validate(
        {
            "name": f"{arm}-{seed}",
            "targets": {"bulk_modulus_vrh": f"{TARGET} GPa"},
            "generator": {"name": arm, "samples_per_round": samples, "chunk": samples},
            "stages": {"dft": {"budget_per_round": budget}},
            "evaluation": {"targets": []},
            "rounds": 2,
            "seed": seed,
        }
    )


def judge(name: str, number: int, count: int) -> dict[str, Any]:
    """Judge the first ``count`` candidates of a round, exactly as generated."""
    from fireworks_specs.pool import map_unordered
    from inv_design.mechanics.stages import measure_equation_of_state
    from stores.documents import Candidate
    from stores.queries import structures_by_id

    candidates = Candidate.objects(campaign=name, round=number).order_by("index").limit(count)
    ids = list(candidates.scalar("structure_id"))
    crystals = structures_by_id(ids)
    work = [{"structure": crystals[i], "calculator": "chgnet", "strain": 0.04} for i in ids]
    records = dict(map_unordered(measure_equation_of_state, work))
    values = [records[i]["results"].get("bulk_modulus_vrh") for i in range(len(ids))]
    changes = [abs(records[i]["results"]["volume_change"]) for i in range(len(ids)) if values[i] is not None]
    known = [v for v in values if v is not None]
    errors = [abs(v - TARGET) / TARGET for v in known]
    return {
        "n": len(ids),
        "judged": len(known),
        "mean_relative_error": fmean(errors) if errors else None,
        "median_relative_error": median(errors) if errors else None,
        "median": median(known) if known else None,
        "within_10_percent": sum(e <= 0.1 for e in errors) / len(ids) if ids else None,
        "median_volume_change": median(changes) if changes else None,
        "values": [round(v, 1) for v in known],
    }


def run_arm(arm: str, seed: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run one campaign and judge its rounds."""
    from fireworks_specs import execution
    from stores.connection import connect
    from stores.documents import CampaignMetrics

    rows = []
    with TemporaryDirectory() as folder, connect("embedded", root=Path(folder)) as connection:
        config = campaign(arm, seed, options.samples, options.budget)
        start = time.monotonic()
        execution.run(connection, config)
        seconds = time.monotonic() - start
        for number in range(3):
            metrics = CampaignMetrics.objects(campaign=config.name, round=number).first().to_mongo().to_dict()
            row = {"arm": arm, "seed": seed, "round": number, **judge(config.name, number, options.judged)}
            row["hits"] = sum(
                d["results"].get("bulk_modulus_vrh") is not None
                and abs(d["results"]["bulk_modulus_vrh"] - TARGET) / TARGET <= 0.1
                for d in labels(connection, config.name, number)
            )
            row["labels"] = len(labels(connection, config.name, number))
            row["campaign_seconds"] = round(seconds)
            row["command"] = " ".join(["python benchmarks/active_learning.py", *sys.argv[1:]])
            row["funnel"] = {k: v for k, v in metrics.items() if k == "funnel"}.get("funnel")
            rows.append(row)
            print(line(row), flush=True)
    return rows


def labels(connection: Any, name: str, number: int) -> list[dict[str, Any]]:
    """Return the stage-III calculations of a round's candidates."""
    ids = connection.db["candidates"].distinct("structure_id", {"campaign": name, "round": number})
    query = {"structure_id": {"$in": ids}, "method": "surrogate", "state": "completed"}
    return list(connection.db["calculations"].find(query, {"results.bulk_modulus_vrh": 1}))


def line(row: dict[str, Any]) -> str:
    """Return one line of the table."""
    return (
        f"{row['arm']:13} seed {row['seed']}  round {row['round']}  judged {row['judged']:3d}/{row['n']:3d}  "
        f"median K {row['median'] or 0:6.1f} GPa  mean error {row['mean_relative_error'] or float('nan'):.3f}  "
        f"within 10 % {row['within_10_percent'] or 0:.2f}  |dV/V| {row['median_volume_change'] or 0:.3f}  "
        f"hits {row['hits']}/{row['labels']} labels"
    )


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the mean over seeds per arm and round."""
    out = []
    for arm in ARMS:
        for number in range(3):
            chosen = [r for r in rows if r["arm"] == arm and r["round"] == number and r["mean_relative_error"]]
            if chosen:
                errors = [r["mean_relative_error"] for r in chosen]
                out.append(
                    {
                        "arm": arm,
                        "round": number,
                        "seeds": len(chosen),
                        "mean_relative_error": round(fmean(errors), 4),
                        "lowest": round(min(errors), 4),
                        "highest": round(max(errors), 4),
                        "within_10_percent": round(fmean(r["within_10_percent"] for r in chosen), 3),
                        "median_volume_change": round(fmean(r["median_volume_change"] for r in chosen), 4),
                        "hits_per_label": round(
                            sum(r["hits"] for r in chosen) / max(1, sum(r["labels"] for r in chosen)), 3
                        ),
                    }
                )
    return out


def kept_rows(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the rows of an earlier, partial run that this one does not replace; its settings must be the same."""
    if not options.output.exists():
        return []
    earlier = json.loads(options.output.read_text())
    if earlier["settings"] != {k: getattr(options, k) for k in ("samples", "budget", "judged")}:
        return []
    return [r for r in earlier["rows"] if r["arm"] not in options.arms or r["seed"] not in options.seeds]


def main() -> None:
    """Run all arms and seeds, print the table, write the results after each arm."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--samples", type=int, default=60, help="crystals generated per round")
    parser.add_argument("--budget", type=int, default=15, help="labels per round")
    parser.add_argument("--judged", type=int, default=30, help="crystals judged per round")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    rows = kept_rows(options)
    for seed in options.seeds:
        for arm in options.arms:
            rows += run_arm(arm, seed, options)
            settings = {k: getattr(options, k) for k in ("samples", "budget", "judged")}
            result = {"settings": settings, "summary": summary(rows), "rows": rows}
            options.output.parent.mkdir(parents=True, exist_ok=True)
            options.output.write_text(json.dumps(result, indent=1) + "\n")
    for row in summary(rows):
        print(row)


if __name__ == "__main__":
    main()
