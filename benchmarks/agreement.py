"""How well what is timed agrees with the unfolded network in float64, at equal parameters.

    python benchmarks/agreement.py --structures molecule,silicon512,water

Energies without E0 and forces of the folded potential in float32, as `inference.py` times it,
relative to the largest of the structure's atoms. Prints a table and writes
`benchmarks/results/agreement.json`.
"""

import argparse

import numpy as np
import side_by_side as bench
import structures

COLUMNS = {
    "size": ("size", ""),
    "structure": ("structure", ""),
    "energies": ("energies", ".1e"),
    "forces": ("forces", ".1e"),
}


def compare(size, name):
    """Largest differences of an atom's energy and of a force, relative to the largest of them."""
    import mlip
    from mlip.data.structure import from_ase

    atoms, _ = structures.make(name)
    structure = from_ase(atoms)
    config = mlip.NetworkConfig(cutoff=bench.CUTOFF, **bench.SIZES[size])
    exact = mlip.untrained(config, {int(z) for z in atoms.numbers}, dtype="float64")
    expected, found = exact(structure), mlip.fold(exact.with_dtype("float32"))(structure)
    row = {"size": size, "structure": name}
    for key in ("energies", "forces"):
        one, other = getattr(expected, key), getattr(found, key)
        row[key] = float(np.abs(other - one).max() / np.abs(one).max())
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=bench.names_of, default=list(bench.SIZES))
    parser.add_argument(
        "--structures", type=bench.names_of, default=["molecule", "silicon512", "water"]
    )
    bench.add_options(parser)
    options = parser.parse_args()
    bench.pin(options)
    rows = [compare(size, name) for size in options.sizes for name in options.structures]
    bench.show(rows, COLUMNS)
    bench.write("agreement", options, rows)


if __name__ == "__main__":
    main()
