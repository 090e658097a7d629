"""Steps of molecular dynamics a second, by ASE and by compiled loops, ours and the peers'.

    python benchmarks/md.py --cores 0

Velocity Verlet (InstaDeep's engine: its thermostat), 1 fs, 300 K, random weights. The bare call is
one evaluation of energy and forces with a table as wide as the neighbours within the cutoff.
Prints a table and writes `benchmarks/results/md.json`.
"""

import argparse
import tempfile

import side_by_side as bench
import structures

ROUTES = {
    "bare call": ("inference", (bench.OURS,)),
    "compiled loop": ("compiled dynamics", (bench.OURS, "InstaDeep mlip")),
    "ASE": ("dynamics", (bench.OURS, "mace-torch", "InstaDeep mlip")),
}
COLUMNS = {
    "structure": ("structure", ""),
    "size": ("size", ""),
    "model": ("model", ""),
    "by": ("by", ""),
    "steps/s": ("steps_per_second", ".1f"),
    "time of our loop": ("ratio_to_ours", ".2f"),
}


def measure(name, size, options, folder):
    """Rows of all codes by all routes."""
    atoms, text = structures.make(name)
    path = bench.write_frames([atoms], folder, name)
    rows = []
    for by, (what, codes) in ROUTES.items():
        description = bench.task(what, atoms.numbers, bench.SIZES[size])
        facts = {"structure": text, "atoms": len(atoms), "size": size, "by": by}
        codes = [code for code in codes if code in options.models]
        rows += bench.compare(codes, description, path, options, **facts)
    for row in rows:
        if "ms" in row:
            row["steps_per_second"] = 1000 * row.get("steps", 1) / row["ms"]
    loop = next(r for r in rows if r["by"] == "compiled loop" and r["model"] == bench.OURS)
    for row in rows:
        if "ms" in row and "ms" in loop:
            row["ratio_to_ours"] = loop["steps_per_second"] / row["steps_per_second"]
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = list(dict.fromkeys(code for _, codes in ROUTES.values() for code in codes))
    parser.add_argument("--sizes", type=bench.names_of, default=["64x0e"])
    parser.add_argument("--models", type=bench.names_of, default=names)
    parser.add_argument(
        "--structures",
        type=bench.names_of,
        default=["molecule", "water", "silicon512", "silicon4096"],
    )
    bench.add_options(parser)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for size in options.sizes:
            for name in options.structures:
                rows += measure(name, size, options, folder)
    bench.show(rows, COLUMNS)
    bench.write("md", options, rows)


if __name__ == "__main__":
    main()
