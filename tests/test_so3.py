"""Spherical harmonics, coupling coefficients and symmetric products against e3nn-jax and theory."""

import itertools

import jax
import numpy as np
import pytest
from conftest import random_rotation

from mlip.model.mace.layer import paths
from mlip.model.radial import SILU_GAIN
from mlip.model.so3 import L_MAX, coupling, spherical_harmonics, symmetric_coupling

e3nn = pytest.importorskip("e3nn_jax", reason="e3nn-jax is not installed")


def harmonics(vectors, l_max=L_MAX):
    with jax.enable_x64(True):
        unit = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
        return [np.asarray(y) for y in spherical_harmonics(jax.numpy.asarray(unit), l_max)]


def rotation_matrices(matrix):
    """D_l with Y_l(R v) = D_l Y_l(v), from the values on many directions."""
    vectors = np.random.default_rng(5).normal(size=(60, 3))
    before, after = harmonics(vectors), harmonics(vectors @ matrix.T)
    return [np.linalg.lstsq(b, a, rcond=None)[0].T for b, a in zip(before, after)]


def test_spherical_harmonics_equal_those_of_e3nn():
    vectors = np.random.default_rng(0).normal(size=(50, 3))
    with jax.enable_x64(True):
        for l, values in enumerate(harmonics(vectors)):
            expected = e3nn.spherical_harmonics(
                e3nn.Irreps([(1, (l, (-1) ** l))]),
                e3nn.IrrepsArray("1o", jax.numpy.asarray(vectors)),
                normalize=True,
                normalization="component",
            ).array
            np.testing.assert_allclose(values, expected, rtol=0, atol=1e-12)


def test_spherical_harmonics_obey_the_addition_theorem():
    rng = np.random.default_rng(1)
    one, other = rng.normal(size=(2, 30, 3))
    cosine = (one * other).sum(-1) / np.linalg.norm(one, axis=-1) / np.linalg.norm(other, axis=-1)
    for l, (a, b) in enumerate(zip(harmonics(one), harmonics(other))):
        legendre = np.polynomial.legendre.legval(cosine, np.eye(L_MAX + 1)[l])
        np.testing.assert_allclose((a * b).sum(-1), (2 * l + 1) * legendre, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("l1", "l2"), list(itertools.product(range(4), repeat=2)))
def test_coupling_coefficients_equal_those_of_e3nn(l1, l2):
    for l3 in range(abs(l1 - l2), l1 + l2 + 1):
        expected = np.asarray(e3nn.clebsch_gordan(l1, l2, l3), float)
        expected /= np.linalg.norm(expected)
        np.testing.assert_allclose(coupling(l1, l2, l3), expected, rtol=0, atol=2e-7)


def test_coupling_tensors_are_invariant_and_of_norm_one():
    matrices = rotation_matrices(random_rotation(np.random.default_rng(2)))
    for l1, l2, l3 in itertools.product(range(4), repeat=3):
        tensor = coupling(l1, l2, l3)
        if not abs(l1 - l2) <= l3 <= l1 + l2:
            assert not tensor.any()
            continue
        turned = np.einsum("abc,ia,jb,kc->ijk", tensor, matrices[l1], matrices[l2], matrices[l3])
        np.testing.assert_allclose(turned, tensor, rtol=0, atol=1e-12)
        np.testing.assert_allclose(np.linalg.norm(tensor), 1, rtol=1e-13)


def polynomials(x, l_max, l_out, order):
    """B_km(x) of the basis, [n_basis, 2 l_out + 1]."""
    monomials, coefficients = symmetric_coupling(l_max, l_out, order)
    return coefficients @ np.prod(x[monomials], axis=1)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("l_out", [0, 1, 2])
def test_symmetric_products_are_equivariant(l_out, order):
    l_max = 3 if order < 4 else 2
    rng = np.random.default_rng(order)
    x = rng.normal(size=(l_max + 1) ** 2)
    for matrix in (random_rotation(rng), -random_rotation(rng)):
        blocks = rotation_matrices(matrix)
        degrees = [x[l**2 : (l + 1) ** 2] for l in range(l_max + 1)]
        turned = np.concatenate([block @ part for block, part in zip(blocks, degrees)])
        expected = polynomials(x, l_max, l_out, order) @ blocks[l_out].T
        np.testing.assert_allclose(polynomials(turned, l_max, l_out, order), expected, atol=1e-9)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("l_out", [0, 1, 2])
def test_the_symmetric_basis_is_complete_and_independent(l_out, order):
    """Its size is the multiplicity of l_out in the symmetric power, an integral of characters.

    Over O(3), with χ_l(θ) = sin((2l + 1)θ/2)/sin(θ/2) and parity (-1)^l; the character of a
    symmetric power follows from those of powers of the rotation by Newton's identities.
    """
    l_max = 2
    angles, weights = np.polynomial.legendre.leggauss(200)
    angles, weights = np.pi * (angles + 1) / 2, weights * np.pi / 2
    measure = weights * 2 / np.pi * np.sin(angles / 2) ** 2

    def character(l, angle, inverted):
        return (-1.0) ** (l * inverted) * np.sin((2 * l + 1) * angle / 2) / np.sin(angle / 2)

    count = 0.0
    for inverted in (0, 1):
        power_sums = [
            sum(character(l, n * angles, inverted * n) for l in range(l_max + 1))
            for n in range(1, order + 1)
        ]
        symmetric = [np.ones_like(angles)]
        for n in range(1, order + 1):
            total = sum(power_sums[k - 1] * symmetric[n - k] for k in range(1, n + 1))
            symmetric.append(total / n)
        count += 0.5 * (measure * symmetric[order] * character(l_out, angles, inverted)).sum()
    _, coefficients = symmetric_coupling(l_max, l_out, order)
    flat = coefficients.reshape(len(coefficients), -1)
    assert len(flat) == np.linalg.matrix_rank(flat) == round(count)
    assert abs(count - round(count)) < 1e-6


def test_symmetric_products_have_the_norm_of_a_coupling():
    x = np.random.default_rng(0).normal(size=16)
    # Of first order they are the features themselves, of second and degree 0 their squares.
    np.testing.assert_allclose(polynomials(x, 3, 2, 1)[0], x[4:9], atol=1e-14)
    squares = [(x[l**2 : (l + 1) ** 2] ** 2).sum() / np.sqrt(2 * l + 1) for l in range(4)]
    np.testing.assert_allclose(np.abs(polynomials(x, 3, 0, 2)[:, 0]), squares, atol=1e-12)


def test_interaction_paths_keep_parity():
    assert paths(0, 3) == [(0, l, l) for l in range(4)]
    for l1, l2, l3 in paths(2, 3):
        assert abs(l1 - l2) <= l3 <= l1 + l2
        assert (l1 + l2 + l3) % 2 == 0


def test_silu_keeps_unit_variance():
    x, weights = np.polynomial.hermite_e.hermegauss(180)
    second_moment = (weights * (x / (1 + np.exp(-x))) ** 2).sum() / weights.sum()
    np.testing.assert_allclose(SILU_GAIN, second_moment**-0.5, rtol=1e-9)
