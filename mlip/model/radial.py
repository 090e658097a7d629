"""Functions of the distance between two atoms."""

import jax
import jax.numpy as jnp
import numpy as np

from mlip.data.structure import COVALENT_RADII

# ∫ silu(x)² exp(-x²/2)/√(2π) dx to the power -1/2: keeps unit variance through an activation.
SILU_GAIN = 1.6765324703310907

# Screening function and length of the universal ZBL potential, as used by MACE (length in Å).
ZBL_WEIGHTS = (0.1818, 0.5099, 0.2802, 0.02817)
ZBL_DECAYS = (3.2, 0.9423, 0.4028, 0.2016)
ZBL_LENGTH, ZBL_EXPONENT = 0.4543 * 0.529, 0.300
COULOMB = 14.3996  # e²/(4πε₀), eV Å

AGNESI_A, AGNESI_Q, AGNESI_P = 1.0805, 0.9183, 4.5791
SOFT_STEEPNESS = 4.0

BASES = ("bessel", "gaussian", "chebyshev")
TRANSFORMS = ("none", "agnesi", "soft")


def smooth_cutoff(distance, cutoff, order):
    """Weight falling from 1 at zero distance to 0 at the cutoff, twice differentiable.

    Args:
      distance: [...], Å.
      cutoff: length beyond which the weight is exactly 0, Å; broadcasts against `distance`.
      order: p of the source; first and second derivatives vanish at the cutoff for every p.

    Returns:
      Weights in [0, 1], [...].

    Source: Gasteiger et al., DimeNet, ICLR 2020 (arXiv:2003.03123), eq. 8.
    """
    distance = jnp.asarray(distance)
    # Its powers lose digits: in float32 they were a third of the noise in the energies.
    x = in_float64(distance) / cutoff
    return jnp.where(x < 1, envelope(x, order), 0.0).astype(distance.dtype)


def in_float64(array):
    """The array in float64 inside `jax.enable_x64`, where predictions are made; else unchanged."""
    return array.astype(jax.dtypes.canonicalize_dtype(np.float64))


def envelope(x, p):
    """The polynomial of `smooth_cutoff` in x = distance / cutoff, not cut off."""
    return (
        1
        - (p + 1) * (p + 2) / 2 * x**p
        + p * (p + 2) * x ** (p + 1)
        - p * (p + 1) / 2 * x ** (p + 2)
    )


def bessel_basis(distance, cutoff, n_radial):
    """Spherical Bessel functions √(2/cutoff) sin(nπ r/cutoff)/r for n = 1 … n_radial.

    Args:
      distance: positive, [...], Å.
      cutoff: Å.

    Returns:
      [..., n_radial], 1/Å^(3/2).

    Source: Gasteiger et al., DimeNet, ICLR 2020 (arXiv:2003.03123), eq. 7.
    """
    angle = np.pi / cutoff * distance
    # sin(nθ) by Chebyshev's recursion: two transcendental functions an edge instead of n_radial.
    sines, twice_cosine = [jnp.zeros_like(angle), jnp.sin(angle)], 2 * jnp.cos(angle)
    for _ in range(n_radial - 1):
        sines.append(twice_cosine * sines[-1] - sines[-2])
    return np.sqrt(2 / cutoff) * jnp.stack(sines[1:], axis=-1) / distance[..., None]


def gaussian_basis(distance, cutoff, n_radial):
    """Gaussians with centres from 0 to the cutoff and their spacing as width, [..., n_radial].

    Args:
      distance: [...], of NumPy or JAX, as are the results.
    """
    centers = np.linspace(0, cutoff, n_radial).astype(distance.dtype)
    scaled = (distance[..., None] - centers) * ((n_radial - 1) / cutoff)
    return distance.__array_namespace__().exp(-(scaled**2) / 2)


def chebyshev_basis(x, n_radial):
    """Chebyshev's polynomials of first kind and orders 1 … n_radial, [..., n_radial].

    Args:
      x: [...], of NumPy or JAX, as are the results.
    """
    polynomials = [x**0, x]
    for _ in range(n_radial - 1):
        polynomials.append(2 * x * polynomials[-1] - polynomials[-2])
    return x.__array_namespace__().stack(polynomials[1:], axis=-1)


def agnesi_transform(distance, reach):
    """Distances mapped to (0, 1], flat where atoms of these elements overlap, [...].

    Even in the distance, so that splines can be fitted around zero.

    Args:
      distance: [...], Å, of NumPy or JAX.
      reach: sum of the two atoms' covalent radii, [...], Å.

    Source: Witt et al., ACEpotentials.jl, J. Chem. Phys. 159, 164101 (2023), constants of MACE.
    """
    s = abs(distance) / (reach / 2)
    return 1 / (1 + AGNESI_A * s**AGNESI_P / (1 + s ** (AGNESI_P - AGNESI_Q)))


def soft_transform(distance, reach):
    """Distances held at 3/4 of `reach` below about that length, [...], Å.

    Args:
      distance: [...], Å, of NumPy or JAX.
      reach: sum of the two atoms' covalent radii, [...], Å.

    Source: `SoftTransform` of MACE.
    """
    low, high = 3 / 4 * reach, 4 / 3 * reach
    steepness = SOFT_STEEPNESS / (high - low)
    step = distance.__array_namespace__().tanh(steepness * (distance - (low + high) / 2))
    return low + (distance - low) * (1 + step) / 2


def transform_distance(kind, distance, reach):
    """The argument of the radial basis; `kind` is one of `TRANSFORMS`."""
    if kind == "none":
        return distance
    return {"agnesi": agnesi_transform, "soft": soft_transform}[kind](distance, reach)


def radial_basis(kind, argument, cutoff, n_radial):
    """Basis functions of a distance or what it was transformed to, [..., n_radial]."""
    if kind == "bessel":
        return bessel_basis(argument, cutoff, n_radial)
    if kind == "gaussian":
        return gaussian_basis(argument, cutoff, n_radial)
    return chebyshev_basis(argument, n_radial)


def zbl_energy(distance, number, other_number, order=6):
    """Screened nuclear repulsion of a pair, smoothly zero beyond the sum of covalent radii.

    Args:
      distance: positive, [...], Å.
      number, other_number: atomic numbers of the two atoms, [...].
      order: p of the envelope, see `smooth_cutoff`.

    Returns:
      Energy of the pair, [...], eV.

    Source: Ziegler, Biersack and Littmark 1985, with the envelope of MACE's `ZBLBasis`.
    """
    radii = jnp.asarray(COVALENT_RADII, distance.dtype)
    one, other = number.astype(distance.dtype), other_number.astype(distance.dtype)
    scaled = distance * (one**ZBL_EXPONENT + other**ZBL_EXPONENT) / ZBL_LENGTH
    screening = sum(w * jnp.exp(-d * scaled) for w, d in zip(ZBL_WEIGHTS, ZBL_DECAYS))
    envelope = smooth_cutoff(distance, radii[number] + radii[other_number], order)
    return COULOMB * one * other / distance * screening * envelope
