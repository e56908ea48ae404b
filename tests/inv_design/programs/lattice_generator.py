"""A small generator of its own, with nothing but the standard library: it knows neither this package nor its libraries.

It learns a bulk modulus and a volume of every element (``fit``) and writes CsCl crystals of the pairs of elements whose
mean modulus is nearest to the target (``sample``). ``--mode`` makes it misbehave as real programs do.
"""

import argparse
import io
import json
import os
import random
import re
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path


def read_extxyz(path):
    """Yield (symbols, volume, value) of the frames."""
    lines = Path(path).read_text().splitlines()
    while lines:
        count = int(lines[0])
        cell = [float(x) for x in re.search(r'Lattice="([^"]*)"', lines[1]).group(1).split()]
        (a, b, c, d, e, f, g, h, i) = cell
        volume = abs(a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g))
        value = float(re.search(r"bulk_modulus_vrh=(\S+)", lines[1]).group(1))
        yield [line.split()[0] for line in lines[2 : 2 + count]], volume, value
        lines = lines[2 + count :]


def fit(arguments):
    frames = list(read_extxyz(arguments.input))
    if arguments.replay:
        frames += list(read_extxyz(arguments.replay))
    elements = sorted({symbol for symbols, _, _ in frames for symbol in symbols})
    model = {symbol: [sum(f[2] for f in frames) / len(frames), 16.0] for symbol in elements}
    for _ in range(100):  # relaxation towards the mean of both elements' values = the crystal's
        for symbol in elements:
            own = [(symbols, volume, value) for symbols, volume, value in frames if symbol in symbols]
            errors = [value - sum(model[s][0] for s in symbols) / len(symbols) for symbols, _, value in own]
            model[symbol][0] += sum(errors) / len(errors)
            model[symbol][1] = sum(volume / len(symbols) for symbols, volume, _ in own) / len(own)
    if arguments.previous:
        model["@previous"] = [len(json.loads(Path(arguments.previous).read_text())), 0]
    if arguments.mode == "folder":
        folder = Path(arguments.model)
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "config.txt").write_text("layers 1\n")
        (folder / "checkpoints" / "last").write_text(json.dumps(model))
    elif arguments.mode != "nothing":
        Path(arguments.model).write_text(json.dumps(model))


def crystals(arguments):
    path = Path(arguments.model)
    model = json.loads((path / "checkpoints" / "last" if path.is_dir() else path).read_text())
    allowed = [e for e in arguments.elements.split(",") if e in model]
    pairs = [(a, b) for a in allowed for b in allowed if a < b]
    rng = random.Random(arguments.seed)
    rng.shuffle(pairs)
    pairs.sort(key=lambda p: round(abs((model[p[0]][0] + model[p[1]][0]) / 2 - arguments.target) / 20))
    for index in range(arguments.n):
        a, b = pairs[index % len(pairs)]
        mean = (model[a][0] + model[b][0]) / 2
        edge = (model[a][1] + model[b][1]) ** (1 / 3) * (1 + 0.02 * rng.random())
        yield a, b, edge, mean


def cif(index, crystal, extra=""):
    a, b, edge, mean = crystal
    lines = [f"data_{a}{b}_{index}"]
    lines += [f"_cell_length_{x} {edge:.6f}" for x in "abc"]
    lines += [f"_cell_angle_{x} 90" for x in ("alpha", "beta", "gamma")]
    lines += ["_symmetry_space_group_name_H-M 'P 1'", f"_inv_design_bulk_modulus_vrh {mean:.4f}", extra, "loop_"]
    lines += [f"_atom_site_{x}" for x in ("label", "type_symbol", "fract_x", "fract_y", "fract_z")]
    lines += [f"{a}1 {a} 0 0 0", f"{b}1 {b} 0.5 0.5 0.5", ""]
    return "\n".join(lines)


def extxyz(crystal):
    a, b, edge, mean = crystal
    return (
        f'2\nLattice="{edge} 0 0 0 {edge} 0 0 0 {edge}" Properties=species:S:1:pos:R:3 '
        f'bulk_modulus_vrh={mean} pbc="T T T"\n'
        f"{a} 0 0 0\n{b} {edge / 2} {edge / 2} {edge / 2}\n"
    )


def record(crystal):
    a, b, edge, mean = crystal
    sites = [{"species": [{"element": e, "occu": 1}], "abc": [x] * 3} for e, x in ((a, 0.0), (b, 0.5))]
    lattice = {"matrix": [[edge, 0, 0], [0, edge, 0], [0, 0, edge]]}
    return {"structure": {"lattice": lattice, "sites": sites}, "bulk_modulus_vrh": mean}


def write(path, kind, made, mode):
    if kind == "cif-dir":
        for i, crystal in enumerate(made):
            text = "rubbish" if mode == "rubbish" and i % 2 else cif(i, crystal)
            (path / f"{i:04d}.cif").write_text(text)
    elif kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for i, crystal in enumerate(made):
                archive.writestr(f"../../escape-{i}.cif" if mode == "escape" else f"{i}.cif", cif(i, crystal))
    elif kind == "tar":
        with tarfile.open(path, "w:gz") as archive:
            for i, crystal in enumerate(made):
                content = cif(i, crystal).encode()
                member = tarfile.TarInfo(f"../../escape-{i}.cif" if mode == "escape" else f"{i}.cif")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
            if mode == "escape":
                link = tarfile.TarInfo("link.cif")
                link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
                archive.addfile(link)
    elif kind == "extxyz":
        path.write_text("".join(map(extxyz, made)))
    elif kind == "csv":
        rows = ['"' + cif(i, crystal) + f'",{crystal[3]}\n' for i, crystal in enumerate(made)]
        path.write_text("cif,bulk_modulus_vrh\n" + "".join(rows))
    else:
        path.write_text(json.dumps([record(crystal) for crystal in made]))


def sample(arguments):
    made = list(crystals(arguments))
    path, kind, mode = Path(arguments.output), arguments.kind, arguments.mode
    print("sampling", len(made), "crystals")
    if mode == "half":
        write(path, kind, made[: len(made) // 2], mode)
        print("out of memory", file=sys.stderr)
        sys.exit(3)
    if mode == "hang":
        write(path, kind, made[:2], mode)
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        Path(arguments.pids).write_text(f"{os.getpid()} {child.pid}")
        time.sleep(600)
    if mode == "die":
        print("no accelerator found", file=sys.stderr)
        sys.exit(1)
    if mode == "few":
        made = made[: max(1, len(made) // 2)]
    write(path, kind, made, mode)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["fit", "sample"])
    for name in ("input", "replay", "previous", "model", "output", "elements", "pids"):
        parser.add_argument(f"--{name}", default="")
    parser.add_argument("--mode", default="")
    parser.add_argument("--kind", default="cif-dir")
    parser.add_argument("--n", type=int)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--target", type=float)
    arguments = parser.parse_args()
    {"fit": fit, "sample": sample}[arguments.command](arguments)


if __name__ == "__main__":
    main()
