"""How the time of an evaluation grows with atoms, neighbours and channels, ours and mace-torch's.

    python benchmarks/scaling.py --cores 0

Silicon, energy and forces, the graph at hand. The sizes and codes of each growth take turns, peers
up to the number of atoms that leaves memory for the rest. An exponent is the slope of a line
through the logarithms. Prints a table and writes `benchmarks/results/scaling.json`.
"""

import argparse
import tempfile

import numpy as np
import side_by_side as bench
import structures

ATOMS = structures.SILICON
CUTOFFS = (3.5, 4.0, 5.0, 6.0, 7.0)  # Å
CHANNELS = (16, 32, 64, 128, 256)
FIXED = 216  # atoms while something else grows
NAMES = (bench.OURS, "mace-torch")
COLUMNS = {
    "model": ("model", ""),
    "growing": ("growing", ""),
    "atoms": ("atoms", "d"),
    "neighbours": ("neighbors", ".1f"),
    "channels": ("channels", "d"),
    "ms": ("ms", ".2f"),
}


def measure(growing, sizes, options, folder):
    """Rows of all sizes of one growth."""
    workers, missing, described = {}, [], {}
    for size in sizes:
        peers = growing != "atoms" or size <= options.peers_up_to
        names = [name for name in options.models if peers or name == bench.OURS]
        facts = {"atoms": FIXED, "cutoff": bench.CUTOFF, "channels": 64} | {growing: size}
        facts["growing"] = "neighbors" if growing == "cutoff" else growing
        name = f"silicon{facts['atoms']}"
        atoms, _ = structures.make(name)
        path = bench.write_frames([atoms], folder, name)
        network = bench.NETWORK | {"channels": facts["channels"]}
        description = bench.task("inference", atoms.numbers, network, cutoff=facts["cutoff"])
        able, unable = bench.start_with(path, names, description, options)
        described[size] = facts
        workers |= {(size, model): worker for model, worker in able.items()}
        missing += bench.missing_rows(unable, **facts)
    rows = bench.measured_rows(workers, bench.take_turns(workers, options.repeats))
    bench.quit_all(workers)
    for row in rows:
        size, row["model"] = row["model"]
        row |= described[size]
        row["neighbors"] = row["edges"] / row["atoms"]
    return rows + missing


def exponent(rows, key, model):
    """Slope of log(time) over log(size), by least squares."""
    rows = [row for row in rows if row["model"] == model and "ms" in row]
    sizes, times = ([row[k] for row in rows] for k in (key, "ms"))
    return float(np.polyfit(np.log(sizes), np.log(times), 1)[0]) if len(rows) > 1 else None


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=bench.names_of, default=NAMES)
    parser.add_argument("--atoms", type=numbers(int), default=ATOMS)
    parser.add_argument("--peers-up-to", type=int, default=4096, help="atoms")
    parser.add_argument("--cutoffs", type=numbers(float), default=CUTOFFS)
    parser.add_argument("--channels", type=numbers(int), default=CHANNELS)
    bench.add_options(parser, repeats=3, devices=("cpu", "gpu"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        growth = {
            "atoms": measure("atoms", options.atoms, options, folder),
            "neighbors": measure("cutoff", options.cutoffs, options, folder),
            "channels": measure("channels", options.channels, options, folder),
        }
    rows = [row for grown in growth.values() for row in grown]
    exponents = {
        model: {key: exponent(grown, key, model) for key, grown in growth.items()}
        for model in options.models
    }
    bench.show(rows, COLUMNS)
    for model, of in exponents.items():
        for key, value in of.items():
            fit = f"grows as {key} to the power {value:.2f}" if value else f"with {key}: no fit"
            print(f"{model}: time {fit}")
    bench.write("scaling", options, rows, exponents=exponents)


def numbers(kind):
    return lambda text: [kind(part) for part in text.split(",")]


if __name__ == "__main__":
    main()
