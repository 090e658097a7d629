"""Rotations in three dimensions: real spherical harmonics and the tensors that couple them.

Conventions are e3nn's, so that weights of models built on it carry over: component order and
signs of the real basis with y as the polar axis, `component` normalisation (|Y_l|² = 2l + 1).
Features of degree l are polar: they change by (-1)^l under inversion.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

L_MAX = 3


# `jit` within `jit`: all layers share one trace.
@functools.partial(jax.jit, static_argnums=(1, 2))
def spherical_harmonics(unit, l_max, axis=-1):
    """Real spherical harmonics of unit vectors.

    Args:
      unit: vectors of length one, [..., 3].
      l_max: largest degree, 0 to 3.
      axis: where the components of a degree stand in the result.

    Returns:
      For each degree l, Y_l, [..., 2l + 1], with Σ_m Y_lm² = 2l + 1.
    """
    x, y, z = unstack(jnp.moveaxis(unit, -1, 0))
    degrees = [[jnp.ones_like(x)]]
    if l_max >= 1:
        degrees.append([math.sqrt(3) * x, math.sqrt(3) * y, math.sqrt(3) * z])
    if l_max >= 2:
        xz, zz_xx = math.sqrt(15) * x * z, math.sqrt(15) / 2 * (z**2 - x**2)
        xy, yz = math.sqrt(15) * x * y, math.sqrt(15) * y * z
        degrees.append([xz, xy, math.sqrt(5) * (y**2 - (x**2 + z**2) / 2), yz, zz_xx])
    if l_max >= 3:
        ring = x**2 + z**2
        degrees.append(
            [
                math.sqrt(42) / 6 * (xz * z + zz_xx * x),
                math.sqrt(7) * xz * y,
                math.sqrt(168) / 8 * (4 * y**2 - ring) * x,
                math.sqrt(7) / 2 * y * (2 * y**2 - 3 * ring),
                math.sqrt(168) / 8 * (4 * y**2 - ring) * z,
                math.sqrt(7) * zz_xx * y,
                math.sqrt(42) / 6 * (zz_xx * z - xz * x),
            ]
        )
    return [jnp.stack(components, axis=axis) for components in degrees]


def unstack(array):
    """Slices along the first axis. A split, because its transpose is one concatenation."""
    return [part[0] for part in jax.lax.split(array, (1,) * array.shape[0])]


@functools.cache
def coupling(l1, l2, l3):
    """The invariant tensor of three degrees (real Wigner 3j symbol).

    Returns:
      C, [2 l1 + 1, 2 l2 + 1, 2 l3 + 1], with Σ C² = 1; zero outside the triangle rule.

    Source: Clebsch-Gordan coefficients by Racah's formula (Edmonds 1957, eq. 3.6.11) in the
    real basis of e3nn (Geiger and Smidt 2022, arXiv:2207.09453).
    """
    if not abs(l1 - l2) <= l3 <= l1 + l2:
        return np.zeros((2 * l1 + 1, 2 * l2 + 1, 2 * l3 + 1))
    complex_coupling = np.zeros((2 * l1 + 1, 2 * l2 + 1, 2 * l3 + 1))
    for m1, m2 in itertools.product(range(-l1, l1 + 1), range(-l2, l2 + 1)):
        if abs(m1 + m2) <= l3:
            value = _clebsch_gordan(l1, m1, l2, m2, l3, m1 + m2)
            complex_coupling[l1 + m1, l2 + m2, l3 + m1 + m2] = value
    real = np.einsum(
        "ij,kl,mn,ikn->jlm",
        _real_to_complex(l1),
        _real_to_complex(l2),
        np.conj(_real_to_complex(l3).T),
        complex_coupling,
    ).real
    return real / np.linalg.norm(real)


def _clebsch_gordan(j1, m1, j2, m2, j3, m3):
    f = math.factorial
    first, last = max(-j1 + j2 + m3, -j1 + m1, 0), min(j2 + j3 + m1, j3 - j1 + j2, j3 + m3)
    prefactor = (2 * j3 + 1) * f(j3 + j1 - j2) * f(j3 - j1 + j2) * f(j1 + j2 - j3)
    prefactor *= f(j3 + m3) * f(j3 - m3)
    prefactor /= f(j1 + j2 + j3 + 1) * f(j1 - m1) * f(j1 + m1) * f(j2 - m2) * f(j2 + m2)
    total = sum(
        (-1) ** (v + j2 + m2)
        * (f(j2 + j3 + m1 - v) * f(j1 - m1 + v))
        / (f(v) * f(j3 - j1 + j2 - v) * f(j3 + m3 - v) * f(v + j1 - j2 - m3))
        for v in range(first, last + 1)
    )
    return math.sqrt(prefactor) * total


def _real_to_complex(l):
    q = np.zeros((2 * l + 1, 2 * l + 1), complex)
    for m in range(-l, 0):
        q[l + m, l + abs(m)] = 1 / math.sqrt(2)
        q[l + m, l - abs(m)] = -1j / math.sqrt(2)
    q[l, l] = 1
    for m in range(1, l + 1):
        q[l + m, l + abs(m)] = (-1) ** m / math.sqrt(2)
        q[l + m, l - abs(m)] = 1j * (-1) ** m / math.sqrt(2)
    return (-1j) ** l * q  # this phase makes the coupling tensors real


@functools.cache
def symmetric_coupling(l_max, l_out, order):
    """A basis of the equivariant polynomials of one feature vector, in sparse monomials.

    With x the features of degrees 0 to l_max, every polynomial map of the given order into degree
    l_out that commutes with rotations and inversion is a combination of
    B_km(x) = Σ_n coefficients[k, m, n] Π_i x[monomials[n, i]]. The basis is orthogonal and each
    B_k has the norm of a coupling of distinct vectors: its symmetric tensor squares to 2 l_out + 1.

    Returns:
      monomials: component indices, non-decreasing along a row, [n_monomials, order].
      coefficients: [n_basis, 2 l_out + 1, n_monomials].

    Source: the symmetric contraction of MACE (Batatia et al. 2022, arXiv:2206.07697, eq. 10) after
    Drautz, Phys. Rev. B 99, 014104 (2019); here without its linearly dependent parts.
    """
    blocks = []
    for degrees in itertools.combinations_with_replacement(range(l_max + 1), order):
        if (sum(degrees) + l_out) % 2 == 0:
            blocks += _symmetric_block(degrees, l_out)
    monomials = sorted({monomial for block in blocks for monomial in block})
    position = {monomial: n for n, monomial in enumerate(monomials)}
    coefficients = np.zeros((len(blocks), 2 * l_out + 1, len(monomials)))
    for k, block in enumerate(blocks):
        for monomial, values in block.items():
            coefficients[k, :, position[monomial]] = values
    return np.array(monomials, int).reshape(-1, order), coefficients


@functools.partial(jax.jit, static_argnums=(2, 3))
def symmetric_product(components, weights, l_max, l_out):
    """Σ_k weights_k B_k over the symmetric basis of all orders, written out in its monomials.

    Args:
      components: (l_max + 1)² arrays [n_atoms, channels].
      weights: for each order from 1 on, [n_basis, n_atoms, channels].

    Returns:
      2 l_out + 1 arrays [n_atoms, channels].
    """
    products = {(i,): x for i, x in enumerate(components)}
    out = [0.0] * (2 * l_out + 1)
    for order, weight in enumerate(weights, start=1):
        monomials, coefficients = symmetric_coupling(l_max, l_out, order)
        rows = unstack(weight)
        for monomial in map(tuple, monomials.tolist()):
            for n in range(2, order + 1):
                if monomial[:n] not in products:
                    products[monomial[:n]] = (
                        products[monomial[: n - 1]] * components[monomial[n - 1]]
                    )
        for k, row in enumerate(rows):
            for m in range(2 * l_out + 1):
                used = np.flatnonzero(np.abs(coefficients[k, m]) > 1e-12)
                terms = [
                    float(coefficients[k, m, n]) * products[tuple(monomials[n].tolist())]
                    for n in used
                ]
                out[m] += row * sum(terms)
    return out


def _symmetric_block(degrees, l_out):
    """Orthogonal symmetrised couplings of the given degrees to l_out: {monomial: [2 l_out + 1]}."""
    chains = [(degrees[0], np.eye(2 * degrees[0] + 1))]  # each tensor: [m_1, …, m_n, m_total]
    for l in degrees[1:]:
        chains = [
            (total, np.tensordot(tensor, coupling(previous, l, total), axes=(-1, 0)))
            for previous, tensor in chains
            for total in range(abs(previous - l), previous + l + 1)
        ]
    components = [range(l**2, (l + 1) ** 2) for l in degrees]
    indices = [tuple(sorted(index)) for index in itertools.product(*components)]
    monomials = sorted(set(indices))
    position = {monomial: n for n, monomial in enumerate(monomials)}
    rows = np.array([position[index] for index in indices])
    permutations = np.array([_count_permutations(monomial) for monomial in monomials])
    basis = []
    for total, tensor in chains:
        if total != l_out:
            continue
        vector = np.zeros((len(monomials), 2 * l_out + 1))
        np.add.at(vector, rows, tensor.reshape(-1, 2 * l_out + 1))
        # In these coordinates the dot product is that of the symmetric tensors.
        vector /= np.sqrt(permutations)[:, None]
        vector /= max(np.linalg.norm(tensor), 1e-300)
        for _ in range(2):  # twice is enough to orthogonalise to rounding error
            for other in basis:
                vector -= other * (other * vector).sum()
        if np.linalg.norm(vector) > 1e-6:
            basis.append(vector / np.linalg.norm(vector))
    scale = np.sqrt(permutations * (2 * l_out + 1))[:, None]
    return [
        {m: v for m, v in zip(monomials, vector * scale) if np.abs(v).max() > 1e-12}
        for vector in basis
    ]


def _count_permutations(items):
    repeats = (len(list(group)) for _, group in itertools.groupby(items))
    return math.factorial(len(items)) // math.prod(math.factorial(n) for n in repeats)
