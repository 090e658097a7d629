"""Time of one evaluation of energy and forces, ours and peers, graph at hand.

    python benchmarks/inference.py --cores 0
    python benchmarks/inference.py --structures molecule,silicon64 --sizes 64x0e

Prints a table and writes `benchmarks/results/inference.json`. Peers are looked for in `--peers`;
see `peers/install.sh`. MACE's hyperparameters are equal in ours, mace-torch and InstaDeep's mlip;
nequix and apax run in sizes of their own. Also measures what the cores can do, and which share of
it our evaluation reaches.
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import side_by_side as bench
import structures

COLUMNS = {
    "structure": ("structure", ""),
    "size": ("size", ""),
    "model": ("model", ""),
    "ms": ("ms", ".2f"),
    "atoms/s": ("atoms_per_second", ".0f"),
    "of ours": ("ratio_to_ours", ".2f"),
    "compile s": ("compile_seconds", ".1f"),
    "Gflop": ("gflop", ".3f"),
    "of peak": ("share_of_peak", ".1%"),
    "of bandwidth": ("share_of_bandwidth", ".1%"),
}


def measure(names, size, files, options):
    """Rows of all codes for structures of the same elements."""
    numbers = next(iter(files.values()))[0].numbers
    workers, absent = bench.start(
        names, bench.task("inference", numbers, bench.SIZES.get(size)), options
    )
    for name, (atoms, path) in files.items():
        facts = {"structure": name, "atoms": len(atoms), "size": size}
        able, missing = bench.prepare(workers, path)
        seconds = bench.take_turns(able, options.repeats)
        yield from bench.measured_rows(able, seconds, **facts)
        yield from bench.missing_rows(missing | absent, **facts)
    bench.quit_all(workers)


def same_elements(files):
    """The files in groups of structures that hold the same elements."""
    groups = {}
    for name, (atoms, path) in files.items():
        groups.setdefault(tuple(sorted(set(atoms.numbers))), {})[name] = atoms, path
    return list(groups.values())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=bench.names_of, default=list(bench.SIZES))
    parser.add_argument("--structures", type=bench.names_of, default=list(structures.NAMES))
    parser.add_argument("--models", type=bench.names_of, default=list(bench.CODES))
    bench.add_options(parser, devices=("cpu", "gpu"))
    options = parser.parse_args()
    print("what the cores can do:", hardware := cores_can(options))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        for name in options.structures:
            atoms, _ = structures.make(name)
            files[name] = atoms, bench.write_frames([atoms], folder, name)
        for size, group in itertools.product([*options.sizes, bench.OWN], same_elements(files)):
            for row in measure(bench.of_size(options.models, size), size, group, options):
                if "ms" in row:
                    row["atoms_per_second"] = 1000 * row["atoms"] / row["ms"]
                rows.append(row)
                print(row["structure"], row["size"], row["model"], row.get("ms", "missing"))
    bench.add_ratios(rows, options.sizes[0])
    if options.device == "cpu":
        add_shares(rows, options, hardware)
    print()
    bench.show(rows, COLUMNS)
    bench.write("inference", options, rows, hardware=hardware)


def cores_can(options):
    """Rate of float32 matrix products and bandwidth of a large copy, in a process of its own."""
    return child("hardware.py", {}, options)


def add_shares(rows, options, hardware):
    """Arithmetic and memory of our evaluations, and the shares of the measured rates reached."""
    for row in rows:
        if row["model"] in (bench.OURS, "ours unfolded") and "ms" in row:
            network = bench.SIZES[row["size"]]
            wanted = {
                "network": network,
                "cutoff": bench.CUTOFF,
                "structure": row["structure"],
                "folded": row["model"] == bench.OURS,
            }
            counted = child("flops.py", wanted, options)
            row["gflop"] = counted["flops"] / 1e9
            row["gbyte"] = counted["bytes"] / 1e9
            row["share_of_peak"] = row["gflop"] / row["ms"] * 1000 / hardware["matmul_gflops"]
            row["share_of_bandwidth"] = row["gbyte"] / row["ms"] * 1000 / hardware["copy_gigabytes"]


def child(script, wanted, options):
    """The JSON that a script prints when it runs pinned to the cores."""
    code = bench.CODES["ours unfolded"]
    run = subprocess.run(
        [sys.executable, str(Path(__file__).parent / script), json.dumps(wanted)],
        env=bench.environment(code, options),
        preexec_fn=lambda: bench.pin(options),
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return json.loads(run.stdout)


if __name__ == "__main__":
    main()
