"""A network of your own: invariant message passing, trained on ethanol and used everywhere.

python examples/05_own_network.py --minutes 3
"""

import argparse

import flax.linen as nn
import jax.numpy as jnp
from ase import units
from ase.md.verlet import VelocityVerlet

import mlip
from mlip.quickstart import data_file
from mlip.report.fit import report_training


class Invariant(nn.Module):
    """Continuous-filter convolutions over distances, as SchNet (Schütt et al. 2017).

    A network is a flax module with `cutoff` and `n_species`, which takes a graph and gives an
    energy for each atom, in any unit. `layers` times the cutoff is how far it sees.
    """

    cutoff: float = 4.0  # Å
    features: int = 32
    layers: int = 2
    n_species: int = 0  # filled in with the number of elements

    @nn.compact
    def __call__(self, graph):
        distance = jnp.sqrt((graph.displacement**2).sum(axis=-1, keepdims=True))
        weight = mlip.smooth_cutoff(distance, self.cutoff, 5)  # 0 for padding, too
        centres = jnp.linspace(0.5, self.cutoff, 16)
        radial = jnp.exp(-4 * (distance - centres) ** 2)
        x = nn.Embed(self.n_species, self.features)(graph.species)
        for _ in range(self.layers):
            filters = nn.Dense(self.features)(nn.silu(nn.Dense(self.features)(radial)))
            messages = nn.Dense(self.features)(x)[graph.neighbors] * filters * weight
            x += nn.Dense(self.features)(nn.silu(nn.Dense(self.features)(messages.sum(axis=1))))
        return nn.Dense(1)(nn.silu(nn.Dense(self.features)(x)))[:, 0]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=3.0, help="of training")
    parser.add_argument("--steps", type=int, default=200, help="of dynamics")
    parser.add_argument("--out", default="own_run")
    args = parser.parse_args()

    config = mlip.TrainConfig(
        train=str(data_file("ethanol_train.xyz")),
        e0=str(data_file("ethanol_isolated_atoms.xyz")),
        out=args.out,
        max_minutes=args.minutes,
        optimizer=mlip.OptimizerConfig(optimizer="adam", learning_rate=0.003),
    )
    mlip.train(config, model=Invariant())
    report_training(args.out)

    # A model file never imports code: the class is given, or was registered.
    potential = mlip.load(f"{args.out}/model.safetensors", dtype="float64", model=Invariant)
    frames = mlip.read(data_file("ethanol_test_300K.xyz"))
    errors = mlip.metrics(mlip.parity(frames, potential.predict(frames)))
    print(f"forces {errors['forces_rmse_mev_per_A']:.1f} meV/Å")

    settings = mlip.DynamicsConfig(ensemble="nve", temperature=(300.0,), steps=args.steps)
    print(mlip.run(potential, frames[0], settings).stopped or "dynamics ended as asked")
    found = mlip.relax(potential, frames[0], mlip.RelaxationConfig(max_force=0.02, steps=300))
    print(f"relaxed to {found.energy:.3f} eV in {found.steps} steps")

    atoms = mlip.to_ase(frames[0])
    atoms.calc = mlip.Calculator(potential)
    VelocityVerlet(atoms, 0.5 * units.fs).run(5)
    print(f"energy through ASE {atoms.get_potential_energy():.3f} eV")


if __name__ == "__main__":
    main()
