"""Seconds from a cold process to the first results, ours and peers.

    python benchmarks/startup.py --cores 0,1

Import, loading a model file that the code itself has written, and the first forces of 27 atoms
through the ASE calculator: with an empty folder of compiled programs and with one that a process
before has filled, where the code has one. Then the time from the command `mlip train` to the end of
its first step, on all of the cores. Prints a table and writes `benchmarks/results/startup.json`.
"""

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import side_by_side as bench
import structures
from accuracy import SHIPPED

NAMES = ("ours unfolded", "mace-torch", "InstaDeep mlip")
# The variable that names the folder of compiled programs, all else as a user finds it. InstaDeep's
# keeps them only where jax is told a folder.
CACHES = {"ours unfolded": "MLIP_CACHE", "InstaDeep mlip": "JAX_COMPILATION_CACHE_DIR"}
KEYS = ("import_seconds", "load_seconds", "first_seconds", "steady_seconds", "total_seconds")
COLUMNS = {
    "size": ("size", ""),
    "model": ("model", ""),
    "cache": ("cache", ""),
    "import s": ("import_seconds", ".2f"),
    "load s": ("load_seconds", ".2f"),
    "first forces s": ("first_seconds", ".2f"),
    "later s": ("steady_seconds", ".3f"),
    "start to first forces s": ("total_seconds", ".2f"),
}
FIRST_STEP = """
import sys, time
import jax
from mlip.cli import main
from mlip.training import loop

step = loop.train_step

def first_step(*arguments):
    jax.block_until_ready(step(*arguments))
    print("first step at", time.time())
    raise SystemExit

loop.train_step = first_step
main(sys.argv[1:])
"""


def save(name, description, path, options):
    """Have a code write a model of random weights to a file that its own loader reads."""
    bench.Worker(bench.CODES[name], description | {"save": str(path)}, options).quit()


def cold_start(name, description, path, options):
    """Seconds of one fresh process."""
    worker = bench.Worker(bench.CODES[name], description, options)
    try:
        seconds = worker.ready | worker.prepare(path)
    finally:
        worker.quit()
    seconds["load_seconds"] = seconds["init_seconds"]
    parts = ("import_seconds", "load_seconds", "graph_seconds", "first_seconds")
    seconds["total_seconds"] = sum(seconds[key] for key in parts)
    return {key: seconds[key] for key in KEYS}


def medians(runs):
    return {key: statistics.median(run[key] for run in runs) for key in KEYS}


def measure(name, size, description, path, options, folder):
    """Rows of a code: with an empty cache, and with one that the run before has filled."""
    facts = {"model": name, "size": size}
    model = Path(folder) / f"{size} {name}"
    empty, warm = [], []
    try:
        options.variables = {"MLIP_CACHE": "off"}
        save(name, description, model, options)
        description = description | {"load": str(model)}
        for _ in range(options.repeats):
            with tempfile.TemporaryDirectory() as cache:
                options.variables = {CACHES[name]: cache} if name in CACHES else {}
                empty.append(cold_start(name, description, path, options))
                if name in CACHES:
                    warm.append(cold_start(name, description, path, options))
    except bench.Missing as reason:
        return bench.missing_rows({name: str(reason)}, size=size)
    rows = [{**facts, "cache": "empty" if warm else "none", **medians(empty)}]
    return rows + ([{**facts, "cache": "warm", **medians(warm)}] if warm else [])


def first_step(cache, folder, options):
    """Seconds from the command `mlip train` to the end of its first step."""
    options.variables = {"MLIP_CACHE": str(cache)}
    data = [str(SHIPPED / name) for name in ("ethanol_train.xyz", "ethanol_isolated_atoms.xyz")]
    command = ["train", "--train", data[0], "--e0", data[1], "--out", str(folder)]
    start = time.time()
    run = subprocess.run(
        [sys.executable, "-c", FIRST_STEP, *command],
        env=bench.environment(bench.CODES["ours unfolded"], options),
        preexec_fn=lambda: bench.pin(options),
        capture_output=True,
        check=True,
        text=True,
    )
    return float(re.search(r"first step at ([\d.]+)", run.stdout)[1]) - start


def training_rows(options):
    """Rows of the first training step with our defaults, cache empty and warm."""
    empty, warm = [], []
    for _ in range(options.repeats):
        with tempfile.TemporaryDirectory() as folder:
            cache = Path(folder) / "cache"
            empty.append(first_step(cache, Path(folder) / "one", options))
            warm.append(first_step(cache, Path(folder) / "two", options))
    facts = {"model": "ours", "what": "`mlip train` to the end of its first step"}
    return [
        {**facts, "cache": "empty", "total_seconds": statistics.median(empty)},
        {**facts, "cache": "warm", "total_seconds": statistics.median(warm)},
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=bench.names_of, default=["64x0e"])
    parser.add_argument("--models", type=bench.names_of, default=list(NAMES))
    bench.add_options(parser, repeats=3)
    options = parser.parse_args()
    atoms, _ = structures.make("molecule")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = bench.write_frames([atoms], folder, "molecule")
        for size in options.sizes:
            description = bench.task("calculator", atoms.numbers, bench.SIZES[size])
            for name in options.models:
                rows += measure(name, size, description, path, options, folder)
    steps = training_rows(options)
    bench.show(rows, COLUMNS)
    for row in steps:
        print(f"{row['what']}, cache {row['cache']}: {row['total_seconds']:.1f} s")
    bench.write("startup", options, rows, training=steps)


if __name__ == "__main__":
    main()
