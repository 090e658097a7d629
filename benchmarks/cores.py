"""Time of one evaluation of energy and forces on one core and on several, ours and mace-torch.

    python benchmarks/cores.py --cores 0,1

The same structures on the first core alone and on all of them, in turns. Ours spreads the atoms
over as many host devices. What the cores themselves allow is measured by as many processes that
have nothing to do with one another, a core each, all at once: how much more they do together than
one alone. Prints a table and writes `benchmarks/results/cores.json`.
"""

import argparse
import statistics
import tempfile
from concurrent.futures import ThreadPoolExecutor

import side_by_side as bench
import structures

NAMES = (bench.OURS, "mace-torch")
COLUMNS = {
    "structure": ("structure", ""),
    "model": ("model", ""),
    "cores": ("cores_used", "d"),
    "ms": ("ms", ".2f"),
    "of one core": ("speedup", ".2f"),
    "processes apart": ("apart", ".2f"),
}


def measure(name, structure, options, folder):
    """Rows of a code for a structure, by number of cores."""
    atoms, _ = structures.make(structure)
    path = bench.write_frames([atoms], folder, structure)
    description = bench.task("inference", atoms.numbers)
    facts = {"structure": structure, "atoms": len(atoms)}
    workers, rows = {}, []
    for count in (1, len(options.cores)):
        some = set(sorted(options.cores)[:count])
        settings = argparse.Namespace(**vars(options) | {"cores": some})
        able, missing = bench.start_with(path, [name], description, settings)
        if able:
            workers[count] = able[name]
        rows += bench.missing_rows(missing, **facts, cores_used=count)
    seconds = bench.take_turns(workers, options.repeats)
    found = bench.measured_rows(workers, seconds, **facts)
    for row in found:
        row |= {"cores_used": row["model"], "model": name, "speedup": found[0]["ms"] / row["ms"]}
    bench.quit_all(workers)
    return found + rows


def apart(name, structure, options, folder):
    """How many times as much independent processes do on all cores as one does alone."""
    atoms, _ = structures.make(structure)
    path = bench.write_frames([atoms], folder, structure)
    description = bench.task("inference", atoms.numbers)
    workers = {}
    for core in sorted(options.cores):
        settings = argparse.Namespace(**vars(options) | {"cores": {core}})
        able, _ = bench.start_with(path, [name], description, settings)
        workers[core] = able[name]

    def turn(worker):
        return bench.take_turns({name: worker}, 1)[name]

    alone, together = [], []
    with ThreadPoolExecutor(len(workers)) as pool:
        for _ in range(options.repeats):
            alone += turn(workers[min(workers)])
            together += [second for some in pool.map(turn, workers.values()) for second in some]
    bench.quit_all(workers)
    return len(workers) * statistics.median(alone) / statistics.median(together)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=bench.names_of, default=NAMES)
    parser.add_argument(
        "--structures", type=bench.names_of, default=("water", "silicon512", "silicon1728")
    )
    bench.add_options(parser, repeats=15)
    options = parser.parse_args()
    if len(options.cores) < 2:
        parser.error("--cores names one core; give several, such as 0,1")
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            row
            for structure in options.structures
            for name in options.models
            for row in measure(name, structure, options, folder)
        ]
        for row in rows:
            if row["model"] == bench.OURS and row["cores_used"] > 1:
                row["apart"] = apart(bench.OURS, row["structure"], options, folder)
    bench.show(rows, COLUMNS)
    bench.write("cores", options, rows)


if __name__ == "__main__":
    main()
