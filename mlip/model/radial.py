"""Functions of the distance between two atoms."""

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
    x = distance / cutoff
    return jnp.where(x < 1, envelope(x, order), 0.0)


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


def zbl_energy(distance, number, other_number):
    """Screened nuclear repulsion of a pair, smoothly zero beyond the sum of covalent radii.

    Args:
      distance: positive, [...], Å.
      number, other_number: atomic numbers of the two atoms, [...].

    Returns:
      Energy of the pair, [...], eV.

    Source: Ziegler, Biersack and Littmark 1985, with the envelope of MACE's `ZBLBasis`.
    """
    radii = jnp.asarray(COVALENT_RADII, distance.dtype)
    one, other = number.astype(distance.dtype), other_number.astype(distance.dtype)
    scaled = distance * (one**ZBL_EXPONENT + other**ZBL_EXPONENT) / ZBL_LENGTH
    screening = sum(w * jnp.exp(-d * scaled) for w, d in zip(ZBL_WEIGHTS, ZBL_DECAYS))
    envelope = smooth_cutoff(distance, radii[number] + radii[other_number], order=6)
    return COULOMB * one * other / distance * screening * envelope
