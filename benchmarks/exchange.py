"""Archives and moves: records per second and memory, for campaigns of several sizes.

    python benchmarks/exchange.py                    # 1,000 and 10,000 candidates, some minutes
    python benchmarks/exchange.py --sizes 500 --to mongodb://127.0.0.1:27017/empty

Each step runs in a process of its own. ``cpu_s`` is processor time, ``wall_s`` the wall clock, ``memory_mb`` the peak
resident memory above that of a process that has only opened the database: what does not grow with the campaign is
streamed. A move goes to a second embedded database unless ``--to`` names a server's.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

OUTPUT = Path(__file__).parent / "results" / "exchange.json"
METALS = ("Al", "Ni", "Cu", "Pd", "Ag", "Pt", "Au", "Ir", "Re", "W", "Ta", "Mo", "Ru", "Os", "Ti", "Zr", "Nb", "Hf")
ELASTIC = [[100.0 + 7 * i + 3 * j for i in range(6)] for j in range(6)]


def write(folder: Path, size: int) -> None:
    """Write a campaign of ``size`` candidates, each with a prediction and a calculation, into an embedded database."""
    from pymatgen.core import Lattice, Structure

    from stores import records
    from stores.connection import connect
    from stores.provenance import provenance

    made = provenance(command="benchmark")
    targets = {"bulk_modulus_vrh": "350 GPa"}
    with connect("embedded", root=folder):
        records.insert_campaign("b", {"name": "b", "targets": targets}, targets=targets, provenance=made)
        model = records.insert_model(
            b"w" * 5_000_000, kind="generator", name="x", provenance=made, campaign="b", round=0
        ).model_id
        crystals = []
        for i in range(size):
            pair = [METALS[i % len(METALS)], METALS[(i // len(METALS)) % len(METALS)]]
            crystals.append(Structure(Lattice.cubic(2.8 + 0.002 * i), pair, [[0, 0, 0], [0.5, 0.5, 0.5]]))
        ids = records.insert_structures(crystals, [{"kind": "generated", "id": model}] * size, made)
        common = {"provenance": made}
        records.insert_candidates(
            {
                "campaign": "b",
                "structure_id": s,
                "round": 0,
                "seed": 1,
                "index": i,
                "generator_model_id": model,
                **common,
            }
            for i, s in enumerate(ids)
        )
        records.insert_predictions(
            {"structure_id": s, "property": "bulk_modulus_vrh", "value": float(i), "protocol_id": "p", **common}
            for i, s in enumerate(ids)
        )
        results = {"bulk_modulus_vrh": 300.0, "elastic_tensor": ELASTIC}
        records.insert_calculations(
            {"structure_id": s, "kind": "elastic", "method": "mlip", "protocol_id": "p", "state": "completed",
             "results": results, **common}
            for s in dict.fromkeys(ids)
        )  # fmt: skip


def step(name: str, folder: Path, to: str | None) -> dict[str, Any]:
    """Run one step in this process and return what it took."""
    from stores.connection import connect
    from stores.exchange import export_archive, import_archives
    from stores.move import move

    archive = folder / "b.zip"
    where = folder / "second" if name == "import" else folder
    with connect("embedded", root=where) as connection:
        from inv_design.structures import files, identity  # noqa: F401 (loaded before the clock starts)

        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        cpu, wall = time.process_time(), time.perf_counter()
        if name == "export":
            counts = export_archive(connection, archive, campaigns=["b"])["counts"]
            number = sum(counts.values())
        elif name == "import":
            result = import_archives(connection, [archive])
            number = sum(entry["new"] for entry in result["collections"].values())
        else:
            with connect(to or "embedded:moved.sqlite", root=folder, alias="to") as target:
                number = move(connection, target)["documents"]
        took = {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"records": number, **took, "memory_mb": grown / 1024}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10000], help="candidates")
    parser.add_argument("--to", help="an empty server database to move to, with one size only")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step == "write":
        write(options.folder, options.sizes[0])
        return
    if options.step:
        print(json.dumps(step(options.step, options.folder, options.to)))
        return
    measured = []
    for size in options.sizes:
        with tempfile.TemporaryDirectory() as folder:
            for name in ("write", "export", "import", "move"):
                command = [sys.executable, "-W", "ignore", __file__, "--step", name, "--folder", folder]
                command += ["--sizes", str(size), *(["--to", options.to] if options.to else [])]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    sys.exit(done.stderr)
                if name == "write":
                    continue
                row = {"candidates": size, "step": name, **json.loads(done.stdout.splitlines()[-1])}
                if name == "export":
                    row["archive_mb"] = (Path(folder) / "b.zip").stat().st_size / 1e6
                measured.append(row)
                rate = row["records"] / row["cpu_s"]
                print(
                    f"{size:>7} candidates  {name:<6}  {row['records']:>7} records  {row['cpu_s']:7.1f} s CPU"
                    f"  {row['wall_s']:7.1f} s  {rate:7.0f} records/s CPU  {row['memory_mb']:6.0f} MB",
                    flush=True,
                )
    options.output.write_text(json.dumps(measured, indent=1) + "\n")


if __name__ == "__main__":
    main()
