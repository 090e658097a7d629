"""Structures that the benchmarks share, by name."""

from pathlib import Path

import ase
import ase.io
import numpy as np
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data.s22 import create_s22_system

PUBLIC = Path(__file__).parents[2] / "shared" / "data"  # third-party sets beside the repository
RATTLE = 0.05  # Å
SILICON = tuple(8 * n**3 for n in (2, 3, 4, 6, 8, 11))
LARGE = 8 * 24**3  # silicon atoms, for memory alone
NAMES = ("molecule", *(f"silicon{n}" for n in SILICON), "water")


def make(name):
    """`ase.Atoms` of a name, and a line that says what it is.

    `molecule` has 27 atoms, `siliconN` is a cubic cell of N atoms, `water` has 64 molecules.
    """
    if name == "molecule":
        frames, text = molecules(1)
        return frames[0], text
    if name == "water":
        return water()
    if name.startswith("silicon"):
        return silicon(int(name.removeprefix("silicon")))
    raise ValueError(f"no structure is called {name!r}; choose from {', '.join(NAMES)}")


def rattled(atoms, seed=0):
    atoms = atoms.copy()
    atoms.positions += np.random.default_rng(seed).normal(scale=RATTLE, size=(len(atoms), 3))
    return atoms


def silicon(n_atoms):
    """Diamond, 5.43 Å, as a cube of n³ cells of 8 atoms."""
    n = round((n_atoms / 8) ** (1 / 3))
    if 8 * n**3 != n_atoms:
        raise ValueError(f"silicon{n_atoms} is no cube of 8-atom cells; {(*SILICON, LARGE)} are")
    cell = bulk("Si", "diamond", a=5.43, cubic=True)
    return rattled(cell * (n, n, n)), f"silicon, {n_atoms} atoms"


def water():
    """64 molecules at 1 g/cm³: a frame of the public set, or molecules on a lattice."""
    path = PUBLIC / "water" / "data_0.xyz"
    if path.exists():
        return bare(ase.io.read(path, index=0)), "liquid water, 192 atoms"
    spacing = (18.015 / 0.60221) ** (1 / 3)  # Å between molecules of 1 g/cm³
    one = ase.Atoms("OH2", [(0, 0, 0), (0.757, 0.586, 0), (-0.757, 0.586, 0)], cell=[spacing] * 3)
    one.pbc = True
    return rattled(one * (4, 4, 4)), "made-up water, 192 atoms"


def molecules(count):
    """Frames of 3BPA (27 atoms) with labels, or of a rattled dimer with made-up ones."""
    path = PUBLIC / "3bpa" / "train_300K.xyz"
    if path.exists():
        frames = ase.io.read(path, index=f":{count}")
        # Labels near zero, so that random weights meet no huge loss.
        mean = np.mean([atoms.get_potential_energy() for atoms in frames])
        labels = [(a.get_potential_energy() - mean, a.get_forces()) for a in frames]
        return [labeled(bare(a), *label) for a, label in zip(frames, labels)], "3BPA, 27 atoms"
    dimer = create_s22_system("Indole-benzene_T-shape_complex")
    dimer.set_cell([50.0] * 3)
    rng = np.random.default_rng(1)
    frames = [
        labeled(rattled(dimer, seed), rng.normal(), rng.normal(size=(len(dimer), 3)))
        for seed in range(count)
    ]
    return frames, f"indole and benzene, {len(dimer)} atoms (3BPA is not at hand)"


def bare(atoms):
    """Elements, positions and cell alone."""
    return ase.Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)


def labeled(atoms, energy, forces):
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
    return atoms
