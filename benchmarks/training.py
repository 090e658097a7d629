"""Time of a training step on a batch of 10 frames of 27 atoms, ours and peers.

    python benchmarks/training.py --cores 0

A step is forward, loss of energies and forces, gradient, AMSGrad and running average; nequix has a
size of its own. Prints a table and writes `benchmarks/results/training.json`.
"""

import argparse
import tempfile

import side_by_side as bench
import structures

NAMES = ("ours unfolded", "mace-torch", "InstaDeep mlip", "nequix mp-1")
COLUMNS = {
    "size": ("size", ""),
    "model": ("model", ""),
    "ms a step": ("ms", ".1f"),
    "frames/s": ("frames_per_second", ".1f"),
    "of ours": ("ratio_to_ours", ".2f"),
    "compile s": ("compile_seconds", ".1f"),
    "parameters": ("parameters", "d"),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=bench.names_of, default=list(bench.SIZES))
    parser.add_argument("--models", type=bench.names_of, default=list(NAMES))
    parser.add_argument("--batch", type=int, default=10, help="frames in the batch")
    bench.add_options(parser, devices=("cpu", "gpu"))
    options = parser.parse_args()
    frames, text = structures.molecules(options.batch)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = bench.write_frames(frames, folder, "batch")
        for size in [*options.sizes, bench.OWN]:
            facts = {"structure": text, "frames": len(frames), "size": size}
            description = bench.task("training", frames[0].numbers, bench.SIZES.get(size))
            names = bench.of_size(options.models, size)
            rows += bench.compare(names, description, path, options, **facts)
    bench.add_ratios(rows, options.sizes[0])
    for row in rows:
        if "ms" in row:
            row["frames_per_second"] = 1000 * len(frames) / row["ms"]
    bench.show(rows, COLUMNS)
    bench.write("training", options, rows)


if __name__ == "__main__":
    main()
