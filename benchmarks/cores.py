"""Time of one evaluation of energy and forces on one core and on several, ours and mace-torch.

    python benchmarks/cores.py --cores 0,1

The same structures on each core alone and on all of them, in turns; gains are medians over the
turns. Ours spreads the atoms over as many host devices. What the cores themselves allow is measured
in the same turns by independent processes, one a core, all at once:
how much more they do than one alone, if every evaluation took as long as the slowest process's.
Prints a table and writes `benchmarks/results/cores.json`.
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
    singles, everything = [{core} for core in sorted(options.cores)], options.cores
    workers = []
    for some in (*singles, everything):
        settings = argparse.Namespace(**vars(options) | {"cores": some})
        able, missing = bench.start_with(path, [name], description, settings)
        if missing:
            bench.quit_all(dict(enumerate(workers)))
            return [
                row
                for count in (1, len(everything))
                for row in bench.missing_rows(missing, **facts, cores_used=count)
            ]
        workers.append(able[name])
    *single, spread = workers

    seconds, turns = {1: [], len(everything): []}, []
    with ThreadPoolExecutor(len(single)) as pool:
        for _ in range(options.repeats):
            alone, apart, together = take_turn(single, spread, pool)
            seconds[1] += alone
            seconds[len(everything)] += together
            turns.append([statistics.median(times) for times in (alone, apart, together)])
    rows = bench.measured_rows({1: single[0], len(everything): spread}, seconds, **facts)
    for row in rows:
        row |= {"cores_used": row["model"], "model": name}
    # The machine's speed changes from turn to turn.
    gain = [alone / together for alone, _, together in turns]
    possible = [len(single) * alone / apart for alone, apart, _ in turns]
    rows[1] |= {"speedup": statistics.median(gain), "apart": statistics.median(possible)}
    bench.quit_all(dict(enumerate(workers)))
    return rows


def take_turn(single, spread, pool):
    """Seconds of evaluations on each core alone, on all apart, and on all together."""
    count = bench.count_in_turn(single[0])
    alone = [second for worker in single for second in worker.run(count)]
    apart = list(map(max, *pool.map(lambda worker: worker.run(count), single)))
    return alone, apart, spread.run(count)


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
    bench.show(rows, COLUMNS)
    bench.write("cores", options, rows)


if __name__ == "__main__":
    main()
