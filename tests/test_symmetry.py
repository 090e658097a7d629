"""Energies are invariant and forces and stress equivariant under the symmetries of space."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import make_structure, predict, random_rotation

from mlip.data.structure import Structure

TOLERANCE = {"float64": {"rtol": 0, "atol": 1e-10}, "float32": {"rtol": 0, "atol": 1e-4}}


def transformed(structure, matrix):
    return replace(
        structure, positions=structure.positions @ matrix.T, cell=structure.cell @ matrix.T
    )


def assert_equal(one, other, dtype="float64", matrix=None, rows=slice(None)):
    """`other` is `one` seen in coordinates turned by `matrix`, with its atoms reordered."""
    matrix = np.eye(3) if matrix is None else matrix
    size = max(1.0, np.abs(one.forces).max()) if dtype == "float32" else 1.0
    tolerance = {**TOLERANCE[dtype], "atol": TOLERANCE[dtype]["atol"] * size}
    np.testing.assert_allclose(other.energy, one.energy, **tolerance)
    np.testing.assert_allclose(other.energies, one.energies[rows], **tolerance)
    np.testing.assert_allclose(other.forces, (one.forces @ matrix.T)[rows], **tolerance)
    if one.stress is not None:
        np.testing.assert_allclose(other.stress, matrix @ one.stress @ matrix.T, **tolerance)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_rotation_and_reflection(potential_in, structure, dtype):
    rng = np.random.default_rng(0)
    matrices = [random_rotation(rng), -random_rotation(rng), np.diag([1.0, 1.0, -1.0])]
    before, *after = predict(
        potential_in(dtype), [structure, *(transformed(structure, m) for m in matrices)]
    )
    assert np.abs(before.forces).max() > 1e-4
    for matrix, prediction in zip(matrices, after):
        assert_equal(before, prediction, dtype, matrix)


def test_translation_and_wrapping(potential, structure):
    rng = np.random.default_rng(1)
    images = rng.integers(-2, 3, size=(len(structure), 3)) * structure.pbc
    moved = [
        replace(structure, positions=structure.positions + [10.3, -7.1, 55.9]),
        replace(structure, positions=structure.positions + images @ structure.cell),
    ]
    before, *after = predict(potential, [structure, *moved])
    for prediction in after:
        assert_equal(before, prediction)


def test_permutation_of_atoms(potential, structure):
    order = np.random.default_rng(2).permutation(len(structure))
    shuffled = replace(
        structure, numbers=structure.numbers[order], positions=structure.positions[order]
    )
    before, after = predict(potential, [structure, shuffled])
    assert_equal(before, after, rows=order)


@pytest.mark.parametrize("kind", ["slab", "crystal", "primitive"])
def test_choice_of_cell(potential, kind):
    structure = make_structure(kind)
    change = np.array([[1, 1, 0], [0, 1, 0], [0, 0, 1]])  # between periodic axes only
    left_handed = structure.cell[[1, 0, 2]]
    same = [
        replace(structure, cell=change @ structure.cell),
        replace(structure, cell=left_handed),
    ]
    before, *after = predict(potential, [structure, *same])
    for prediction in after:
        assert_equal(before, prediction)


@pytest.mark.parametrize("kind", ["slab", "crystal", "primitive"])
def test_supercell(potential, kind):
    structure = make_structure(kind)
    counts = (2, 2, 1) if kind == "slab" else (2, 1, 3)
    copies = int(np.prod(counts))
    before, after = predict(potential, [structure, structure.repeat(counts)])
    np.testing.assert_allclose(after.energy, copies * before.energy, rtol=0, atol=1e-9)
    np.testing.assert_allclose(after.forces, np.tile(before.forces, (copies, 1)), atol=1e-10)
    np.testing.assert_allclose(after.stress, before.stress, rtol=0, atol=1e-10)


def test_vacuum_axis_does_not_change_a_slab_but_scales_its_stress(potential):
    slab = make_structure("slab")
    cell = slab.cell.copy()
    cell[2] *= 3
    before, after = predict(potential, [slab, replace(slab, cell=cell)])
    np.testing.assert_allclose(after.energy, before.energy, rtol=0, atol=1e-10)
    np.testing.assert_allclose(after.forces, before.forces, rtol=0, atol=1e-10)
    np.testing.assert_allclose(after.stress, before.stress / 3, rtol=0, atol=1e-10)


def test_separated_fragments_add_up_and_do_not_feel_each_other(potential):
    one, two = make_structure("molecule", seed=1), make_structure("molecule", seed=2)
    far = 2 * potential.cutoff * potential.config.layers + 20
    both = Structure(
        np.concatenate([one.numbers, two.numbers]),
        np.concatenate([one.positions, two.positions + [far, 0, 0]]),
        one.cell,
        one.pbc,
    )
    first, second, together = predict(potential, [one, two, both])
    np.testing.assert_allclose(together.energy, first.energy + second.energy, rtol=0, atol=1e-10)
    np.testing.assert_allclose(
        together.forces, np.concatenate([first.forces, second.forces]), rtol=0, atol=1e-10
    )


def test_a_single_atom_has_no_force(potential):
    prediction = predict(potential, [make_structure("atom")])[0]
    assert np.isfinite(prediction.energy)
    np.testing.assert_array_equal(prediction.forces, 0)
    assert prediction.stress is None
