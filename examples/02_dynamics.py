"""Dynamics of ethanol: two replicas at two temperatures, then ASE from the same start.

python examples/02_dynamics.py --minutes 2
"""

import argparse

import numpy as np
from ase import units
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet

import mlip
from mlip.quickstart import data_file

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

# Several temperatures run side by side in one compiled program, each with its own random numbers.
settings = mlip.DynamicsConfig(ensemble="nvt", temperature=(200.0, 300.0), steps=args.steps)
for trajectory in mlip.run(potential, start, settings):
    mean = trajectory.column("temperature_K").mean()
    print(f"{mean:6.1f} K on average; {trajectory.stopped or 'ended as asked'}")

atoms = mlip.to_ase(start)
thermalize_momenta(atoms, temperature_K=300, rng=np.random.default_rng(0))
velocities = atoms.get_velocities() * units.fs
settings = mlip.DynamicsConfig(ensemble="nve", steps=args.steps, rest_centre=False)
trajectory = mlip.run(potential, start, settings, velocities)
total = trajectory.column("conserved_eV")
print(f"largest change of the total energy {1000 * np.ptp(total) / len(atoms):.4f} meV/atom")

atoms.calc = mlip.Calculator(potential)
VelocityVerlet(atoms, settings.timestep * units.fs).run(args.steps)
apart = np.abs(atoms.positions - trajectory.frames[-1].positions).max()
print(f"largest distance from ASE's trajectory after {args.steps} steps {apart:.1e} Å")
