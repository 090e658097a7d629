"""Exact forces have no net force, and none is left by rounding, on any route to them."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from conftest import make_potential, make_structure

from mlip.data.structure import from_ase, to_ase
from mlip.engines.ase import Calculator
from mlip.relaxation.relax import RelaxationConfig, relax
from mlip.simulation.dynamics import DynamicsConfig, run

pytestmark = pytest.mark.versions
DTYPES = ("float32", "float64")
KINDS = ("molecule", "slab", "crystal", "primitive")
SMALLEST = 1e-9  # eV/Å


def net(forces):
    return np.abs(np.sum(forces, axis=0)).max()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["vectors", "densities folded"])
def test_every_structure_of_a_batch_is_without(name, dtype):
    structures = [make_structure(kind) for kind in KINDS]
    predictions = make_potential(name, dtype).predict(structures)
    assert all(found.forces.any() for found in predictions)
    assert max(net(found.forces) for found in predictions) < SMALLEST


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_calculator_gives_none(dtype):
    calculator = Calculator(make_potential("default", dtype))
    for kind in ("molecule", "slab"):
        atoms = to_ase(make_structure(kind))
        atoms.calc = calculator
        assert net(atoms.get_forces()) < SMALLEST


@pytest.mark.parametrize("dtype", DTYPES)
def test_dynamics_and_relaxation_are_without(silicon_potential, dtype):
    structures = [from_ase(atoms) for atoms in silicon_crystals()]
    config = DynamicsConfig(
        ensemble="nve", temperature=(300.0,), dtype=dtype, steps=5, save_every=1
    )
    for trajectory in run(silicon_potential, structures, config):
        assert max(net(frame.forces) for frame in trajectory.frames) < SMALLEST
    config = RelaxationConfig(max_force=0.1, dtype=dtype, cell="full")
    assert (
        max(net(found.forces) for found in relax(silicon_potential, structures, config)) < SMALLEST
    )


def silicon_crystals():
    for seed in range(2):
        atoms = bulk("Si", cubic=True)
        atoms.rattle(0.05, seed=seed)
        yield atoms


def test_acoustic_modes_stand_still_in_float32(silicon_potential):
    """Frequencies at Γ by phonopy, of a crystal that was rattled and then relaxed."""
    phonopy = pytest.importorskip("phonopy")
    from phonopy.structure.atoms import PhonopyAtoms

    start = from_ase(next(silicon_crystals()))
    tight = RelaxationConfig(dtype="float64", max_force=1e-6, max_stress=1e-4, cell="full")
    relaxed = to_ase(relax(silicon_potential, start, tight).structure)
    cell = PhonopyAtoms(
        symbols=relaxed.get_chemical_symbols(),
        cell=relaxed.cell.array,
        scaled_positions=relaxed.get_scaled_positions(),
    )
    phonons = phonopy.Phonopy(cell, supercell_matrix=np.diag([2, 2, 1]), is_symmetry=False)
    phonons.generate_displacements(distance=0.01)
    calculator, forces = Calculator(silicon_potential, dtype="float32"), []
    for supercell in phonons.supercells_with_displacements:
        atoms = Atoms(
            supercell.symbols, cell=supercell.cell, positions=supercell.positions, pbc=True
        )
        atoms.calc = calculator
        forces.append(atoms.get_forces())
    phonons.forces = forces
    phonons.produce_force_constants()
    frequencies = np.sort(np.abs(phonons.get_frequencies([0.0, 0.0, 0.0])))
    assert frequencies[:3].max() < 1e-4  # THz
    assert frequencies[3] > 0.5
