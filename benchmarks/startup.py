"""Seconds from a cold process to the first results, ours and peers.

    python benchmarks/startup.py --cores 0

Import, building or loading the model, and the first forces of 27 atoms through the ASE calculator:
with an empty and with a warm persistent cache of compiled programs where the code has one. Then the
time from the command `mlip train` to the end of its first step. Prints a table and writes
`benchmarks/results/startup.json`.
"""

import argparse
import json
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
KEYS = ("import_seconds", "init_seconds", "first_seconds", "second_seconds", "total_seconds")
COLUMNS = {
    "size": ("size", ""),
    "model": ("model", ""),
    "cache": ("cache", ""),
    "import s": ("import_seconds", ".2f"),
    "model s": ("init_seconds", ".2f"),
    "first forces s": ("first_seconds", ".2f"),
    "second s": ("second_seconds", ".3f"),
    "start to first forces s": ("total_seconds", ".2f"),
}
SAVE = """
import json, sys, mlip
task = json.loads(sys.argv[1])
config = mlip.NetworkConfig(cutoff=task["cutoff"], **task["network"])
mlip.save(mlip.untrained(config, task["species"]), sys.argv[2])
"""
FIRST_STEP = """
import sys
from mlip import TrainConfig, train
class FirstStep:
    def line(self, text): pass
    def update(self, progress, fraction, row): raise SystemExit(progress.step != 1)
train(TrainConfig(train=sys.argv[1], e0=sys.argv[2], out=sys.argv[3]), show=FirstStep())
"""


def cold_start(name, description, path, options):
    """Seconds of one fresh process."""
    worker = bench.Worker(bench.CODES[name], description, options)
    try:
        seconds = worker.ready | worker.prepare(path)
    finally:
        worker.quit()
    parts = ("import_seconds", "init_seconds", "graph_seconds", "first_seconds")
    seconds["total_seconds"] = sum(seconds[key] for key in parts)
    return {key: seconds[key] for key in KEYS}


def medians(runs):
    return {key: statistics.median(run[key] for run in runs) for key in KEYS}


def measure(name, size, description, path, options):
    """Rows of a code: with an empty cache, and with one that the run before has filled."""
    facts = {"model": name, "size": size}
    empty, warm = [], []
    try:
        for _ in range(options.repeats):
            with tempfile.TemporaryDirectory() as cache:
                options.variables = cached(cache)
                empty.append(cold_start(name, description, path, options))
                if name != "mace-torch":
                    warm.append(cold_start(name, description, path, options))
    except bench.Missing as reason:
        return bench.missing_rows({name: str(reason)}, size=size)
    rows = [{**facts, "cache": "empty" if warm else "none", **medians(empty)}]
    return rows + ([{**facts, "cache": "warm", **medians(warm)}] if warm else [])


def cached(folder):
    """Variables with which jax keeps every compiled program in a folder."""
    return {
        "JAX_COMPILATION_CACHE_DIR": str(folder),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def first_step(options, cache, folder):
    """Seconds from the start of a training to the end of its first step."""
    options.variables = cached(cache)
    data = [str(SHIPPED / name) for name in ("ethanol_train.xyz", "ethanol_isolated_atoms.xyz")]
    start = time.perf_counter()
    python(FIRST_STEP, [*data, str(folder)], options)
    return time.perf_counter() - start


def python(program, arguments, options):
    """Run a program of ours pinned to the cores; jax's warnings are kept from the screen."""
    subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=bench.environment(bench.CODES["ours unfolded"], options),
        preexec_fn=lambda: bench.pin(options),
        stderr=subprocess.PIPE,
        check=True,
    )


def training_rows(options):
    """Rows of the first training step with our defaults, cache empty and warm."""
    empty, warm = [], []
    for _ in range(options.repeats):
        with tempfile.TemporaryDirectory() as folder:
            cache = Path(folder) / "cache"
            empty.append(first_step(options, cache, Path(folder) / "one"))
            warm.append(first_step(options, cache, Path(folder) / "two"))
    facts = {"model": "ours", "what": "train to first step"}
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
            model = str(Path(folder) / f"{size}.safetensors")
            python(SAVE, [json.dumps(description), model], options)
            for name in options.models:
                more = {"model": model} if bench.CODES[name].environment is None else {}
                rows += measure(name, size, description | more, path, options)
    steps = training_rows(options)
    bench.show(rows, COLUMNS)
    for row in steps:
        print(f"training to its first step, cache {row['cache']}: {row['total_seconds']:.1f} s")
    bench.write("startup", options, rows, training=steps)


if __name__ == "__main__":
    main()
