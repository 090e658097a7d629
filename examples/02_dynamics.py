"""Constant-energy dynamics of ethanol, by ASE and compiled by jax-md, with the same potential.

python examples/02_dynamics.py --minutes 2
"""

import argparse
import time

import numpy as np
from ase import units
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet

import mlip
from mlip.quickstart import data_file
from mlip.simulation.dynamics import run_nve

parser = argparse.ArgumentParser()
parser.add_argument("--minutes", type=float, default=2.0, help="of training")
parser.add_argument("--steps", type=int, default=500)
parser.add_argument("--out", default="ethanol_run")
args = parser.parse_args()

potential = mlip.train(
    mlip.TrainConfig(
        train=str(data_file("ethanol_train.xyz")),
        e0=str(data_file("ethanol_isolated_atoms.xyz")),
        out=args.out,
        max_minutes=args.minutes,
        network=mlip.NetworkConfig(channels=16, l_max=2),
    )
).with_dtype("float64")

start = mlip.read(data_file("ethanol_test_300K.xyz"))[0]
atoms = mlip.to_ase(start)
thermalize_momenta(atoms, temperature_K=300, rng=np.random.default_rng(0))
velocities = atoms.get_velocities() * units.fs

clock = time.perf_counter()
trajectory = run_nve(potential, start, velocities, timestep=0.5, n_steps=args.steps)
total = trajectory.potential_energy + trajectory.kinetic_energy
print(f"jax-md: {time.perf_counter() - clock:.1f} s, compilation included")
print(f"largest change of the total energy {1000 * np.ptp(total) / len(atoms):.4f} meV/atom")

atoms.calc = mlip.Calculator(potential)
clock = time.perf_counter()
VelocityVerlet(atoms, 0.5 * units.fs).run(args.steps)
print(f"ASE:    {time.perf_counter() - clock:.1f} s, compilation included")
apart = np.abs(atoms.positions - trajectory.positions[-1]).max()
print(f"largest distance between the two after {args.steps} steps {apart:.1e} Å")
