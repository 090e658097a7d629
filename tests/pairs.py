"""A pair potential in the place of the network: cheap, and with known answers."""

from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np
from ase.build import bulk

from mlip.data.structure import from_ase
from mlip.model.contract import Model
from mlip.model.outputs import Outputs
from mlip.model.potential import Potential

DEPTH, MINIMUM, CUTOFF = 0.0104, 3.82, 5.5  # of argon: eV, Å, Å


@dataclass(frozen=True)
class LennardJones(Model):
    """Half of every pair's energy on each of its atoms, with a smooth end at the cutoff."""

    strength: float  # 0 is an ideal gas
    cutoff: float
    n_species: int = 1

    @property
    def reach(self):
        return self.cutoff

    def outputs(self, weights, graph, execution):
        squared = (graph.displacement**2).sum(axis=-1)
        near = squared < self.cutoff**2
        sixth = (MINIMUM**2 / jnp.where(near, squared, 1e4)) ** 3
        smooth = jnp.where(near, 1 - squared / self.cutoff**2, 0.0) ** 3
        pairs = self.strength * DEPTH * (sixth**2 - 2 * sixth) * smooth
        return Outputs(pairs.sum(axis=1) / 2)


def argon(strength=1.0, cutoff=CUTOFF, dtype="float64"):
    """Lennard-Jones argon."""
    one = np.ones(1)
    model, e0 = LennardJones(strength, cutoff), -3 * one
    return Potential(model, (18,), {}, e0, 0 * one, one, average_neighbors=1.0, dtype=dtype)


def crystal(repeat=2, lattice=5.3, rattle=0.05, skew=0.0, seed=0):
    """Argon in its cubic cell, with 4 repeat³ atoms."""
    atoms = bulk("Ar", "fcc", a=lattice, cubic=True).repeat(repeat)
    shear = np.eye(3) + skew * np.array([[0, 0.3, 0.1], [0, 0, 0.2], [0, 0, 0]])
    atoms.set_cell(atoms.cell.array @ shear, scale_atoms=True)
    structure = from_ase(atoms, name=f"argon{len(atoms)}")
    moved = np.random.default_rng(seed).normal(0, rattle, (len(atoms), 3))
    return replace(structure, positions=structure.positions + moved)
