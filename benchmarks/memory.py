"""Peak memory of an evaluation for growing silicon cells, ours and peers.

    python benchmarks/memory.py --cores 0 --atoms 10648
    python benchmarks/memory.py --models ours --atoms 110592 --out FILE

Every row is a fresh process: the most it had in RAM once the model was built, and how much more in
the end, the sum of which is the process's peak. Compiling counts and no compiled program is kept,
which is why every further atom costs less than the first ones. Prints a table and writes
`benchmarks/results/memory.json`.
"""

import argparse
import tempfile

import side_by_side as bench
import structures

NAMES = (bench.OURS, "ours unfolded", "mace-torch", "InstaDeep mlip")
COLUMNS = {
    "size": ("size", ""),
    "atoms": ("atoms", "d"),
    "model": ("model", ""),
    "MB": ("peak_megabytes", ".0f"),
    "of it beyond the model": ("megabytes", ".0f"),
    "kB a further atom": ("kilobytes_per_further_atom", ".1f"),
}


def measure(name, size, n_atoms, options, folder):
    atoms, _ = structures.make(f"silicon{n_atoms}")
    path = bench.write_frames([atoms], folder, f"silicon{n_atoms}")
    description = bench.task("inference", atoms.numbers, bench.SIZES[size])
    facts = {"size": size, "atoms": n_atoms}
    workers, absent = bench.start([name], description, options)
    able, missing = bench.prepare(workers, path)
    rows = bench.missing_rows(absent | missing, **facts)
    for worker in able.values():
        before = worker.ready["memory"]
        worker.run(2)
        used = worker.ran["memory"] - before
        rows.append(
            {
                "model": name,
                **facts,
                "megabytes": used / 1e6,
                "baseline_megabytes": before / 1e6,
                "peak_megabytes": (before + used) / 1e6,
                "versions": worker.ready["versions"],
            }
        )
    bench.quit_all(workers)
    return rows


def add_growth(rows):
    """Memory of each further atom, from the cell before."""
    before = {}
    for row in rows:
        key = row["model"], row["size"]
        if "megabytes" in row and key in before:
            last = before[key]
            grown = 1000 * (row["megabytes"] - last["megabytes"])
            row["kilobytes_per_further_atom"] = grown / (row["atoms"] - last["atoms"])
        if "megabytes" in row:
            before[key] = row


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=bench.names_of, default=["64x0e"])
    parser.add_argument("--models", type=bench.names_of, default=list(NAMES))
    parser.add_argument("--atoms", type=int, default=4096, help="largest cell")
    bench.add_options(parser)
    options = parser.parse_args()
    options.variables = {"MLIP_CACHE": "off"}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for size in options.sizes:
            for n_atoms in (*structures.SILICON, structures.LARGE):
                if n_atoms <= options.atoms:
                    for name in options.models:
                        rows += measure(name, size, n_atoms, options, folder)
    add_growth(rows)
    bench.show(rows, COLUMNS)
    bench.write("memory", options, rows)


if __name__ == "__main__":
    main()
