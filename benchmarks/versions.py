"""Speed of this package on several Pythons, each with its jax, and what our options for XLA do.

    python benchmarks/versions.py --cores 0 --pythons py311/bin/python,py313/bin/python

Every Python has the package installed. Evaluation is that of `mlip.Calculator`, positions new each
time; dynamics and relaxation are the compiled loops. All Pythons take turns, once with our options
and once as jax compiles by itself; ratios are to the first Python with our options. Prints a table
and writes `benchmarks/results/versions.json`.
"""

import argparse
import statistics
import tempfile

import side_by_side as bench
import structures

SMALL, LARGE = bench.SIZES
# (what, structure, size, settings)
TASKS = (
    ("calculator", "molecule", SMALL, {}),
    ("calculator", "silicon512", SMALL, {}),
    ("calculator", "water", SMALL, {}),
    ("calculator", "molecule", LARGE, {}),
    ("calculator", "silicon64", LARGE, {}),
    ("training", "molecule", SMALL, {}),
    ("training", "molecule", LARGE, {}),
    ("compiled dynamics", "molecule", SMALL, {"steps": 50, "scale": 0.001}),
    ("compiled dynamics", "water", SMALL, {"steps": 20, "scale": 0.001}),
    ("relaxation", "silicon64", SMALL, {"steps": 20, "scale": 0.001}),
)
BATCH = 10  # frames of a training step
COLUMNS = {
    "task": ("task", ""),
    "structure": ("structure", ""),
    "size": ("size", ""),
    "jax": ("jax", ""),
    "options": ("options", ""),
    "ms": ("ms", ".2f"),
    "ratio": ("ratio", ".2f"),
    "first call s": ("first_seconds", ".1f"),
    "ratio ": ("first_ratio", ".2f"),
}


def measure(what, structure, size, settings, pythons, options):
    """Rows of one task."""
    frames = (
        structures.molecules(BATCH)[0] if what == "training" else [structures.make(structure)[0]]
    )
    folded = what != "training"
    network = bench.SIZES[size]
    description = bench.task(what, frames[0].numbers, network, folded=folded, **settings)
    names = []
    for python in pythons:
        for kind, extra in (("ours", {}), ("jax's own", {"as_jax_compiles": True})):
            names.append((python, kind))
            bench.CODES[names[-1]] = bench.Code(kind, "ours_worker.py", extra=extra, python=python)
    facts = {"task": what, "structure": structure, "atoms": len(frames[0]), "size": size}
    with tempfile.TemporaryDirectory() as folder:
        path = bench.write_frames(frames, folder, "frames")
        workers, missing = bench.start_with(path, names, description, options)
        seconds = bench.take_turns(workers, options.repeats)
    rows = []
    for name, times in seconds.items():
        worker = workers[name]
        rows.append(
            facts
            | {
                "options": name[1],
                **worker.prepared["facts"],
                "jax": worker.ready["versions"]["jax"],
                "ms": 1000 * statistics.median(times),
                "ms_quartiles": [1000 * q for q in statistics.quantiles(times, n=4)],
                "evaluations": len(times),
                "first_seconds": worker.prepared["graph_seconds"]
                + worker.prepared["first_seconds"],
                "versions": worker.ready["versions"],
            }
        )
    bench.quit_all(workers)
    for row in rows:
        row["ratio"] = row["ms"] / rows[0]["ms"]
        row["first_ratio"] = row["first_seconds"] / rows[0]["first_seconds"]
    return rows + [
        facts | {"options": name[1], "jax": "", "missing": why} for name, why in missing.items()
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pythons", type=bench.names_of, required=True)
    parser.add_argument("--tasks", type=bench.names_of, default=sorted({t[0] for t in TASKS}))
    bench.add_options(parser, repeats=7)
    options = parser.parse_args()
    # Programs are compiled anew, and by one version alone.
    options.variables = {"MLIP_CACHE": "off"}
    rows = []
    for task in TASKS:
        if task[0] in options.tasks:
            new = measure(*task, options.pythons, options)
            bench.show(new, COLUMNS)
            rows += new
    bench.write("versions", options, rows)


if __name__ == "__main__":
    main()
