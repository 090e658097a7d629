"""Train a potential for silicon with stresses, measure it, and relax a crystal with ASE.

python examples/01_train_and_measure.py --minutes 3
"""

import argparse

from ase.build import bulk
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS

import mlip
from mlip.quickstart import data_file

parser = argparse.ArgumentParser()
parser.add_argument("--minutes", type=float, default=3.0)
parser.add_argument("--out", default="silicon_run")
args = parser.parse_args()

potential = mlip.train(
    mlip.TrainConfig(
        train=str(data_file("silicon_train.xyz")),
        valid="0.1",
        out=args.out,
        max_minutes=args.minutes,
        network=mlip.NetworkConfig(channels=16, l_max=2),
    )
)

structures = mlip.read(data_file("silicon_test.xyz"))
errors = mlip.metrics(mlip.parity(structures, potential.predict(structures)))
print(f"energy {errors['energy_rmse_mev_per_atom']:.2f} meV/atom")
print(f"forces {errors['forces_rmse_mev_per_A']:.1f} meV/Å")
print(f"stress {errors['stress_rmse_mev_per_A3']:.2f} meV/Å³")

crystal = bulk("Si", a=5.6)
crystal.calc = mlip.Calculator(potential, dtype="float64")
BFGS(FrechetCellFilter(crystal), logfile=None).run(fmax=0.001, steps=100)
print(f"lattice constant {(4 * crystal.get_volume()) ** (1 / 3):.3f} Å")
