r"""Con-CDVAE, straight and ranked, beside the baselines: condition following as a relaxing surrogate judges it.

For every target K and every way of sampling: draws crystals with a fixed seed, counts geometry, uniqueness, novelty and
new chemical systems over all of them, judges the first ones (relaxation, then K from E(V) over +-4 % of the length)
and prints one row. The way "real" judges training crystals whose PBE modulus lies within 5 % of the target: what the
judge itself makes of crystals that are right. Every row is stored when it is done, with its command, in place of an
earlier one of the same way and target. Seconds are processor seconds of one thread, because a benchmark may share its
machine; a hit is a judged crystal within 10 % of the target.

    OMP_NUM_THREADS=1 python benchmarks/generator.py
    OMP_NUM_THREADS=1 python benchmarks/generator.py --targets 100 300 --samples 200 --judged 40 --ways ranked
    OMP_NUM_THREADS=1 python benchmarks/generator.py --ways straight ranked --samples 1000 --judged 0 \
        --output benchmarks/results/generator_1000.json
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator
    from pymatgen.core import Structure

    from inv_design.generators.protocol import Condition, Generator, Sample

TARGETS = (60.0, 100.0, 200.0, 250.0, 300.0, 350.0, 400.0)
WAYS = ("straight", "ranked", "substitution", "random_symmetric", "real")
RESULT = Path(__file__).parent / "results" / "generator.json"
RATIOS = (0.75, 0.85)
DISTANCES = (0.5, 1.5, 2.0)
NEAR = 0.05  # relative; real crystals this near the target


def main() -> None:
    arguments = parse_arguments()
    warnings.filterwarnings("ignore")
    import torch

    from inv_design.calculators.registry import calculator_protocol, get_calculator

    torch.set_num_threads(1)
    calculator = get_calculator(arguments.calculator)
    judge_protocol = calculator_protocol(arguments.calculator) | {"bulk_modulus": "relaxed, then E(V) over +-4 %"}
    command = shlex.join(["python", "benchmarks/generator.py", *sys.argv[1:]])
    for way, generator in make_generators(arguments.ways, arguments.model).items():
        for target in arguments.targets:
            row = {"way": way, "target": target, "seed": arguments.seed, "command": command}
            row |= measure(generator, target, calculator, arguments)
            print(render(row), flush=True)
            store(row | {"judge": judge_protocol}, arguments.output)


def store(row: dict[str, Any], path: Path) -> None:
    """Put one row into the result file, in place of an earlier one of the same way and target."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    rows = [other for other in rows if (other["way"], other["target"]) != (row["way"], row["target"])]
    rows = sorted([*rows, row], key=lambda r: (WAYS.index(r["way"]), r["target"]))
    path.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", type=float, nargs="+", default=list(TARGETS), help="GPa")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--samples", type=int, default=100, help="crystals per row")
    parser.add_argument("--judged", type=int, default=20, help="of them judged by the calculator")
    parser.add_argument("--max-sites", type=int, default=None, help="largest cell")
    parser.add_argument("--calculator", default="chgnet")
    parser.add_argument("--model", type=Path, default=None, help="a Con-CDVAE file instead of the packaged one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULT)
    return parser.parse_args()


def make_generators(ways: list[str], model: Path | None) -> dict[str, Generator | RealCrystals]:
    """Return the generators of the rows: the packaged Con-CDVAE two ways, and substitution fitted to its data."""
    from inv_design.datasets.mp_binaries import load_alloys
    from inv_design.generators.con_cdvae import ConCDVAE
    from inv_design.generators.registry import default_weights, make_generator

    trained = ConCDVAE.from_bytes(default_weights()) if model is None else ConCDVAE.load(model)
    made: dict[str, Generator | RealCrystals] = {}
    if "straight" in ways:
        made["straight"] = trained.with_settings(latent_filter=1)
    if "ranked" in ways:
        made["ranked"] = trained
    alloys = load_alloys()
    for name in ("substitution", "random_symmetric"):
        if name in ways:
            baseline = make_generator(name)
            made[name] = baseline
            baseline.fit([a.structure for a in alloys], [a.labels["bulk_modulus_vrh"] for a in alloys])
    if "real" in ways:
        made["real"] = RealCrystals()
    return made


class RealCrystals:
    """Draws training crystals whose own modulus is near the target, behind ``sample`` alone."""

    last_statistics: dict[str, Any] = {"draws": 0, "rejected": {}}  # noqa: RUF012 - never written

    def sample(self, n: int, condition: Condition, *, seed: int = 0) -> list[Sample]:
        """Return up to ``n`` of them at random."""
        from inv_design.datasets.mp_binaries import load_alloys
        from inv_design.generators.protocol import Sample

        target = condition.targets["bulk_modulus_vrh"]
        near = [a for a in load_alloys() if abs(a.labels["bulk_modulus_vrh"] / target - 1) < NEAR]
        chosen = np.random.default_rng(seed).permutation(len(near))[:n]
        return [
            Sample(near[i].structure, index, condition.to_dict(), seed, near[i].labels["bulk_modulus_vrh"])
            for index, i in enumerate(chosen)
        ]


def measure(
    generator: Generator | RealCrystals, target: float, calculator: Calculator, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Return the row of one generator and target."""
    from inv_design.generators.protocol import Condition

    condition = Condition({"bulk_modulus_vrh": target}, max_sites=arguments.max_sites)
    generator.sample(2, condition, seed=arguments.seed + 1)  # imports and caches are not sampling
    started = time.process_time()
    samples = generator.sample(arguments.samples, condition, seed=arguments.seed)
    seconds = time.process_time() - started
    structures = [sample.structure for sample in samples]
    row = {"samples": len(samples), "seconds_per_crystal": seconds / max(len(samples), 1)}
    row |= {"draws": generator.last_statistics["draws"], "rejected": generator.last_statistics["rejected"]}
    row |= geometry(structures) | originality(structures) | chemistry(structures)
    predicted = np.array([sample.score for sample in samples], dtype=float)
    row["own_prediction_error"] = float(np.mean(np.abs(predicted - target) / target))
    row |= judge(samples[: arguments.judged], target, calculator)
    if row.get("within_10_percent"):
        row["sampling_seconds_per_hit"] = row["seconds_per_crystal"] / row["within_10_percent"]
    return row


def geometry(structures: list[Structure]) -> dict[str, Any]:
    """Return the shares of crystals without a short distance."""
    from inv_design.structures.validity import min_distance, min_radius_ratio

    distances = np.array([min_distance(s) for s in structures])
    ratios = np.array([min_radius_ratio(s) for s in structures])
    shares = {f"share_distance_above_{d}": float(np.mean(distances > d)) for d in DISTANCES}
    return shares | {f"share_ratio_above_{r}": float(np.mean(ratios > r)) for r in RATIOS}


def originality(structures: list[Structure]) -> dict[str, float]:
    """Return the shares of crystals that differ from the earlier ones and from the training set."""
    from pymatgen.analysis.structure_matcher import StructureMatcher

    from inv_design.datasets.mp_binaries import load_alloys

    matcher = StructureMatcher(ltol=0.2, stol=0.3, angle_tol=5)
    training: dict[str, list[Structure]] = {}
    systems = set()
    for alloy in load_alloys():
        training.setdefault(alloy.structure.composition.reduced_formula, []).append(alloy.structure)
        systems.add(alloy.chemsys)
    seen: dict[str, list[Structure]] = {}
    unique = novel = 0
    for structure in structures:
        formula = structure.composition.reduced_formula
        unique += not any(matcher.fit(structure, other) for other in seen.get(formula, []))
        novel += not any(matcher.fit(structure, other) for other in training.get(formula, []))
        seen.setdefault(formula, []).append(structure)
    fresh = sum(structure.chemical_system not in systems for structure in structures)
    shares = {"unique": unique, "novel": novel, "new_chemical_systems": fresh}
    return {name: count / len(structures) for name, count in shares.items()}


def chemistry(structures: list[Structure]) -> dict[str, Any]:
    """Return what the crystals are made of."""
    atoms: dict[str, float] = {}
    for structure in structures:
        for element, share in structure.composition.fractional_composition.items():
            atoms[element.symbol] = atoms.get(element.symbol, 0.0) + share / len(structures)
    leading = sorted(atoms.items(), key=lambda item: -item[1])[:4]
    return {
        "elements": len(atoms),
        "leading_elements": {symbol: round(share, 3) for symbol, share in leading},
        "mean_sites": float(np.mean([len(structure) for structure in structures])),
        "formulas": len({structure.composition.reduced_formula for structure in structures}),
    }


def judge(samples: list[Sample], target: float, calculator: Calculator) -> dict[str, Any]:
    """Return what the calculator finds: K, its error against the target, and the change of volume on relaxation."""
    from inv_design.mechanics.eos import equation_of_state
    from inv_design.mechanics.relax import relax_structure

    moduli, changes, failures, kept = [], [], 0, 0
    for sample in samples:
        relaxed = relax_structure(sample.structure, calculator, fmax=0.03, max_steps=200)
        if relaxed.error is not None or relaxed.structure is None:
            failures += 1
            continue
        curve = equation_of_state(relaxed.structure, calculator)
        if curve.error is not None:
            failures += 1
            continue
        moduli.append(curve.bulk_modulus)
        changes.append(relaxed.volume_change)
        kept += same(sample.structure, relaxed.structure)
    if not moduli:  # also when none was asked for
        return {"judged": 0, "failed": failures}
    errors = np.abs(np.array(moduli) - target) / target
    return {
        "judged": len(moduli),
        "failed": failures,
        "median_bulk_modulus": float(np.median(moduli)),
        "mean_error": float(errors.mean()),
        "median_error": float(np.median(errors)),
        "within_10_percent": float(np.mean(errors <= 0.1)),
        "within_20_percent": float(np.mean(errors <= 0.2)),
        "median_volume_change": float(np.median(np.abs(changes))),
        "structure_kept": kept / len(moduli),
        "bulk_moduli": [round(float(k), 1) for k in moduli],
    }


def same(first: Structure, second: Structure) -> bool:
    """Return whether relaxation kept the structure."""
    from pymatgen.analysis.structure_matcher import StructureMatcher

    return bool(StructureMatcher(ltol=0.2, stol=0.3, angle_tol=5).fit(first, second))


def render(row: dict[str, Any]) -> str:
    """Return one line for the terminal."""
    judged = "nothing judged  "
    if row["judged"]:
        judged = (
            f"K {row['median_bulk_modulus']:4.0f}  error {row['mean_error']:.3f}  "
            f"<10 % {row['within_10_percent']:.2f}  <20 % {row['within_20_percent']:.2f}  "
            f"dV {row['median_volume_change']:.3f}  kept {row['structure_kept']:.2f}  "
        )
    return (
        f"{row['way']:16s} {row['target']:4.0f} GPa  n {row['samples']:4d}  {judged}"
        f">0.5 Å {row['share_distance_above_0.5']:.2f}  >0.75 r {row['share_ratio_above_0.75']:.2f}  "
        f"unique {row['unique']:.2f}  novel {row['novel']:.2f}  "
        f"new systems {row['new_chemical_systems']:.2f}  {row['seconds_per_crystal']:.3f} s  "
        + " ".join(f"{symbol} {share:.2f}" for symbol, share in row["leading_elements"].items())
    )


if __name__ == "__main__":
    main()
