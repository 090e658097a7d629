"""Forces and stress are the derivatives of the energy; all are smooth through the cutoff."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from conftest import make_structure, predict

from mlip.data.structure import Structure
from mlip.model.radial import bessel_basis, smooth_cutoff


def central_differences(potential, structure, deformed, step):
    """[(E(+step) − E(−step))/(2 step)] over the deformations, to fourth order in the step."""
    distances = (step, -step, 2 * step, -2 * step)
    frames = [deformed(structure, d, h) for d in range(deformed.count) for h in distances]
    energies = [p.energy for p in predict(potential, frames)]
    plus, minus, plus2, minus2 = np.array(energies).reshape(-1, 4).T
    return (8 * (plus - minus) - (plus2 - minus2)) / (12 * step)


class Displace:
    def __init__(self, structure):
        self.count = 3 * len(structure)

    def __call__(self, structure, index, distance):
        positions = structure.positions.copy()
        positions.flat[index] += distance
        return replace(structure, positions=positions)


class Strain:
    count = 6
    pairs = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))

    def __call__(self, structure, index, size):
        strain = np.zeros((3, 3))
        i, j = self.pairs[index]
        strain[i, j] += size / 2
        strain[j, i] += size / 2
        change = np.eye(3) + strain
        return replace(
            structure, positions=structure.positions @ change, cell=structure.cell @ change
        )


def test_forces_are_minus_the_gradient_of_the_energy(potential, structure):
    forces = predict(potential, [structure])[0].forces.ravel()
    numerical = -central_differences(potential, structure, Displace(structure), 2e-3)
    np.testing.assert_allclose(numerical, forces, rtol=1e-6, atol=1e-6 * np.abs(forces).max())


@pytest.mark.parametrize("kind", ["slab", "crystal", "primitive"])
def test_stress_is_the_derivative_of_the_energy_by_strain(potential, kind):
    structure = make_structure(kind)
    stress = predict(potential, [structure])[0].stress
    expected = np.array([stress[pair] for pair in Strain.pairs])
    numerical = central_differences(potential, structure, Strain(), 1e-3) / structure.volume
    np.testing.assert_allclose(numerical, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())


def test_forces_sum_to_zero(potential, structure):
    forces = predict(potential, [structure])[0].forces
    np.testing.assert_allclose(forces.sum(axis=0), 0, atol=1e-12 * len(structure) * 100)


def test_energy_and_forces_are_continuous_as_an_atom_crosses_the_cutoff(potential):
    cutoff = potential.cutoff
    positions = np.array([[0.0, 0.0, 0.0], [1.1, 0.0, 0.0], [0.0, 0.0, cutoff]])
    frames = []
    for offset in (-1e-5, 0.0, 1e-5):
        moved = positions.copy()
        moved[2, 2] += offset
        frames.append(Structure([8, 1, 8], moved, np.zeros((3, 3)), [False] * 3))
    inside, at, outside = predict(potential, frames)
    for one, other in ((inside, at), (at, outside)):
        assert abs(one.energy - other.energy) < 1e-5
        assert np.abs(one.forces - other.forces).max() < 1e-5


def test_the_force_at_and_beyond_the_cutoff_is_exactly_zero(potential):
    cutoff = potential.cutoff
    for distance in (cutoff, cutoff + 1e-9, 1.5 * cutoff):
        pair = Structure([8, 8], [[0, 0, 0], [0, 0, distance]], np.zeros((3, 3)), [False] * 3)
        np.testing.assert_array_equal(predict(potential, [pair])[0].forces, 0)


def test_a_skin_around_the_cutoff_changes_nothing(small_potential):
    from mlip.data.structure import to_ase
    from mlip.engines.ase import Calculator

    structure = make_structure("crystal")
    exact = predict(small_potential, [structure])[0]
    atoms = to_ase(structure)
    atoms.calc = Calculator(small_potential, skin=1.5, folded=False)
    np.testing.assert_allclose(atoms.get_potential_energy(), exact.energy, rtol=0, atol=1e-11)
    np.testing.assert_allclose(atoms.get_forces(), exact.forces, rtol=0, atol=1e-11)


@pytest.mark.parametrize("order", [3, 5, 6])
def test_the_cutoff_function_has_two_vanishing_derivatives_at_both_ends(order):
    cutoff, h = 5.0, 1e-3
    ends = np.array([cutoff - 2 * h, cutoff - h, cutoff])
    with jax.enable_x64(True):
        near = np.asarray(smooth_cutoff(ends, cutoff, order))
        assert near[2] == 0
        # The leading term at the cutoff is cubic.
        assert abs(near[0]) < 20 * order**3 * (2 * h / cutoff) ** 3
        assert float(smooth_cutoff(np.array(0.0), cutoff, order)) == 1
        assert not np.any(smooth_cutoff(np.linspace(5, 9, 7), cutoff, order))


def test_the_bessel_basis_is_orthonormal():
    # ∫ over r² dr from 0 to the cutoff, by Gauss-Legendre quadrature.
    nodes, weights = np.polynomial.legendre.leggauss(60)
    cutoff = 4.0
    distance = cutoff * (nodes + 1) / 2
    values = np.asarray(bessel_basis(distance.astype(np.float32), cutoff, 6), float)
    gram = np.einsum("rn,rm,r->nm", values, values, weights * cutoff / 2 * distance**2)
    np.testing.assert_allclose(gram, np.eye(6), atol=2e-5)
