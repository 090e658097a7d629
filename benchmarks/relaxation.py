"""Evaluations and seconds to relax structures, ours side by side on the device and ASE's.

    python benchmarks/relaxation.py --cores 0

Ethanol at 600 K relaxes its positions, distorted silicon its cell too, to 0.01 eV/Å and 0.05 GPa,
with models that are trained for some minutes first. ASE's optimisers, with FrechetCellFilter for
cells, are driven by `mlip.Calculator` and end at the same criteria. Prints a table and writes
`benchmarks/results/relaxation.json`.
"""

import argparse
import os
import tempfile
import time

import side_by_side as bench

MAX_FORCE, MAX_STRESS, STEPS = 0.01, 0.05, 1000  # eV/Å, GPa
SETS = {
    "silicon": {"frames": "silicon_test.xyz", "cell": "full"},
    "ethanol": {"frames": "ethanol_test_600K.xyz", "cell": "fixed"},
}
COLUMNS = {
    "structures": ("structures", ""),
    "number": ("number", "d"),
    "optimiser": ("optimiser", ""),
    "converged": ("converged", "d"),
    "evaluations": ("evaluations", ".1f"),
    "most": ("most_evaluations", "d"),
    "s": ("seconds", ".2f"),
    "s compiling": ("compile_seconds", ".1f"),
}


def trained(name, minutes, folder):
    """A model of a set that ships with the package."""
    from mlip.model.mace.model import NetworkConfig
    from mlip.quickstart import data_file
    from mlip.training.loop import train
    from mlip.training.setup import TrainConfig

    atoms = data_file(f"{name}_isolated_atoms.xyz")
    return train(
        TrainConfig(
            train=str(data_file(f"{name}_train.xyz")),
            e0=str(atoms) if atoms.exists() else "auto",
            out=f"{folder}/{name}",
            max_minutes=minutes,
            network=NetworkConfig(channels=16),
        )
    )


def ours(potential, frames, cell, optimizer):
    """Evaluations of each structure, which have converged, and seconds without compiling."""
    from mlip.data.structure import from_ase
    from mlip.relaxation.relax import RelaxationConfig, relax

    config = RelaxationConfig(
        optimizer=optimizer, cell=cell, max_force=MAX_FORCE, max_stress=MAX_STRESS, steps=STEPS
    )
    structures, seconds = [from_ase(atoms) for atoms in frames], []
    for _ in range(2):
        begin = time.perf_counter()
        found = relax(potential, structures, config)
        seconds.append(time.perf_counter() - begin)
    evaluations = [result.steps + 1 for result in found]
    converged = [result.converged for result in found]
    return evaluations, converged, seconds[1], seconds[0] - seconds[1]


def by_ase(potential, frames, cell, optimizer):
    """The same by an optimiser of ASE."""
    import numpy as np
    from ase.filters import FrechetCellFilter

    from mlip.engines.ase import Calculator
    from mlip.units import GPA

    class Counting(Calculator):
        count = 0

        def calculate(self, *arguments, **settings):
            self.count += 1
            super().calculate(*arguments, **settings)

    calculator, evaluations, converged = Counting(potential), [], []
    begin = time.perf_counter()
    for number, frame in enumerate(frames):
        atoms, calculator.count, done = frame.copy(), 0, False
        atoms.calc = calculator
        if number == 0:
            atoms.get_forces()
            compiling = time.perf_counter() - begin
            begin = time.perf_counter()
        target = atoms if cell == "fixed" else FrechetCellFilter(atoms)
        for _ in optimizer(target, logfile=None).irun(fmax=0.0, steps=STEPS):
            done = np.linalg.norm(atoms.get_forces(), axis=1).max() <= MAX_FORCE
            if cell != "fixed":
                done = done and np.abs(atoms.get_stress()).max() <= MAX_STRESS * GPA
            if done:
                break
        evaluations.append(calculator.count)
        converged.append(done)
    return evaluations, converged, time.perf_counter() - begin, compiling


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=5.0, help="of training each model")
    parser.add_argument("--silicon", help="a trained model of silicon")
    parser.add_argument("--ethanol", help="a trained model of ethanol")
    parser.add_argument("--frames", type=int, default=16, help="structures of each set")
    bench.add_options(parser)
    options = parser.parse_args()
    os.sched_setaffinity(0, options.cores)

    import ase.io
    from ase.optimize import FIRE, LBFGS

    from mlip.model.file import load_model
    from mlip.quickstart import data_file

    rows = []
    for name, settings in SETS.items():
        model = getattr(options, name)
        with tempfile.TemporaryDirectory() as folder:
            potential = load_model(model) if model else trained(name, options.minutes, folder)
        frames = ase.io.read(data_file(settings["frames"]), ":")
        frames = frames[:: max(len(frames) // options.frames, 1)][: options.frames]
        frames = [frame for frame in frames if len(frame) > 1]
        for label, run, optimizer in (
            ("ours, L-BFGS", ours, "lbfgs"),
            ("ours, FIRE", ours, "fire"),
            ("ASE LBFGS", by_ase, LBFGS),
            ("ASE FIRE", by_ase, FIRE),
        ):
            counts, converged, seconds, compiling = run(
                potential, frames, settings["cell"], optimizer
            )
            rows.append({
                "structures": name,
                "number": len(frames),
                "optimiser": label,
                "converged": sum(converged),
                "evaluations": sum(counts) / len(counts),
                "most_evaluations": max(counts),
                "seconds": seconds,
                "compile_seconds": compiling,
            })  # fmt: skip
    bench.show(rows, COLUMNS)
    bench.write("relaxation", options, rows)


if __name__ == "__main__":
    main()
