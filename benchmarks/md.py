"""Steps of molecular dynamics a second, by ASE and by compiled loops, ours and the peers'.

    python benchmarks/md.py --cores 0
    python benchmarks/md.py --structures silicon4096 --models ours,mace-torch --steps 20 --out FILE

Velocity Verlet, 1 fs, 300 K, random weights. All codes begin every trajectory at the same positions
and velocities. Their energies are scaled down by one factor: the forces of random weights differ a
hundredfold between codes, while atoms that are nearly free take the same path in all. The routes of
a structure take turns. The bare call is one evaluation of energy and forces with a table as wide as
the neighbours within the cutoff. Prints a table and writes `benchmarks/results/md.json`.
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
SCALE = 0.001  # of the energies of random weights
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
    common = {"structure": text, "atoms": len(atoms), "size": size}
    settings = {"scale": SCALE, "steps": options.steps}
    workers, missing = {}, []
    for by, (what, codes) in ROUTES.items():
        description = bench.task(what, atoms.numbers, bench.SIZES[size], **settings)
        codes = [code for code in codes if code in options.models]
        able, unable = bench.start_with(path, codes, description, options)
        workers |= {(by, code): worker for code, worker in able.items()}
        missing += bench.missing_rows(unable, **common, by=by)
    rows = bench.measured_rows(workers, bench.take_turns(workers, options.repeats), **common)
    bench.quit_all(workers)
    for row in rows:
        row["by"], row["model"] = row["model"]
        row["steps_per_second"] = 1000 * row.get("steps", 1) / row["ms"]
    rates = {(row["by"], row["model"]): row["steps_per_second"] for row in rows}
    ours = rates.get(("compiled loop", bench.OURS))
    for row in rows:
        row["ratio_to_ours"] = ours / row["steps_per_second"] if ours else None
    return rows + missing


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
    parser.add_argument("--steps", type=int, default=50, help="steps of a trajectory")
    bench.add_options(parser, devices=("cpu", "gpu"))
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for size in options.sizes:
            for name in options.structures:
                rows += measure(name, size, options, folder)
    bench.show(rows, COLUMNS)
    bench.write("md", options, rows, scale=SCALE)


if __name__ == "__main__":
    main()
