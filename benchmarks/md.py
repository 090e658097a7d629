"""Steps of molecular dynamics a second, by ASE and by our compiled loop.

    python benchmarks/md.py --cores 0

Velocity Verlet, 1 fs, silicon with random weights. Prints a table and writes
`benchmarks/results/md.json`.
"""

import argparse
import tempfile

import side_by_side as bench
import structures

BY_ASE = (bench.OURS, "ours unfolded", "mace-torch", "InstaDeep mlip")
COLUMNS = {
    "atoms": ("atoms", "d"),
    "size": ("size", ""),
    "model": ("model", ""),
    "by": ("by", ""),
    "steps/s": ("steps_per_second", ".1f"),
    "time of ours": ("ratio_to_ours", ".2f"),
}


def measure(n_atoms, size, options, folder):
    """Rows of all codes through ASE, then of our compiled loop."""
    atoms, _ = structures.make(f"silicon{n_atoms}")
    path = bench.write_frames([atoms], folder, f"silicon{n_atoms}")
    rows = []
    for what, by, names in (
        ("dynamics", "ASE", options.models),
        ("compiled dynamics", "compiled loop", options.models[:1]),
    ):
        description = bench.task(what, atoms.numbers, bench.SIZES[size])
        facts = {"atoms": n_atoms, "size": size, "by": by}
        rows += bench.compare(names, description, path, options, **facts)
    for row in rows:
        if "ms" in row:
            row["steps_per_second"] = 1000 * row.get("steps", 1) / row["ms"]
            row["ratio_to_ours"] = rows[0].get("steps_per_second", 0) / row["steps_per_second"]
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=bench.names_of, default=["64x0e"])
    parser.add_argument("--models", type=bench.names_of, default=list(BY_ASE), help="ours first")
    parser.add_argument("--atoms", type=lambda t: [int(n) for n in t.split(",")], default=[64, 216])
    bench.add_options(parser)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for size in options.sizes:
            for n_atoms in options.atoms:
                rows += measure(n_atoms, size, options, folder)
    bench.show(rows, COLUMNS)
    bench.write("md", options, rows)


if __name__ == "__main__":
    main()
